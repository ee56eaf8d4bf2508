"""A step trace made by hand, and readers of the picture that ./lab timeline draws of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from labkit.pictures.timeline import draw, read

HEADER = {
    "format": "mini_vllm step trace",
    "version": 1,
    "recorded_by": "mini_vllm 0.1.0, torch 2.13.0",
    "block_size": 16,
    "num_blocks": 8,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
}
SVG = "{http://www.w3.org/2000/svg}"
Lab = Callable[..., tuple[int, str]]


def chunk(request: str, kind: str, start: int, num_tokens: int = 1, **more: Any) -> dict[str, Any]:
    fixed = {"cached_tokens": 0, "blocks_taken": [], "samples": True}
    return {"request": request, "kind": kind, "start": start, "num_tokens": num_tokens} | fixed | more


def step(number: int, *chunks: dict[str, Any], **more: Any) -> dict[str, Any]:
    fixed = {"seconds": 0.0125, "preempted": [], "finished": [], "num_waiting": 0, "num_free_blocks": 5, "evicted": 0}
    return {"step": number, "chunks": list(chunks)} | fixed | more


STEPS = [
    step(
        0,
        chunk("a", "prefill", 0, 16, blocks_taken=[0]),
        chunk("b", "prefill", 32, 24, cached_tokens=32, blocks_taken=[1, 2, 3, 4], samples=False),
    ),
    step(1, chunk("a", "decode", 16, blocks_taken=[5]), chunk("b", "prefill", 56, 4), num_waiting=1, evicted=2),
    step(2, chunk("a", "decode", 17), preempted=[{"request": "b", "blocks_freed": [1, 2, 3, 4]}]),
    step(3, chunk("a", "decode", 18), finished=[{"request": "a", "reason": "stop", "blocks_freed": [0, 5]}]),
    step(4, chunk("b", "prefill", 48, 13, cached_tokens=48, blocks_taken=[1])),
    step(5),
    step(6, chunk("b", "decode", 61), finished=[{"request": "c", "reason": "abort", "blocks_freed": []}]),
]
"""Request a runs to its end; b is preempted, comes back, is left out of step 5 and goes on; c is aborted while it waits."""


def write(path: Path, steps: list[dict[str, Any]], **header: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in [HEADER | header, *steps]), encoding="utf-8")
    return path


def picture(path: Path, columns: range | None = None) -> ET.Element:
    return ET.fromstring(draw(read(path), path.name, columns))


def groups(drawn: ET.Element, kind: str) -> list[ET.Element]:
    return [found for row in drawn.iterfind(f"{SVG}g[@class='row']") for found in row.iterfind(f"{SVG}g[@class='{kind}']")]


def title(group: ET.Element) -> str:
    return group.findtext(f"{SVG}title", "")


def number(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


def centre(group: ET.Element) -> tuple[float, float]:
    """Where a cell's shape is, measured on the shape."""
    shape = group[1]
    if shape.tag == f"{SVG}circle":
        return number(shape, "cx"), number(shape, "cy")
    if shape.tag == f"{SVG}rect":
        return number(shape, "x") + number(shape, "width") / 2, number(shape, "y") + number(shape, "height") / 2
    x, y, dx, dy = map(float, re.findall(r"-?[\d.]+", shape.attrib["d"])[:4])  # the cross: M x y l dx dy
    return x + dx / 2, y + dy / 2


def places(drawn: ET.Element, kind: str) -> list[tuple[str, float]]:
    """The request and the step that each shape of a kind stands at, by the labels of the axes: nothing but the coordinates."""
    _, *labels = drawn.iterfind(f"{SVG}g[@class='axis']/{SVG}text")
    ticks = [(number(text, "x"), int(text.text or "")) for text in labels]
    (x0, step0), (x1, step1) = ticks[0], ticks[-1]
    bands = {text.text: number(text, "y") - 4 for name in groups(drawn, "name") for text in name.iterfind(f"{SVG}text")}
    found = []
    for x, y in map(centre, groups(drawn, kind)):
        request = min(bands, key=lambda name: abs(bands[name] - y))
        assert abs(bands[request] - y) < 16, "inside the row"
        found.append((str(request), round(step0 + (x - x0) * (step1 - step0) / (x1 - x0), 2)))
    return sorted(found)
