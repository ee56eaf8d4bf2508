"""The picture of a step trace: a row per request, a column per step, and charts of tokens and free blocks below.

Each kind of event has its own shape, so that nothing depends on colour alone:

prefill    a bar with its number of tokens        preemption   a cross
decode     a dot                                  waits        a dashed line (in the batch: a thin solid one)
hit        a hatched cap on the bar, and +tokens  finish       a vertical end cap, and the reason's first letter
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, groupby
from xml.etree import ElementTree as ET

from labkit.pictures.drawing import FAINT, INK, MUTED, PAPER, element, group, label, short, svg_root, svg_text
from labkit.pictures.timeline import summary
from labkit.pictures.timeline.layout import GAP, GUTTER, HEAD, STRIP, Cell, Layout
from labkit.pictures.timeline.read import REASONS, Chunk, Finish, Preemption, StepTrace
from labkit.pictures.timeline.summary import Event, Row, request_rows

BAND = "#f4f6f8"
PREFILL, DECODE, HIT, CROSS = "#2459a8", "#0b7261", "#8a5a00", "#b91c1c"
HATCH = ("hatch", 4, PAPER, "M-1 1L1 -1M0 4L4 0M3 5L5 3", HIT, 1.3)
Areas = Sequence[tuple[Sequence[int], str]]  # the values of a chart, one per step, and their colour
DIGIT = 0.58  # the width of a digit, in font sizes


def draw(trace: StepTrace, name: str, columns: range | None = None) -> str:
    """The picture of a trace, as the text of a self-contained SVG file.

    Args:
        name: the name of the trace in the title, such as its file name.
        columns: the indexes of the steps to draw, at least one; all by default.
    """
    columns = columns or range(len(trace.steps))
    rows = request_rows(trace)
    shown = [row for row in rows if row.first < columns.stop and row.last >= columns.start]
    layout = Layout(columns, len(shown))
    title = f"Step trace {short(name, 40)}: {summary.of_requests(trace, rows)}"
    by = f"Recorded by {short(trace.recorded_by, 60)}; {summary.of_run(trace)}"
    selection = summary.of_selection(trace, layout.columns, layout.detailed)
    root = svg_root(title, f"A row per request, a column per step. {by}. {selection}".strip(), "timeline", [HATCH])
    label(root, title, 16, 28, 16, INK, font_weight="bold")
    label(root, by, 16, 47)
    label(root, selection, 16, 62)
    _legend(element(root, "g", class_="legend"))
    _axis(root, trace, layout)
    for place, row in enumerate(shown):
        _row(root, trace, row, place, layout)
    _charts(root, trace, layout)
    return svg_text(root, layout.width, layout.height)


def _legend(parent: ET.Element) -> None:
    reasons = ", ".join(f"{reason[0].upper()} {reason}" for reason in REASONS)
    entries: list[tuple[str, int, int, Callable[[Cell], None]]] = [  # text; pixels left and right of the column for its shape
        ("prefill chunk, its tokens", 0, 0, lambda cell: _prefill(parent, cell, 16, "prefill chunk")),
        ("decode", 0, -4, lambda cell: _decode(parent, cell, "decode")),
        (
            "prefix-cache hit, its tokens",
            24,
            0,
            lambda cell: _hit(parent, Cell(cell.x, 84, 22, 32, True), 48, "prefix-cache hit"),
        ),
        ("preempted", 0, -2, lambda cell: _preemption(parent, cell, "preempted")),
        ("waits after it", -2, 14, lambda cell: _span(parent, cell, cell.centre + 22, True, "waits after a preemption")),
        ("not scheduled", -4, 14, lambda cell: _span(parent, cell, cell.centre + 22, False, "in the batch, not scheduled")),
        (f"finished: {reasons}", -14, 12, lambda cell: _finish(parent, cell, REASONS[0], "finished")),
    ]
    x = 16.0
    for text, left, right, shape in entries:
        cell = Cell(x + left, 70, 22, 32, numbers=True)
        shape(cell)
        label(parent, text, cell.x + 28 + right, 94)
        x = cell.x + 28 + right + 5.5 * len(text) + 14


def _axis(root: ET.Element, trace: StepTrace, layout: Layout) -> None:
    """Draws step numbers, as many as there is room for, and a faint line down from each number."""
    drawn = element(root, "g", class_="axis")
    label(drawn, "step", GUTTER - 24, HEAD - 8, text_anchor="end")
    round_numbers = (factor * 10**power for power in count() for factor in (1, 2, 5))
    interval = next(number for number in round_numbers if number * layout.column_width >= 44)
    for column in layout.columns:
        cell = layout.cell(column)
        if trace.steps[column].step % interval == 0:
            line = f"M{cell.centre:.2f} {HEAD - 4}V{layout.charts_foot:.2f}"
            element(drawn, "path", d=line, stroke=FAINT, stroke_width=1)
            label(drawn, str(trace.steps[column].step), cell.centre, HEAD - 8, text_anchor="middle")


def _row(root: ET.Element, trace: StepTrace, row: Row, place: int, layout: Layout) -> None:
    drawn = element(root, "g", class_="row")
    first = layout.cell(layout.columns.start, place)
    if place % 2 == 0:
        element(drawn, "rect", class_="band", x=0, y=first.y, width=layout.width, height=first.height, fill=BAND)
    name = group(drawn, "name", summary.of_row(row, trace))
    label(name, short(row.request, 20), GUTTER - 10, first.middle + 4, 11.5, INK, text_anchor="end")
    for since, until, waits in row.spans():
        start, stop = max(since, layout.columns.start), min(until, layout.columns.stop - 1)
        if start < stop:
            title = summary.of_span(row, trace.steps[since], trace.steps[until], waits)
            _span(drawn, layout.cell(start, place), layout.cell(stop).centre, waits, title)
    events = [(column, event) for column, event in row.events if column in layout.columns]
    if not layout.detailed:
        _all_decodes(drawn, trace, events, place, layout)
    for column, event in events:
        cell, step = layout.cell(column, place), trace.steps[column]
        title = summary.of_event(event, step)
        if isinstance(event, Preemption):
            _preemption(drawn, cell, title)
        elif isinstance(event, Finish):
            _finish(drawn, cell, event.reason, title)
        elif event.kind == "prefill":
            _prefill(drawn, cell, event.num_tokens, title)
        elif layout.detailed:
            _decode(drawn, cell, title)
        if isinstance(event, Chunk) and event.cached_tokens:
            _hit(drawn, cell, event.cached_tokens, summary.of_hit(event, step))


def _all_decodes(drawn: ET.Element, trace: StepTrace, events: list[tuple[int, Event]], place: int, layout: Layout) -> None:
    """Draws the decodes of a request in an overview: one dotted line for each run of consecutive columns."""
    decodes = [(column, event) for column, event in events if isinstance(event, Chunk) and event.kind == "decode"]
    # In a run of consecutive columns, column minus list index is constant.
    for _, run in groupby(enumerate(decodes), key=lambda indexed: indexed[1][0] - indexed[0]):
        columns, chunks = zip(*(decode for _, decode in run), strict=True)
        title = summary.of_decodes(chunks, trace.steps[columns[0]], trace.steps[columns[-1]])
        first, last = layout.cell(columns[0], place), layout.cell(columns[-1], place)
        line = f"M{first.centre:.2f} {first.middle:.2f}H{last.centre + 0.01:.2f}"
        dot = max(2.4, min(7, 0.7 * first.width))
        dashes = f"0 {first.width:.4f}" if first.width > 3 else "none"
        path = element(group(drawn, "decode", title), "path", d=line, fill="none", stroke=DECODE, stroke_width=dot)
        path.attrib |= {"stroke-linecap": "round", "stroke-dasharray": dashes}


def _prefill(parent: ET.Element, cell: Cell, num_tokens: int, title: str) -> None:
    """Draws a bar and the chunk's number of tokens: horizontal if it fits, else vertical, else only in the tooltip."""
    drawn = group(parent, "prefill", title)
    width, height = max(cell.width - 1, 2), cell.bottom - cell.top
    x = cell.centre - width / 2
    element(drawn, "rect", x=x, y=cell.top, width=width, height=height, rx=min(1.5, width / 4), fill=PREFILL)
    size, text = min(9.0, width - 1), str(num_tokens)
    length = len(text) * DIGIT * size
    if cell.numbers and length <= width:
        label(drawn, text, cell.centre, cell.middle + 0.36 * size, size, PAPER, text_anchor="middle")
    elif cell.numbers and length <= height:
        turned = f"translate({cell.centre + 0.34 * size:.2f} {cell.middle:.2f}) rotate(-90)"
        label(drawn, text, 0, 0, size, PAPER, text_anchor="middle", transform=turned)


