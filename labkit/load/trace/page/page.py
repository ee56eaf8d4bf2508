"""The page: one HTML file that needs nothing else, with a bar for every parameter and a panel that explains each slice.

What is worth testing is worked out here; page.js only lays it out. All text reaches the page as JSON and is set as text, never as
markup: the names come from files of strangers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from labkit.load.trace.coverage import Finding
from labkit.load.trace.page import words
from labkit.load.trace.page.bars import Bar, Figure, Part, Slice, parts, tones
from labkit.load.trace.records import Trace, in_words
from labkit.system.foreign_text import printable

HERE = Path(__file__).resolve().parent

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{about}.</p>
<div id="findings"></div>
<p class="choose"><label for="part">Show</label> <select id="part"></select>
<span class="note">a slice's label is what was read; its place in the bar is where that landed, in true proportion</span></p>
<noscript><p>The bars are drawn by the script in this file; allow it to run.</p></noscript>
</header>
<main id="bars" aria-label="Parameters"></main>
<aside id="panel" aria-label="The slice" aria-live="polite" tabindex="0"></aside>
<script type="application/json" id="data">{data}</script>
<script>
{js}</script>
</body>
</html>
"""


def html(trace: Trace, findings: Sequence[Finding]) -> str:
    """The page of a trace, as the text of an HTML file that loads nothing.

    Args:
        findings: what is wrong with the load, as `labkit.load.trace.coverage.verify` has it.
    """
    return PAGE.format(
        title=escape(printable(f"Weight load of {trace.model}")),
        about=escape(printable(words.of_trace(trace))),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        data=_inline(data(trace, findings)),
    )


def data(trace: Trace, findings: Sequence[Finding]) -> dict[str, Any]:
    """All that the page shows: every record once, and where each is drawn, in rows or columns.

    Sentences are numbered in ``texts``, because the layers of a model say the same.
    """
    drawn = _Data(trace, findings)
    shown = [drawn.part(part) for part in parts(trace, findings)]
    return {
        "records": [record.as_dict() for record in trace.records],
        "texts": list(drawn.texts),
        "parts": shown,
        "findings": [str(finding) for finding in findings],
    }


class _Data:
    """Turns parts into JSON, and numbers the records and the sentences on the way."""

    def __init__(self, trace: Trace, findings: Sequence[Finding]) -> None:
        self.texts: dict[str, int] = {}
        self._records = {id(record): number for number, record in enumerate(trace.records)}
        self._findings = {finding: number for number, finding in enumerate(findings)}

    def part(self, part: Part) -> Mapping[str, Any]:
        return {"title": part.title, "figures": [self._figure(figure) for figure in part.figures]}

    def _figure(self, figure: Figure) -> Mapping[str, Any]:
        tone = tones(figure)
        return {
            "name": figure.name,
            "shape": words.of_shape(figure.shape),
            "note": words.of_figure(figure),
            "length": figure.length,
            "bars": [
                {
                    "rank": bar.tp_rank,
                    "lanes": bar.lanes,
                    "slices": [self._slice(figure, bar, piece, tone.get(piece.label, 0)) for piece in bar.slices],
                }
                for bar in figure.bars
            ],
        }

    def _slice(self, figure: Figure, bar: Bar, piece: Slice, tone: int) -> Mapping[str, Any]:
        start, stop = figure.along(piece)
        drawn: dict[str, Any] = {"kind": piece.kind, "tone": tone, "start": start, "stop": stop}
        if len(figure.axes) == 2:
            drawn["down"] = figure.down(piece)
        if piece.lane:
            drawn["lane"] = piece.lane
        if piece.faults:
            drawn["faults"] = [self._findings[finding] for finding in piece.faults]
        record = piece.record
        if record:
            drawn["record"] = self._records[id(record)]
            drawn["source"] = self._text(in_words(record.source, record.shape))
        drawn["destination"] = self._text(in_words(piece.part, figure.shape))
        drawn["labels"] = [self._text(label) for label in words.labels(figure, piece)]
        drawn["words"] = [self._text(sentence) for sentence in words.of_slice(figure, bar, piece)]
        return drawn

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def _inline(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
