"""The still picture, for a README: the same bars as the page, 800 pixels wide, each slice with its label and a tooltip."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from labkit.load.trace.coverage import Finding
from labkit.load.trace.page import words
from labkit.load.trace.page.bars import Bar, Figure, Part, Slice, parts, tones
from labkit.load.trace.records import Trace
from labkit.pictures.drawing import (
    CHARACTER,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    TONES,
    WIDTH,
    element,
    group,
    label,
    pattern,
    plate,
    short,
    svg_root,
    svg_text,
)
from labkit.system.foreign_text import printable

GUTTER, LANE = 64, 22
ROOM = WIDTH - 2 * MARGIN - GUTTER
"""How many pixels a bar is long."""
FAULT = "#b91c1c"


def svg(trace: Trace, findings: Sequence[Finding]) -> str:
    """The picture of a trace, as the text of an SVG file that needs nothing else.

    Args:
        findings: of this trace, or of a larger one that it is part of; those about other tensors are not drawn.
    """
    shown = parts(trace, findings)
    title, about = f"Weight load of {short(trace.model, 70)}", printable(words.of_trace(trace))
    told = f"{about}. A bar for each parameter and rank, cut into what was copied into it; {_told(shown)}"
    root = svg_root(title, told, "trace")
    defs = element(root, "defs")
    pattern(defs, "padding", 10, PAPER, "M5 4V6M4 5H6", MUTED, 1)
    pattern(defs, "fault", 8, "none", "M-1 1L1 -1M0 8L8 0M7 9L9 7", FAULT, 1.6)
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    label(root, short(about, 125), MARGIN, 46)
    label(root, "A slice's label is what was read; its place in the bar is where that landed, in true proportion.", MARGIN, 61)
    y = 72.0
    for part in shown:
        y = _part(root, part, y)
    return svg_text(root, WIDTH, y + MARGIN - 8)


def _told(shown: Sequence[Part]) -> str:
    """The faults in words, for those who do not see the picture."""
    slices = [piece for part in shown for figure in part.figures for bar in figure.bars for piece in bar.slices]
    faults = dict.fromkeys(str(fault) for piece in slices for fault in piece.faults)
    return printable("; ".join(faults)) or "nothing wrong was found."


def _part(root: ET.Element, part: Part, y: float) -> float:
    """Draws a part from ``y`` down; returns where it ends."""
    drawn = element(root, "g", class_="part")
    label(drawn, short(part.title, 90), MARGIN, y + 16, 12, INK, font_weight="bold")
    y += 24
    for figure in part.figures:
        label(drawn, f"{short(figure.name, 80)} {words.of_shape(figure.shape)}", MARGIN, y + 14, 12, INK)
        label(drawn, short(words.of_figure(figure), 125), MARGIN, y + 28)
        y += 34
        for bar in figure.bars:
            _bar(drawn, figure, bar, y)
            y += LANE * bar.lanes + 4
        y += 6
    return y


def _bar(drawn: ET.Element, figure: Figure, bar: Bar, y: float) -> None:
    left, pixels = MARGIN + GUTTER, ROOM / figure.length
    name = "all ranks" if bar.tp_rank is None else f"rank {bar.tp_rank}"
    label(drawn, name, MARGIN, y + 15)
    height = LANE * bar.lanes
    element(drawn, "rect", x=left, y=y, width=ROOM, height=height, fill=PAPER, stroke=MUTED, stroke_width=1)
    tone = tones(figure)
    for piece in bar.slices:
        (start, stop), (top, bottom) = figure.along(piece), figure.down(piece)
        rectangle = left + start * pixels, y + LANE * (piece.lane + top), (stop - start) * pixels, LANE * (bottom - top)
        said = " ".join((words.of_place(figure, bar, piece) + ".", *words.of_slice(figure, bar, piece)))
        own = group(drawn, piece.kind.replace(" ", "-"), printable(said))
        _slice(own, piece, tone.get(piece.label, 0), rectangle, words.labels(figure, piece))


def _slice(own: ET.Element, piece: Slice, tone: int, rectangle: tuple[float, float, float, float], labels: Sequence[str]) -> None:
    x, y, width, height = rectangle
    fill = {"copy": f"url(#tone{tone % len(TONES)})", "padding": "url(#padding)"}.get(piece.kind, PAPER)
    element(own, "rect", x=x, y=y, width=width, height=height, fill=fill, stroke=INK, stroke_width=0.8)
    if piece.faults:
        element(own, "rect", x=x, y=y, width=width, height=height, fill="url(#fault)", stroke=FAULT, stroke_width=1.6)
    text = printable(next((text for text in labels if CHARACTER * len(text) + 8 <= width), ""))
    if text and height >= 12:
        weight = "bold" if piece.faults else "normal"
        plate(own, text, x + width / 2, y + height / 2, FAULT if piece.faults else INK, font_weight=weight)