def _decode(parent: ET.Element, cell: Cell, title: str) -> None:
    drawn = group(parent, "decode", title)
    element(drawn, "circle", cx=cell.centre, cy=cell.middle, r=min(3.6, 0.36 * cell.width), fill=DECODE)


def _hit(parent: ET.Element, cell: Cell, cached_tokens: int, title: str) -> None:
    """Draws a hatched cap on the bar, and the number of cached tokens to the left of the cap."""
    drawn = group(parent, "hit", title)
    width, height = max(cell.width - 1, 6), 0.22 * cell.height
    x, y = cell.centre - width / 2, cell.top - height - 1
    element(drawn, "rect", x=x, y=y, width=width, height=height, fill="url(#hatch)", stroke=HIT, stroke_width=0.8)
    if cell.numbers:
        label(drawn, f"+{cached_tokens}", x - 2, y + height, 9, HIT, text_anchor="end", font_weight="bold")


def _preemption(parent: ET.Element, cell: Cell, title: str) -> None:
    drawn = group(parent, "preemption", title)
    size = max(3.2, min(5.5, 0.42 * cell.width))
    x, y = cell.centre, cell.middle
    line = f"M{x - size:.2f} {y - size:.2f}l{2 * size:.2f} {2 * size:.2f}m0 {-2 * size:.2f}l{-2 * size:.2f} {2 * size:.2f}"
    for stroke, width in ((PAPER, 4), (CROSS, 2.4)):
        element(drawn, "path", d=line, fill="none", stroke=stroke, stroke_width=width, stroke_linecap="round")


