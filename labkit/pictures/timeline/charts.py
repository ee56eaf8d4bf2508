"""What runs along the columns: the numbers of the steps above them, and under them what each step used of what there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from labkit.pictures.drawing import FAINT, MUTED, element, group, label
from labkit.pictures.timeline import words
from labkit.pictures.timeline.glyphs import DECODE, PREFILL
from labkit.pictures.timeline.layout import GAP, GUTTER, HEAD, STRIP, Layout
from labkit.pictures.timeline.read import StepTrace


def axis(root: ET.Element, trace: StepTrace, layout: Layout) -> None:
    """Step numbers, as many as there is room for, and a faint line down from each."""
    drawn = element(root, "g", class_="axis")
    label(drawn, "step", GUTTER - 24, HEAD - 8, text_anchor="end")
    apart = next(apart for apart in _round_numbers() if apart * layout.column_width >= 44)
    for column in layout.columns:
        cell = layout.cell(column)
        if trace.steps[column].step % apart == 0:
            line = f"M{cell.centre:.2f} {HEAD - 4}V{layout.charts_foot:.2f}"
            element(drawn, "path", d=line, stroke=FAINT, stroke_width=1)
            label(drawn, str(trace.steps[column].step), cell.centre, HEAD - 8, text_anchor="middle")


def _round_numbers() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def charts(root: ET.Element, trace: StepTrace, layout: Layout) -> None:
    """Tokens of each step, decodes below prefills, and free blocks; in detail each step has a tooltip with its numbers."""
    steps = [trace.steps[column] for column in layout.columns]
    decodes = [step.num_tokens("decode") for step in steps]
    tokens = [step.num_tokens("prefill") + step.num_tokens("decode") for step in steps]
    free = [step.num_free_blocks for step in steps]
    first, second = (element(root, "g", class_=name) for name in ("tokens", "free-blocks"))
    foot = layout.foot + GAP + STRIP
    _frame(first, layout, foot, "tokens in a step", f"most: {max(tokens)} of {trace.max_num_batched_tokens}", max(tokens))
    _area(first, layout, foot, tokens, max(tokens), PREFILL)
    _area(first, layout, foot, decodes, max(tokens), DECODE)
    foot += GAP + STRIP
    _frame(second, layout, foot, "free blocks", f"least: {min(free)} of {trace.num_blocks}", trace.num_blocks)
    _area(second, layout, foot, free, trace.num_blocks, MUTED)
    for column in layout.columns if layout.detailed else ():
        over = group(root, "step", words.of_step(trace.steps[column], trace))
        x, height = layout.cell(column).x, foot - layout.foot
        element(over, "rect", x=x, y=layout.foot, width=layout.column_width, height=height, fill="none", pointer_events="all")


def _frame(drawn: ET.Element, layout: Layout, foot: float, what: str, extreme: str, top: int) -> None:
    label(drawn, what, GUTTER - 10, foot - 22, text_anchor="end")
    label(drawn, extreme, GUTTER - 10, foot - 8, text_anchor="end")
    label(drawn, str(top), layout.right + 5, foot - STRIP + 8, 10)
    label(drawn, "0", layout.right + 5, foot, 10)
    element(drawn, "path", d=f"M{GUTTER} {foot:.2f}H{layout.right:.2f}", stroke=MUTED, stroke_width=1)
    element(drawn, "path", d=f"M{GUTTER} {foot - STRIP:.2f}H{layout.right:.2f}", stroke=FAINT, stroke_width=1)


def _area(drawn: ET.Element, layout: Layout, foot: float, values: Sequence[int], top: int, fill: str) -> None:
    levels = (
        f"V{foot - STRIP * value / max(top, 1):.2f}H{layout.cell(column).x + layout.column_width:.2f}"
        for column, value in zip(layout.columns, values, strict=True)
    )
    element(drawn, "path", d=f"M{GUTTER} {foot:.2f}{''.join(levels)}V{foot:.2f}Z", fill=fill, fill_opacity=0.75)
