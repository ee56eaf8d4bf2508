"""Coordinates of the timeline picture, in pixels.

Up to MAX_DETAILED_STEPS columns and MAX_DETAILED_ROWS rows, each event is drawn separately, with numbers and a tooltip. A longer
run is drawn as an overview of fixed width, in which consecutive decodes are one dotted line.
"""

from __future__ import annotations

MAX_DETAILED_STEPS, MAX_DETAILED_ROWS = 300, 100
GUTTER, MARGIN, HEAD = 160, 44, 132
"""The width left of the columns, the width right of the columns, and the height above the rows."""
STRIP, GAP = 46, 22
"""The height of a chart under the columns, and the space above it."""


class Cell:
    """The place of one request in one step.

    Attributes:
        numbers: whether there is room for numbers.
        top: the upper edge of a bar; the space of the cell above the bar is for the cap of a cache hit.
        middle: the y of dots, crosses and lines.
    """

    def __init__(self, x: float, y: float, width: float, height: float, numbers: bool) -> None:
        self.x, self.y, self.width, self.height, self.numbers = x, y, width, height, numbers
        self.centre = x + width / 2
        self.top, self.bottom = y + 0.3 * height, y + 0.94 * height
        self.middle = (self.top + self.bottom) / 2


class Layout:
    """The sizes of a picture, and the places of its cells.

    Args:
        columns: the indexes of the drawn steps.
        num_rows: the number of drawn requests.

    Attributes:
        detailed: whether every event is drawn separately.
        right: the right edge of the last column.
        foot: the lower edge of the last row.
        charts_foot: the lower edge of the last chart.
    """

    def __init__(self, columns: range, num_rows: int) -> None:
        self.columns = columns
        self.detailed = len(columns) <= MAX_DETAILED_STEPS and num_rows <= MAX_DETAILED_ROWS
        # In detail, a column is wide enough for a vertical number. An overview has no numbers.
        total, least, self.row_height = (1600, 10.0, 32.0) if self.detailed else (2400, 0.0, 16.0)
        self.column_width = min(36.0, max(total / len(columns), least))
        self.right = GUTTER + len(columns) * self.column_width
        self.foot = HEAD + num_rows * self.row_height
        self.charts_foot = self.foot + 2 * (GAP + STRIP)
        self.width, self.height = max(1120, self.right + MARGIN), self.charts_foot + 16  # title and legend need 1120

    def cell(self, column: int, row: int = 0) -> Cell:
        """The cell of the drawn request number ``row``, from 0, in the step with index ``column``."""
        x = GUTTER + (column - self.columns.start) * self.column_width
        return Cell(x, HEAD + row * self.row_height, self.column_width, self.row_height, self.detailed)
