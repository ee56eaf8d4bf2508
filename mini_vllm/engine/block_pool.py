"""The blocks there are, who holds them, and what is worth keeping in those that nobody holds.

A block whose every token is computed gets a name, the hash of all tokens up to its end. Whoever needs the same tokens later finds
it by that name and shares it, and nobody ever writes to it again. A block that nobody holds keeps its name until it is needed
for something else; the one let go longest ago goes first.

    tokens     t h e   c a t | s a t   o n   | i t s   m       (block size 6)
    hash       h0 = H(salt, "the cat")         h1 = H(h0, "sat on")         none: the block is not full

After vLLM's block pool (vllm/v1/core/block_pool.py) and Kwon et al. 2023, "PagedAttention", section 4.4.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

BlockHash = bytes


def salt_hash(cache_salt: str, lora_id: int = 0) -> BlockHash:
    """What the first block's hash is chained to: anything beside the tokens that decides what is in the blocks."""
    return hashlib.sha256(f"{lora_id} {cache_salt}".encode()).digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The name of a full block: the hash of the block before it and of its own tokens, so of everything up to its end."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


class BlockPool:
    """Block ids 0 .. num_blocks - 1, each free or held by one or more requests.

    Attributes:
        num_blocks: how many there are.
        evictions: how many named blocks have lost their name because they were needed for something else.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictions = 0
        self._free = OrderedDict.fromkeys(range(num_blocks))  # the next one to go out is the first
        self._holders = [0] * num_blocks
        self._hashes: dict[int, BlockHash] = {}
        self._named: dict[BlockHash, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, whether or not they have a name."""
        return len(self._free)

    def find(self, hashes: Sequence[BlockHash]) -> list[int]:
        """The blocks of the longest known prefix: those of the first hashes, up to the first that no block has."""
        found: list[int] = []
        for name in hashes:
            if name not in self._named:
                break
            found.append(self._named[name])
        return found

    def allocate(self, count: int, shared: Sequence[int] = ()) -> list[int] | None:
        """A hold on the ``shared`` blocks and on ``count`` fresh ones; None, and nothing taken, when there are not so many.

        Returns:
            The fresh ones.
        """
        if count > len(self._free) - sum(self._holders[block] == 0 for block in shared):
            return None
        for block in shared:
            self._free.pop(block, None)
            self._holders[block] += 1
        return [self._take_oldest() for _ in range(count)]

    def name(self, block: int, block_hash: BlockHash) -> None:
        """Makes a full block findable; when another one with the same tokens is already, this one stays without a name."""
        if block_hash not in self._named:
            self._hashes[block] = block_hash
            self._named[block_hash] = block

    def free(self, blocks: Sequence[int]) -> None:
        """Ends one hold on each block. The end of a prefix is let go before its beginning, which more requests may share.

        Raises:
            ValueError: a block is not held, so two requests would come to write to it.
        """
        for block in reversed(blocks):
            if not self._holders[block]:
                raise ValueError(f"block {block} is returned and nobody holds it; {self.num_free} of {self.num_blocks} are free")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._hashes:
                    self._free.move_to_end(block, last=False)  # nothing in it is worth keeping

    def writable(self, block: int) -> bool:
        """Whether its holder may write to it: held once, and without a name that promises its contents to others."""
        return self._holders[block] == 1 and block not in self._hashes

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Compares the books with each other and with who says to hold what.

        Args:
            held: the block table of every request that has one.

        Raises:
            RuntimeError: a block is lost, held twice over, or known by a name that is not its own.
        """
        counted = [0] * self.num_blocks
        for block in (block for blocks in held for block in blocks):
            counted[block] += 1
        for block, holders in enumerate(self._holders):
            if counted[block] != holders:
                raise RuntimeError(f"block {block} is in {counted[block]} block tables, and the pool counts {holders} holders")
            if (block in self._free) != (holders == 0):
                raise RuntimeError(f"block {block} has {holders} holders and is {'' if block in self._free else 'not '}free")
        if {block: name for name, block in self._named.items()} != self._hashes:
            raise RuntimeError(f"{len(self._named)} names and {len(self._hashes)} named blocks do not belong to each other")

    def _take_oldest(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._holders[block] = 1
        if block in self._hashes:
            del self._named[self._hashes.pop(block)]
            self.evictions += 1
        return block
