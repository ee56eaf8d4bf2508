"""The picture: a row per request, a column per step, and under the columns what each step used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree as ET

from labkit.pictures.drawing import INK, PAPER, element, group, label, short
from labkit.pictures.timeline import glyphs, words
from labkit.pictures.timeline.charts import axis, charts
from labkit.pictures.timeline.glyphs import BAND, Cell
from labkit.pictures.timeline.layout import GUTTER, Layout
from labkit.pictures.timeline.read import REASONS, Chunk, Finish, Preemption, StepTrace
from labkit.pictures.timeline.rows import Event, Row, rows
from labkit.system.atomic_write import atomic_write


def draw(trace: StepTrace, name: str, columns: range | None = None) -> str:
    """The picture of a trace, as the text of an SVG file that needs nothing else.

    Args:
        name: what the trace is called in the title, a file name.
        columns: which columns to draw, at least one; all without.
    """
    columns = columns or range(len(trace.steps))
    found = rows(trace)
    end = len(trace.steps) - 1
    shown = [row for row in found if row.first < columns.stop and row.last(end) >= columns.start]
    layout = Layout(columns, len(shown))
    root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    root.attrib |= {"width": f"{layout.width:.0f}", "height": f"{layout.height:.0f}"}
    root.attrib |= {"viewBox": f"0 0 {layout.width:.0f} {layout.height:.0f}", "font-family": "system-ui, sans-serif"}
    root.attrib |= {"aria-labelledby": "timeline-title timeline-desc"}
    _head(root, trace, name, found, layout)
    axis(root, trace, layout)
    for place, row in enumerate(shown):
        _row(root, trace, row, place, layout)
    charts(root, trace, layout)
    ET.indent(root, "")
    return ET.tostring(root, encoding="unicode") + "\n"


def write(picture: str, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Raises:
        UserError: the file cannot be written there; says why.
    """
    atomic_write(path, picture)


def _head(root: ET.Element, trace: StepTrace, name: str, found: list[Row], layout: Layout) -> None:
    title = f"Step trace {short(name, 40)}: {words.totals(trace, found)}"
    by = f"Recorded by {short(trace.recorded_by, 60)}; {words.of_run(trace)}"
    drawn = words.of_part(trace, layout.columns, layout.detailed)
    element(root, "title", title, id="timeline-title")
    element(root, "desc", f"A row per request, a column per step. {by}. {drawn}".strip(), id="timeline-desc")
    glyphs.hatch(root)
    element(root, "rect", class_="paper", width="100%", height="100%", fill=PAPER)
    label(root, title, 16, 28, 16, INK, font_weight="bold")
    label(root, by, 16, 47)
    label(root, drawn, 16, 62)
    _legend(element(root, "g", class_="legend"))


def _legend(parent: ET.Element) -> None:
    reasons = ", ".join(f"{reason[0].upper()} {reason}" for reason in REASONS)
    entries: list[tuple[str, int, int, Callable[[Cell], None]]] = [  # words; pixels left and right of the column for its glyph
        ("prefill chunk, its tokens", 0, 0, lambda cell: glyphs.prefill(parent, cell, 16, "prefill chunk")),
        ("decode", 0, -4, lambda cell: glyphs.decode(parent, cell, "decode")),
        ("prefix-cache hit, its tokens", 24, 0, lambda cell: glyphs.hit(parent, replace(cell, y=84), 48, "prefix-cache hit")),
        ("preempted", 0, -2, lambda cell: glyphs.preemption(parent, cell, "preempted")),
        ("waits after it", -2, 14, lambda cell: glyphs.stretch(parent, cell, cell.next, True, "waits after a preemption")),
        ("not scheduled", -4, 14, lambda cell: glyphs.stretch(parent, cell, cell.next, False, "in the batch, not scheduled")),
        (f"finished: {reasons}", -14, 12, lambda cell: glyphs.finish(parent, cell, REASONS[0], "finished")),
    ]
    x = 16.0
    for text, left, right, glyph in entries:
        cell = Cell(x + left, 70, 22, 32, numbers=True)
        glyph(cell)
        label(parent, text, cell.x + 28 + right, 94)
        x = cell.x + 28 + right + 5.5 * len(text) + 14


def _row(root: ET.Element, trace: StepTrace, row: Row, place: int, layout: Layout) -> None:
    drawn = element(root, "g", class_="row")
    first, end = layout.cell(layout.columns.start, place), len(trace.steps) - 1
    if place % 2 == 0:
        element(drawn, "rect", class_="band", x=0, y=first.y, width=layout.width, height=first.height, fill=BAND)
    name = group(drawn, "name", words.of_row(row, trace))
    label(name, short(row.request, 20), GUTTER - 10, first.middle + 4, 11.5, INK, text_anchor="end")
    for stretch in row.stretches(end):
        start, stop = max(stretch.first, layout.columns.start), min(stretch.last, layout.columns.stop - 1)
        if start < stop:
            title = words.of_stretch(row, stretch, trace)
            glyphs.stretch(drawn, layout.cell(start, place), layout.cell(stop, place), stretch.waits, title)
    events = [(column, event) for column, event in row.events if column in layout.columns]
    if not layout.detailed:
        _overview_of_decodes(drawn, trace, events, place, layout)
    for column, event in events:
        cell, step = layout.cell(column, place), trace.steps[column]
        if isinstance(event, Preemption):
            glyphs.preemption(drawn, cell, words.of_preemption(event, step))
        elif isinstance(event, Finish):
            glyphs.finish(drawn, cell, event.reason, words.of_finish(event, step))
        elif event.kind == "prefill":
            glyphs.prefill(drawn, cell, event.num_tokens, words.of_chunk(event, step))
        elif layout.detailed:
            glyphs.decode(drawn, cell, words.of_chunk(event, step))
        if isinstance(event, Chunk) and event.cached_tokens:
            glyphs.hit(drawn, cell, event.cached_tokens, words.of_hit(event, step))


def _overview_of_decodes(
    drawn: ET.Element, trace: StepTrace, events: list[tuple[int, Event]], place: int, layout: Layout
) -> None:
    decodes = [(column, event) for column, event in events if isinstance(event, Chunk) and event.kind == "decode"]
    # Columns that follow each other differ from their place in the list by the same number.
    for _, run in groupby(enumerate(decodes), key=lambda placed: placed[1][0] - placed[0]):
        found = [decode for _, decode in run]
        first, last = found[0][0], found[-1][0]
        title = words.of_decodes([chunk for _, chunk in found], trace.steps[first], trace.steps[last])
        glyphs.decodes(drawn, layout.cell(first, place), layout.cell(last, place), title)
