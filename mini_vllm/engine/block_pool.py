"""The blocks there are, and who may have one."""

from __future__ import annotations


class BlockPool:
    """Hands out block ids 0 .. num_blocks - 1, each to one owner at a time; the last one returned goes out first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(reversed(range(num_blocks)))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` blocks, or None, and nothing taken, when there are not so many."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        self._used.update(taken)
        return taken

    def free(self, blocks: list[int]) -> None:
        """Takes blocks back.

        Raises:
            ValueError: a block is not out, so two requests would come to share it.
        """
        for block in reversed(blocks):
            if block not in self._used:
                raise ValueError(f"block {block} is returned and was not out; {len(self._used)} of {self.num_blocks} are")
            self._used.remove(block)
            self._free.append(block)
