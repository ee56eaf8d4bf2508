"""Where things go in the picture, and how much of it there is room for.

Up to DETAILED_STEPS columns and DETAILED_ROWS rows everything has its own place, its numbers and its tooltip. A longer run is
drawn as an overview of fixed width, in which decodes that follow each other are one dotted line.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.pictures.timeline.glyphs import Cell

DETAILED_STEPS = 300
DETAILED_ROWS = 100
GUTTER, MARGIN, HEAD = 160, 44, 132
"""Pixels left of the columns, right of them, and above the rows."""
STRIP, GAP = 46, 22
"""Pixels of a chart under the columns, and above it."""


@dataclass(frozen=True)
class Layout:
    """Where things go.

    Attributes:
        columns: the part of the trace that is drawn.
        num_rows: how many requests are in it.
    """

    columns: range
    num_rows: int

    @property
    def detailed(self) -> bool:
        """Whether every cell is drawn by itself."""
        return len(self.columns) <= DETAILED_STEPS and self.num_rows <= DETAILED_ROWS

    @property
    def column_width(self) -> float:
        """In detail wide enough for a number written upright; an overview has one width, whatever its steps."""
        if self.detailed:
            return min(36.0, max(1600 / len(self.columns), 10.0))
        return min(36.0, 2400 / len(self.columns))

    @property
    def row_height(self) -> float:
        """An overview writes no numbers, and needs half the height."""
        return 32.0 if self.detailed else 16.0

    @property
    def right(self) -> float:
        """The right edge of the last column."""
        return GUTTER + len(self.columns) * self.column_width

    @property
    def foot(self) -> float:
        """The lower edge of the last row."""
        return HEAD + self.num_rows * self.row_height

    @property
    def width(self) -> float:
        """Of the picture; the title and the legend need 1120."""
        return max(1120, self.right + MARGIN)

    @property
    def charts_foot(self) -> float:
        """The lower edge of the last chart."""
        return self.foot + 2 * (GAP + STRIP)

    @property
    def height(self) -> float:
        """Of the picture."""
        return self.charts_foot + 16

    def cell(self, column: int, row: int = 0) -> Cell:
        """The place of a request in a step."""
        x = GUTTER + (column - self.columns.start) * self.column_width
        return Cell(x, HEAD + row * self.row_height, self.column_width, self.row_height, self.detailed)
