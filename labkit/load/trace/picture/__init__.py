"""Draws a traced load: a bar for each parameter on each rank, cut into the slices that were copied into it.

    model.layers.0.self_attn.qkv_proj.weight (3072, 4096)
    rank 1   [     q_proj[2048:4096]     | k_proj[512:1024] | v_proj[512:1024] ]

A slice's label is the part of the checkpoint tensor that was read; its place in the bar is the part of the parameter that was
written, to scale.

layout.py computes bars and slices from a trace, captions.py their text; svg_picture.py draws them. For the HTML page,
``page_data`` computes all numbers and texts, and page.js only draws them, in page.html, with page.css. All text reaches the page
as JSON and is set as text, never as markup, because the names of tensors come from unknown files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from labkit.load.trace.boxes import describe_box
from labkit.load.trace.coverage import Finding
from labkit.load.trace.picture import captions
from labkit.load.trace.picture.layout import Bar, Figure, Slice, sections
from labkit.load.trace.picture.svg_picture import draw_svg
from labkit.load.trace.records import Trace
from labkit.system.foreign_text import printable

__all__ = ["draw_html", "draw_svg"]

HERE = Path(__file__).resolve().parent


def draw_html(trace: Trace, findings: Sequence[Finding]) -> str:
    """Draws a trace, and the faults found in it, as the text of an HTML file that loads no other file."""
    # Inside a script element nothing in the JSON may end the element or open a comment.
    data = json.dumps(page_data(trace, findings), separators=(",", ":"))
    page = (HERE / "page.html").read_text(encoding="utf-8")
    return page.format(
        title=escape(printable(f"Weight load of {trace.model}")),
        caption=escape(printable(captions.trace_caption(trace))),
        legend=escape(captions.LEGEND),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    )


def page_data(trace: Trace, findings: Sequence[Finding]) -> dict[str, Any]:
    """The data that page.js draws, as JSON values: every record once, and the place of each slice in rows or columns.

    A slice refers to records, findings and texts by index. Many slices have the same texts, so each text is stored once.
    """
    texts: dict[str, int] = {}
    records = {id(record): number for number, record in enumerate(trace.records)}
    finding_numbers = {finding: number for number, finding in enumerate(findings)}

    def number_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    def slice_data(figure: Figure, bar: Bar, piece: Slice, tone: int) -> dict[str, Any]:
        start, stop = figure.along(piece)
        data: dict[str, Any] = {"kind": piece.kind, "tone": tone, "start": start, "stop": stop}
        if len(figure.axes) == 2:
            data["down"] = figure.down(piece)
        if piece.lane:
            data["lane"] = piece.lane
        if piece.faults:
            data["faults"] = [finding_numbers[finding] for finding in piece.faults]
        if record := piece.record:
            data["record"] = records[id(record)]
            data["source"] = number_of(describe_box(record.source, record.shape))
        data["destination"] = number_of(describe_box(piece.part, figure.shape))
        data["labels"] = list(map(number_of, captions.slice_labels(figure, piece)))
        data["sentences"] = list(map(number_of, captions.slice_sentences(figure, bar, piece)))
        return data

    def figure_data(figure: Figure) -> dict[str, Any]:
        tones, caption = figure.tones, captions.figure_caption(figure)
        bars = []
        for bar in figure.bars:
            slices = [slice_data(figure, bar, piece, tones.get(piece.label, 0)) for piece in bar.slices]
            bars.append({"rank": bar.tp_rank, "name": bar.name, "lanes": bar.lanes, "slices": slices})
        return {"name": figure.name, "shape": str(figure.shape), "caption": caption, "length": figure.length, "bars": bars}

    shown = [{"title": each.title, "figures": list(map(figure_data, each.figures))} for each in sections(trace, findings)]
    drawn = [record.as_dict() for record in trace.records]
    return {"records": drawn, "texts": list(texts), "sections": shown, "findings": list(map(str, findings))}
