"""Sanitizer of text from files, servers and other programs, for terminal, SVG, HTML and XML output."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    r"""Returns the text with every character that is not printable written as its Python escape: ESC becomes ``\x1b``.

    Control characters, lone surrogates and right-to-left overrides can move a cursor or make an XML file invalid. Markup is not
    escaped here: ``xml.etree`` and ``html.escape`` do that.

    Args:
        keep: characters to leave as they are, such as a line break.
    """
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)
