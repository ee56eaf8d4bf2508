"""Draws the SVG picture for a README: the bars of the HTML page, 800 pixels wide, with tooltips, and labels where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from labkit.load.trace.coverage import Finding
from labkit.load.trace.picture import captions
from labkit.load.trace.picture.layout import Bar, Figure, sections
from labkit.load.trace.records import Trace
from labkit.pictures import drawing
from labkit.pictures.drawing import INK, MARGIN, MUTED, PAPER, element, label, short
from labkit.system.foreign_text import printable

GUTTER, LANE = 64, 22  # pixels: the width of the ranks' names, the height of a lane
BAR = drawing.WIDTH - 2 * MARGIN - GUTTER  # pixels: the length of a bar
FAULT = "#b91c1c"


def draw_svg(trace: Trace, findings: Sequence[Finding]) -> str:
    """Draws a trace as the text of an SVG file that loads no other file; leaves out findings about tensors not in the trace."""
    shown = sections(trace, findings)
    title, caption = short(f"Weight load of {trace.model}", 85), printable(captions.trace_caption(trace))
    bars = [bar for section in shown for figure in section.figures for bar in figure.bars]
    faults = dict.fromkeys(str(fault) for bar in bars for piece in bar.slices for fault in piece.faults)
    about = f"{caption}. A bar for each parameter and rank, cut into what was copied into it; "
    about += printable("; ".join(faults)) or "no fault was found."
    root = drawing.svg_root(title, about, "trace")
    defs = element(root, "defs")
    drawing.pattern(defs, "padding", 10, PAPER, "M5 4V6M4 5H6", MUTED, 1)
    drawing.pattern(defs, "fault", 8, "none", "M-1 1L1 -1M0 8L8 0M7 9L9 7", FAULT, 1.6)
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    label(root, short(caption, 125), MARGIN, 46)
    label(root, f"{captions.LEGEND.capitalize()}.", MARGIN, 61)
    y = 72.0
    for section in shown:
        parent = element(root, "g", class_="part")
        label(parent, short(section.title, 90), MARGIN, y + 16, 12, INK, font_weight="bold")
        y += 24
        for figure in section.figures:
            label(parent, f"{short(figure.name, 80)} {figure.shape}", MARGIN, y + 14, 12, INK)
            label(parent, short(captions.figure_caption(figure), 125), MARGIN, y + 28)
            y += 34
            for bar in figure.bars:
                _draw_bar(parent, figure, bar, y)
                y += LANE * bar.lanes + 4
            y += 6
    return drawing.svg_text(root, drawing.WIDTH, y + MARGIN - 8)


def _draw_bar(parent: ET.Element, figure: Figure, bar: Bar, y: float) -> None:
    left, pixels, tones = MARGIN + GUTTER, BAR / figure.length, figure.tones
    label(parent, bar.name, MARGIN, y + 15)
    element(parent, "rect", x=left, y=y, width=BAR, height=LANE * bar.lanes, fill=PAPER, stroke=MUTED, stroke_width=1)
    for piece in bar.slices:
        (start, stop), (top, bottom) = figure.along(piece), figure.down(piece)
        place = {"x": left + start * pixels, "y": y + LANE * (piece.lane + top)}
        place |= {"width": (stop - start) * pixels, "height": LANE * (bottom - top)}
        tooltip = " ".join((captions.slice_place(figure, bar, piece), *captions.slice_sentences(figure, bar, piece)))
        own = drawing.group(parent, piece.kind.replace(" ", "-"), printable(tooltip))
        tone = f"url(#tone{tones.get(piece.label, 0) % len(drawing.TONES)})"
        fill = {"copy": tone, "padding": "url(#padding)"}.get(piece.kind, PAPER)
        element(own, "rect", None, **place, fill=fill, stroke=INK, stroke_width=0.8)
        if piece.faults:
            element(own, "rect", None, **place, fill="url(#fault)", stroke=FAULT, stroke_width=1.6)
        labels = captions.slice_labels(figure, piece)
        text = printable(next((text for text in labels if drawing.CHARACTER * len(text) + 8 <= place["width"]), ""))
        if text and place["height"] >= 12:
            centre, middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
            weight, colour = ("bold", FAULT) if piece.faults else ("normal", INK)
            drawing.plate(own, text, centre, middle, colour, font_weight=weight)
