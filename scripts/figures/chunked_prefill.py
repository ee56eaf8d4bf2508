"""Figure of a chunked prefill: the inputs of each call of the model, step by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree as ET

from figures.engine_run import BUDGET, PROMPTS, Call, Row
from labkit.pictures.drawing import FAINT, INK, MARGIN, MUTED, PAPER, WIDTH, element, label, plate, svg_root, svg_text

CELL, LINE, LEFT = 42, 26, 72
RIGHT = LEFT + BUDGET * CELL + 18
"""x of the text next to a step, in pixels."""


def draw_chunked_prefill(calls: Sequence[Call]) -> str:
    """Draws a line for each step, a cell for each row of its batch, and a text about each request."""
    title = f"A chunked prefill, step by step: budget {BUDGET} tokens"
    told = [(number, call, _told(calls, number)) for number, call in enumerate(calls, 1)]
    about = " ".join(f"Step {number}: {'; '.join(words)}." for number, _, words in told)
    root = svg_root(title, about, "chunked")
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    lengths = ", ".join(f"{name} {len(prompt)}" for name, prompt in PROMPTS.items())
    label(
        root,
        f"A real run of mini_vllm. Prompts: {lengths} tokens. A line is one call of forward; a cell is one token of it:",
        MARGIN,
        47,
    )
    label(
        root, "its request and its position. A triangle: from this row's logits the request's next token is sampled.", MARGIN, 62
    )
    y = 78.0
    for number, call, words in told:
        y = _step(root, number, call, words, y)
    return svg_text(root, WIDTH, y + 4)


def _step(root: ET.Element, number: int, call: Call, words: Sequence[str], y: float) -> float:
    label(root, f"step {number}", MARGIN, y + 17, 12, INK, font_weight="bold")
    for place in range(len(call.rows), BUDGET):
        _box(root, place, 1, y, PAPER, stroke=FAINT, stroke_dasharray="3 3")
    for place, row in enumerate(call.rows):
        left = LEFT + place * CELL
        tone = f"url(#tone{list(PROMPTS).index(row.request)})"
        _box(root, place, 1, y, tone, stroke=MUTED, stroke_width=0.8)
        plate(root, f"{row.request} {row.position}", left + CELL / 2, y + LINE / 2)
        if row.sampled:
            middle = left + CELL / 2
            element(root, "path", d=f"M{middle - 5} {y + LINE + 9}H{middle + 5}L{middle} {y + LINE + 2}Z", fill=INK)
    place = 0
    for _, rows in groupby(call.rows, lambda row: row.request):
        count = len(list(rows))
        _box(root, place, count, y, "none", stroke=INK, stroke_width=1.6)
        place += count
    for line, said in enumerate(words):
        label(root, said, RIGHT, y + 11 + 14 * line, 11, INK)
    return y + max(LINE + 20, 14 * len(words) + 10)


def _box(root: ET.Element, place: int, count: int, y: float, fill: str, **stroke: str | float) -> None:
    element(root, "rect", None, x=LEFT + place * CELL, y=y, width=count * CELL, height=LINE, fill=fill, **stroke)


def _told(calls: Sequence[Call], number: int) -> list[str]:
    """Returns a text for each request of step ``number``."""
    computed: dict[str, int] = defaultdict(int)
    for call in calls[: number - 1]:
        for row in call.rows:
            computed[row.request] = row.position + 1
    call = calls[number - 1]
    return [_of(name, list(rows), computed[name], call) for name, rows in groupby(call.rows, lambda row: row.request)]


def _of(name: str, rows: Sequence[Row], before: int, call: Call) -> str:
    prompt, stop = len(PROMPTS[name]), rows[-1].position + 1
    end = ", finished" if name in call.finished else ""
    if before >= prompt:
        return f"{name}: decode, 1 token{end}"
    hit = f", {call.cached[name]} cached" if name in call.cached else ""
    part = f"prompt {_span(rows[0].position, stop - 1)} of {prompt}{hit}"
    return f"{name}: {part}{': first token' if rows[-1].sampled else ': cut, no token yet'}{end}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
