"""Coordinates of the timeline picture.

Up to MAX_DETAILED_STEPS columns and MAX_DETAILED_ROWS rows, every event has its own place, its numbers and its tooltip. A longer
run is drawn as an overview of fixed width, in which consecutive decodes are one dotted line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_DETAILED_STEPS = 300
MAX_DETAILED_ROWS = 100
GUTTER, MARGIN, HEAD = 160, 44, 132
"""Pixels left of the columns, right of them, and above the rows."""
STRIP, GAP = 46, 22
"""Pixels of a chart under the columns, and above it."""


@dataclass(frozen=True)
class Cell:
    """The place of one request in one step.

    Attributes:
        x: its left edge.
        y: its upper edge.
        width: of the column.
        height: of the row; the upper quarter is for a cache hit.
        numbers: whether there is room for numbers.
    """

    x: float
    y: float
    width: float
    height: float
    numbers: bool

    @property
    def centre(self) -> float:
        """The x of the middle."""
        return self.x + self.width / 2

    @property
    def next(self) -> Cell:
        """The cell to the right."""
        return replace(self, x=self.x + self.width)

    @property
    def top(self) -> float:
        """The upper edge of a bar."""
        return self.y + 0.3 * self.height

    @property
    def bottom(self) -> float:
        """The lower edge of a bar."""
        return self.y + 0.94 * self.height

    @property
    def middle(self) -> float:
        """The y of dots, crosses and lines."""
        return (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Layout:
    """The sizes of a picture, and the places of its cells.

    Attributes:
        columns: the drawn part of the trace.
        num_rows: number of drawn requests.
    """

    columns: range
    num_rows: int

    @property
    def detailed(self) -> bool:
        """Whether every event is drawn separately."""
        return len(self.columns) <= MAX_DETAILED_STEPS and self.num_rows <= MAX_DETAILED_ROWS

    @property
    def column_width(self) -> float:
        """In detail, wide enough for a vertical number; an overview has a fixed total width."""
        if self.detailed:
            return min(36.0, max(1600 / len(self.columns), 10.0))
        return min(36.0, 2400 / len(self.columns))

    @property
    def row_height(self) -> float:
        """An overview has no numbers, and half the height."""
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
