"""SVG elements and colours of all pictures."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from rich.cells import cell_len, set_cell_size

from labkit.system.foreign_text import printable

INK, MUTED, FAINT, PAPER = "#1a202c", "#5a6472", "#d8dee6", "#ffffff"

TONES = ("#dbe8f8", "#f8e5c4", "#cfeadb", "#e6dcf3")
MARKS = ("", "M0.5 0V8", "M4 3V5M3 4H5", "M0 0.5H8")
"""An SVG path for each of TONES, so that the fill patterns ``url(#tone0)`` and so on differ in grey too."""

Pattern = tuple[str, int, str, str, str, float]  # the arguments of ``pattern`` after the first

TONE_PATTERNS = tuple((f"tone{i}", 8, fill, mark, MUTED, 0.6) for i, (fill, mark) in enumerate(zip(TONES, MARKS, strict=True)))

WIDTH, MARGIN = 800, 16
"""The largest width that a README shows unscaled, and the margin, in pixels."""

CHARACTER = 6.2  # the largest width of a character of 11 pixels


def element(parent: ET.Element, tag: str, text: str | None = None, **attributes: str | float) -> ET.Element:
    """Adds and returns a child: ``class_`` is written class, ``stroke_width`` stroke-width, numbers with two decimals at most."""
    named = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        for name, value in attributes.items()
    }
    child = ET.SubElement(parent, tag, named)
    child.text = text
    return child


def group(parent: ET.Element, class_: str, title: str) -> ET.Element:
    """Adds and returns a group with ``title`` as its tooltip."""
    child = element(parent, "g", class_=class_)
    element(child, "title", title)
    return child


def label(parent: ET.Element, text: str, x: float, y: float, size: float = 11, fill: str = MUTED, **more: str | float) -> None:
    """Adds a text whose baseline is at ``y``."""
    element(parent, "text", text, x=x, y=y, font_size=size, fill=fill, **more)


def svg_root(title: str, about: str, name: str, patterns: Iterable[Pattern] = TONE_PATTERNS) -> ET.Element:
    """The root of a picture: title and description for screen readers, fill patterns, and a white background.

    Args:
        name: a word for this picture, the start of its ids, so that two pictures on one page have different ids.
    """
    root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    root.attrib["aria-labelledby"] = f"{name}-title {name}-desc"
    element(root, "title", title, id=f"{name}-title")
    element(root, "desc", about, id=f"{name}-desc")
    defs = element(root, "defs")
    for each in patterns:
        pattern(defs, *each)
    element(root, "rect", width="100%", height="100%", fill=PAPER)
    return root


def svg_text(root: ET.Element, width: float, height: float) -> str:
    """The text of a self-contained SVG file."""
    root.attrib |= {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    root.attrib["font-family"] = "system-ui, sans-serif"
    ET.indent(root, "")
    for text in root.iter("text"):
        if len(text):  # a line break between two parts of a text would be shown as a space
            text.text = (text.text or "").strip()
            for part in text:
                part.tail = None
    return ET.tostring(root, encoding="unicode") + "\n"


def pattern(defs: ET.Element, name: str, size: int, fill: str, mark: str, stroke: str, width: float) -> None:
    """Adds the fill pattern ``url(#name)``: a repeated square of ``size`` pixels with a path on it."""
    made = element(defs, "pattern", id=name, width=size, height=size, patternUnits="userSpaceOnUse")
    element(made, "rect", width=size, height=size, fill=fill)
    element(made, "path", d=mark or "M0 0", stroke=stroke, stroke_width=width)


def plate(parent: ET.Element, text: str, centre: float, middle: float, fill: str = INK, **more: str | float) -> None:
    """Adds a text, centred on a white strip so that it is readable on a pattern."""
    paper = CHARACTER * len(text) + 6
    element(parent, "rect", x=centre - paper / 2, y=middle - 7, width=paper, height=14, rx=2, fill=PAPER)
    label(parent, text, centre, middle + 4, 11, fill, text_anchor="middle", **more)


def short(text: str, cells: int) -> str:
    """The printable text, cut with an ellipsis to ``cells`` terminal cells (a Chinese character is two cells wide)."""
    text = printable(text)
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1).rstrip() + "…"