def _finish(parent: ET.Element, cell: Cell, reason: str, title: str) -> None:
    """Draws a vertical line at the end of the column, and the first letter of the reason."""
    drawn = group(parent, "finish", title)
    x = cell.x + cell.width + 1
    element(drawn, "path", d=f"M{x:.2f} {cell.top - 2:.2f}V{cell.bottom + 1:.2f}", stroke=INK, stroke_width=2.4)
    label(drawn, reason[0].upper(), x + 4, cell.middle + 3.5, 10, INK, font_weight="bold")


def _span(parent: ET.Element, first: Cell, stop: float, waits: bool, title: str) -> None:
    """Draws a line from a cell to the x ``stop``: dashed if the request waits after a preemption, thin and solid in the batch."""
    line = f"M{first.centre:.2f} {first.middle:.2f}H{stop:.2f}"
    drawn = group(parent, "waits" if waits else "batch", title)
    if waits:
        element(drawn, "path", d=line, fill="none", stroke=CROSS, stroke_width=1.6, stroke_dasharray="5 4")
    else:
        element(drawn, "path", d=line, fill="none", stroke=MUTED, stroke_width=1)


def _charts(root: ET.Element, trace: StepTrace, layout: Layout) -> None:
    """Draws the tokens of each step, decodes below prefills, and the free blocks; if detailed, each step has a tooltip."""
    steps = [trace.steps[column] for column in layout.columns]
    decodes = [step.num_tokens("decode") for step in steps]
    tokens = [step.num_tokens("prefill") + step.num_tokens("decode") for step in steps]
    free = [step.num_free_blocks for step in steps]
    most, least = f"most: {max(tokens)} of {trace.max_num_batched_tokens}", f"least: {min(free)} of {trace.num_blocks}"
    _chart(root, "tokens", layout, 1, ["tokens in a step", most], max(tokens), [(tokens, PREFILL), (decodes, DECODE)])
    _chart(root, "free-blocks", layout, 2, ["free blocks", least], trace.num_blocks, [(free, MUTED)])
    for column in layout.columns if layout.detailed else ():
        over = group(root, "step", summary.of_step(trace.steps[column], trace))
        x, height = layout.cell(column).x, layout.charts_foot - layout.foot
        element(over, "rect", x=x, y=layout.foot, width=layout.column_width, height=height, fill="none", pointer_events="all")


def _chart(root: ET.Element, class_: str, layout: Layout, place: int, texts: list[str], top: int, areas: Areas) -> None:
    """Draws a chart: two lines of text at its left, the scale from 0 to ``top`` at its right, and areas with a value per step."""
    drawn, foot = element(root, "g", class_=class_), layout.foot + place * (GAP + STRIP)
    for text, height in zip(texts, (22, 8), strict=True):
        label(drawn, text, GUTTER - 10, foot - height, text_anchor="end")
    for text, y in ((str(top), foot - STRIP + 8), ("0", foot)):
        label(drawn, text, layout.right + 5, y, 10)
    for y, stroke in ((foot, MUTED), (foot - STRIP, FAINT)):
        element(drawn, "path", d=f"M{GUTTER} {y:.2f}H{layout.right:.2f}", stroke=stroke, stroke_width=1)
    for values, fill in areas:
        levels = (
            f"V{foot - STRIP * value / max(top, 1):.2f}H{layout.cell(column).x + layout.column_width:.2f}"
            for column, value in zip(layout.columns, values, strict=True)
        )
        element(drawn, "path", d=f"M{GUTTER} {foot:.2f}{''.join(levels)}V{foot:.2f}Z", fill=fill, fill_opacity=0.75)
