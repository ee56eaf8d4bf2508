"""The shapes of the picture. Each kind has its own, so that nothing is told by colour alone.

prefill    a bar with its number of tokens        preemption   a cross
decode     a dot                                  waits        a dashed line (in the batch: a thin solid one)
hit        a hatched cap on the bar, and +tokens  finish       a vertical end cap, and the reason's first letter
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

from labkit.pictures.drawing import INK, MUTED, PAPER, element, group, label

BAND = "#f4f6f8"
PREFILL, DECODE, HIT, CROSS = "#2459a8", "#0b7261", "#8a5a00", "#b91c1c"
CHARACTER = 0.58
"""The width of a digit, in font sizes."""


@dataclass(frozen=True)
class Cell:
    """The place of one request in one step.

    Attributes:
        x: its left edge.
        y: its upper edge.
        width: of the column.
        height: of the row; the upper quarter is kept for a cache hit.
        numbers: whether there is room to write numbers.
    """

    x: float
    y: float
    width: float
    height: float
    numbers: bool

    @property
    def centre(self) -> float:
        """The middle of the column."""
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
        """The height at which dots, crosses and lines are drawn."""
        return (self.top + self.bottom) / 2


def prefill(parent: ET.Element, cell: Cell, num_tokens: int, title: str) -> None:
    """A bar, with the number of tokens in it: level if that fits, else upright, else only in the tooltip."""
    drawn = group(parent, "prefill", title)
    width, height = max(cell.width - 1, 2), cell.bottom - cell.top
    x = cell.centre - width / 2
    element(drawn, "rect", x=x, y=cell.top, width=width, height=height, rx=min(1.5, width / 4), fill=PREFILL)
    size = min(9.0, width - 1)
    length, text = len(str(num_tokens)) * CHARACTER * size, str(num_tokens)
    if cell.numbers and length <= width:
        label(drawn, text, cell.centre, cell.middle + 0.36 * size, size, PAPER, text_anchor="middle")
    elif cell.numbers and length <= height:
        turned = f"translate({cell.centre + 0.34 * size:.2f} {cell.middle:.2f}) rotate(-90)"
        label(drawn, text, 0, 0, size, PAPER, text_anchor="middle", transform=turned)


def decode(parent: ET.Element, cell: Cell, title: str) -> None:
    """A dot."""
    drawn = group(parent, "decode", title)
    element(drawn, "circle", cx=cell.centre, cy=cell.middle, r=min(3.6, 0.36 * cell.width), fill=DECODE)


def decodes(parent: ET.Element, first: Cell, last: Cell, title: str) -> None:
    """A run of decodes, one in every column from ``first`` to ``last``, as a dotted line: one element, however many they are."""
    drawn = group(parent, "decode", title)
    line = f"M{first.centre:.2f} {first.middle:.2f}H{last.centre + 0.01:.2f}"
    dot = max(2.4, min(7, 0.7 * first.width))
    dashes = f"0 {first.width:.4f}" if first.width > 3 else "none"
    element(drawn, "path", d=line, fill="none", stroke=DECODE, stroke_width=dot, stroke_linecap="round", stroke_dasharray=dashes)


def hit(parent: ET.Element, cell: Cell, cached_tokens: int, title: str) -> None:
    """A hatched cap over the bar, and how many tokens were found to the left of it."""
    drawn = group(parent, "hit", title)
    width, height = max(cell.width - 1, 6), 0.22 * cell.height
    x, y = cell.centre - width / 2, cell.top - height - 1
    element(drawn, "rect", x=x, y=y, width=width, height=height, fill="url(#hatch)", stroke=HIT, stroke_width=0.8)
    if cell.numbers:
        label(drawn, f"+{cached_tokens}", x - 2, y + height, 9, HIT, text_anchor="end", font_weight="bold")


def preemption(parent: ET.Element, cell: Cell, title: str) -> None:
    """A cross."""
    drawn = group(parent, "preemption", title)
    size = max(3.2, min(5.5, 0.42 * cell.width))
    x, y = cell.centre, cell.middle
    line = f"M{x - size:.2f} {y - size:.2f}l{2 * size:.2f} {2 * size:.2f}m0 {-2 * size:.2f}l{-2 * size:.2f} {2 * size:.2f}"
    element(drawn, "path", d=line, fill="none", stroke=PAPER, stroke_width=4, stroke_linecap="round")
    element(drawn, "path", d=line, fill="none", stroke=CROSS, stroke_width=2.4, stroke_linecap="round")


def finish(parent: ET.Element, cell: Cell, reason: str, title: str) -> None:
    """A vertical line at the end of the column, and a the reason's first letter after it."""
    drawn = group(parent, "finish", title)
    x = cell.x + cell.width + 1
    element(drawn, "path", d=f"M{x:.2f} {cell.top - 2:.2f}V{cell.bottom + 1:.2f}", stroke=INK, stroke_width=2.4)
    label(drawn, reason[0].upper(), x + 4, cell.middle + 3.5, 10, INK, font_weight="bold")


def stretch(parent: ET.Element, first: Cell, last: Cell, waits: bool, title: str) -> None:
    """A line between two columns: dashed while the request waits after a preemption, thin and solid while it is in the batch."""
    drawn = group(parent, "waits" if waits else "batch", title)
    line = f"M{first.centre:.2f} {first.middle:.2f}H{last.centre:.2f}"
    if waits:
        element(drawn, "path", d=line, fill="none", stroke=CROSS, stroke_width=1.6, stroke_dasharray="5 4")
    else:
        element(drawn, "path", d=line, fill="none", stroke=MUTED, stroke_width=1)


def hatch(root: ET.Element) -> None:
    """The pattern of a cache hit."""
    pattern = element(element(root, "defs"), "pattern", id="hatch", width=4, height=4, patternUnits="userSpaceOnUse")
    element(pattern, "rect", width=4, height=4, fill=PAPER)
    element(pattern, "path", d="M-1 1L1 -1M0 4L4 0M3 5L5 3", stroke=HIT, stroke_width=1.3)
