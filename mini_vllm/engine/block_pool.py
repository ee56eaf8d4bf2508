"""Block pool: allocation and reference counts of KV blocks, and the prefix cache over them.

A block whose every token is computed is cached under the hash of all tokens up to its end. A later request with the same tokens
finds the block by that hash and shares it; a cached block is never written to again. A free block stays cached until it is
allocated for other tokens: the least recently freed block is evicted first.

    tokens     t h e   c a t | s a t   o n   | i t s   m       (block size 6)
    hash       h0 = H(salt, "the cat")         h1 = H(h0, "sat on")         none: the block is not full

After vLLM's block pool (vllm/v1/core/block_pool.py) and Kwon et al. 2023, "PagedAttention", section 4.4.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

BlockHash = bytes


def salt_hash(cache_salt: str, lora_id: int = 0) -> BlockHash:
    """Returns the parent hash of a request's first block, from salt and adapter: only requests equal in both share blocks."""
    return hashlib.sha256(f"{lora_id} {cache_salt}".encode()).digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Returns the hash of a full block, over its parent's hash and its tokens, and so over all tokens up to its end."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


class BlockPool:
    """Block ids 0 .. num_blocks - 1, each free or with a reference count; ``evictions`` counts cached blocks allocated anew."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictions = 0
        self._free = OrderedDict.fromkeys(range(num_blocks))  # the first one is allocated next
        self._references = [0] * num_blocks
        self._hashes: dict[int, BlockHash] = {}
        self._cached: dict[BlockHash, int] = {}

    @property
    def num_free(self) -> int:
        """Number of free blocks, cached or not."""
        return len(self._free)

    def find(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Returns ids of a prefix's cached blocks, in order: one for each of the first hashes, up to one that is not cached."""
        return [self._cached[each] for each in takewhile(self._cached.__contains__, hashes)]

    def allocate(self, count: int, shared: Sequence[int] = ()) -> list[int] | None:
        """Allocates ``count`` blocks, returns their ids, adds 1 to counts of ``shared``; None, no change, if too few are free."""
        if count > len(self._free) - sum(self._references[block] == 0 for block in shared):
            return None
        for block in shared:
            self._free.pop(block, None)
            self._references[block] += 1
        return [self._take_oldest() for _ in range(count)]

    def cache(self, block: int, block_hash: BlockHash) -> None:
        """Caches a full block under ``block_hash``, unless another block is cached under this hash already."""
        if block_hash not in self._cached:
            self._hashes[block] = block_hash
            self._cached[block_hash] = block

    def free(self, blocks: Sequence[int]) -> None:
        """Decrements reference counts, last block first, so that a prefix's end is evicted first; ValueError for a free block."""
        for block in reversed(blocks):
            if not self._references[block]:
                raise ValueError(f"block {block} is freed and is already free; {self.num_free} of {self.num_blocks} are free")
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if block not in self._hashes:
                    self._free.move_to_end(block, last=False)  # not cached, so allocated first

    def _take_oldest(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._references[block] = 1
        if block in self._hashes:
            del self._cached[self._hashes.pop(block)]
            self.evictions += 1
        return block
