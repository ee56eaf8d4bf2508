"""What every picture is drawn with: SVG elements, a few greys, and text made safe to show."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from rich.cells import cell_len, set_cell_size

INK, MUTED, FAINT, PAPER = "#1a202c", "#5a6472", "#d8dee6", "#ffffff"


def element(parent: ET.Element, tag: str, text: str | None = None, **attributes: str | float) -> ET.Element:
    """A child element: ``class_`` is written class, ``stroke_width`` stroke-width, and numbers with two decimals at most."""
    named = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        for name, value in attributes.items()
    }
    child = ET.SubElement(parent, tag, named)
    child.text = text
    return child


def group(parent: ET.Element, class_: str, title: str) -> ET.Element:
    """A group that shows ``title`` while the pointer is on it."""
    child = element(parent, "g", class_=class_)
    element(child, "title", title)
    return child


def label(parent: ET.Element, text: str, x: float, y: float, size: float = 11, fill: str = MUTED, **more: str | float) -> None:
    """A text whose baseline is at ``y``."""
    element(parent, "text", text, x=x, y=y, font_size=size, fill=fill, **more)


def printable(text: str) -> str:
    """The text without what a terminal or an XML file would act on or choke on: each such character becomes U+FFFD."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def short(text: str, cells: int) -> str:
    """The printable text, cut with an ellipsis to so many terminal cells (a Chinese character takes two)."""
    text = printable(text)
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1).rstrip() + "…"
