"""Summary of a step trace: the events of each request, and every number in words, for tooltips and for the terminal.

    step         0         1         2         3         4         5
    a            prefill   decode    decode    stop
    b            prefill   decode    preempt   . . . . . . . . . .  prefill        (waits for three steps)
    c                      prefill   ------------------- decode     decode         (in the batch, not scheduled, for one)

A *column* is the index of a step in the trace, from 0; the step's number is the one recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labkit.pictures.drawing import short
from labkit.pictures.timeline.read import Chunk, Finish, Preemption, Step, StepTrace
from labkit.system.foreign_text import printable

Event = Chunk | Preemption | Finish

MAX_LISTED_REQUESTS = 40  # in the table on the terminal; the picture has all
MAX_LISTED_BLOCKS = 12


@dataclass
class Row:
    """The events of one request.

    Attributes:
        request: the request's id, as recorded: any text.
        end: the last column of the trace.
        events: (column, event) pairs in the order of columns.
    """

    request: str
    end: int
    events: list[tuple[int, Event]] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Numbers of tokens computed in prefill (again after a preemption), cached tokens, generated tokens, and preemptions."""
        chunks = [event for _, event in self.events if isinstance(event, Chunk)]
        prefill = sum(chunk.num_tokens for chunk in chunks if chunk.kind == "prefill")
        cached, generated = sum(chunk.cached_tokens for chunk in chunks), sum(chunk.samples for chunk in chunks)
        return prefill, cached, generated, sum(isinstance(event, Preemption) for _, event in self.events)

    @property
    def finish(self) -> Finish | None:
        """The request's last event if it is a Finish; else None."""
        last = self.events[-1][1]
        return last if isinstance(last, Finish) else None

    @property
    def first(self) -> int:
        """The column of the request's first event."""
        return self.events[0][0]

    @property
    def last(self) -> int:
        """The column in which the request finished; ``end`` if it did not finish."""
        return self.events[-1][0] if self.finish else self.end

    def spans(self) -> Iterator[tuple[int, int, bool]]:
        """Yields (first column, last column, waits) of each span: the request is in the batch, or waits after a preemption."""
        since, waits = self.first, False
        for column, event in self.events:
            if isinstance(event, Preemption) or (isinstance(event, Chunk) and waits):
                yield since, column, waits
                since, waits = column, isinstance(event, Preemption)
        yield since, self.last, waits


def request_rows(trace: StepTrace) -> list[Row]:
    """A row for each request, in the order of the requests' first events.

    An id that occurs again after the request with this id has finished is a new request, with a new row.
    """
    found: list[Row] = []
    unfinished: dict[str, Row] = {}
    for column, step in enumerate(trace.steps):
        events: list[Event] = [*step.preempted, *step.chunks, *step.finished]
        for event in events:
            if event.request not in unfinished:
                found.append(Row(event.request, len(trace.steps) - 1))
                unfinished[event.request] = found[-1]
            unfinished[event.request].events.append((column, event))
            if isinstance(event, Finish):
                del unfinished[event.request]
    return found


def of_requests(trace: StepTrace, found: Sequence[Row]) -> str:
    """The numbers of requests, steps, preemptions and cache hits of the run, in one line."""
    hits = sum(chunk.cached_tokens > 0 for step in trace.steps for chunk in step.chunks)
    cached, preemptions = sum(row.counts[1] for row in found), sum(row.counts[3] for row in found)
    return (
        f"{_count(len(found), 'request')}, {_count(len(trace.steps), 'step')}, {_count(preemptions, 'preemption')}, "
        f"{_count(hits, 'prefix-cache hit')}" + (f" ({_count(cached, 'token')})" if hits else "")
    )


def of_run(trace: StepTrace) -> str:
    """The engine's sizes, and the seconds of all steps together, in one line."""
    seconds = sum(step.seconds for step in trace.steps)
    return (
        f"{trace.num_blocks} blocks of {trace.block_size} tokens; at most {trace.max_num_batched_tokens} tokens and "
        f"{trace.max_num_seqs} requests in a step; {seconds:.2f} s in {_count(len(trace.steps), 'step')}"
    )


def of_selection(trace: StepTrace, columns: range, detailed: bool) -> str:
    """Sentences for what the picture leaves out or shortens; the empty text if it draws the whole run in detail."""
    notes = []
    if len(columns) < len(trace.steps):
        notes.append(f"Steps {trace.steps[columns.start].step} to {trace.steps[columns.stop - 1].step} are drawn.")
    if not detailed:
        notes.append("An overview: decodes that follow each other are one line; --steps FIRST:LAST draws fewer steps in detail.")
    if trace.cut_line:
        notes.append(f"The run ended while line {trace.cut_line} was written, which is left out.")
    return " ".join(notes)


def of_row(row: Row, trace: StepTrace) -> str:
    """The totals of a request, in one line."""
    prefill, cached, generated, preemptions = row.counts
    ended = f"finished: {row.finish.reason}" if row.finish else "not finished when the trace ends"
    return (
        f"request {printable(row.request)}: {_count(prefill, 'token')} computed in prefill, {cached} from the prefix cache, "
        f"{generated} generated, {_count(preemptions, 'preemption')}; steps {_steps(row, trace)}; {ended}"
    )


def of_event(event: Event, step: Step) -> str:
    """An event with the positions of its tokens and the ids of its blocks, in one line."""
    if isinstance(event, Preemption):
        text = f"preempted; {_blocks(event.blocks_freed, 'freed')}; it waits until its next chunk"
    elif isinstance(event, Finish):
        text = f"finished ({event.reason}); {_blocks(event.blocks_freed, 'freed')}"
    else:
        positions, blocks = _positions(event.start, event.num_tokens), _blocks(event.blocks_taken, "taken")
        sampled = "; a token is sampled" if event.samples else ""
        text = f"{event.kind} of {_count(event.num_tokens, 'token')} at {positions}; {blocks}{sampled}"
    return f"step {step.step}, request {printable(event.request)}: {text}"


def of_decodes(chunks: Sequence[Chunk], first: Step, last: Step) -> str:
    """Consecutive decodes of a request, in one line."""
    tokens = sum(chunk.num_tokens for chunk in chunks)
    return (
        f"steps {first.step} to {last.step}, request {printable(chunks[0].request)}: {_count(len(chunks), 'decode')} of "
        f"{_count(tokens, 'token')} at {_positions(chunks[0].start, tokens)}"
    )


def of_hit(chunk: Chunk, step: Step) -> str:
    """The tokens that the prefix cache had when the request was admitted: number and positions, in one line."""
    positions = _positions(chunk.start - chunk.cached_tokens, chunk.cached_tokens)
    tokens = _count(chunk.cached_tokens, "token")
    return f"step {step.step}, request {printable(chunk.request)}: {tokens} found in the prefix cache, {positions}, not computed"


def of_span(row: Row, first: Step, last: Step, waits: bool) -> str:
    """Says in one line, with the first and the last step, that a request is in the batch or waits after a preemption."""
    state = "waits after a preemption" if waits else "in the batch"
    return f"request {printable(row.request)}: {state}, steps {first.step} to {last.step}"


def of_step(step: Step, trace: StepTrace) -> str:
    """The numbers of tokens, requests and blocks of a step, and its milliseconds, in one line."""
    prefill, decode = step.num_tokens("prefill"), step.num_tokens("decode")
    return (
        f"step {step.step}: {prefill + decode} of {trace.max_num_batched_tokens} tokens ({prefill} prefill, {decode} decode), "
        f"{len(step.chunks)} of {trace.max_num_seqs} requests, {step.num_waiting} waiting; "
        f"{step.num_free_blocks} of {trace.num_blocks} blocks free, {step.evicted} evicted; {step.seconds * 1000:.1f} ms"
    )


def _steps(row: Row, trace: StepTrace) -> str:
    return f"{trace.steps[row.first].step} to {trace.steps[row.last].step}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _positions(start: int, number: int) -> str:
    return f"position {start}" if number == 1 else f"positions {start} to {start + number - 1}"


def _blocks(blocks: tuple[int, ...], verb: str) -> str:
    if not blocks:
        return f"no block {verb}"
    ids = ", ".join(map(str, blocks[:MAX_LISTED_BLOCKS])) + (", …" if len(blocks) > MAX_LISTED_BLOCKS else "")
    return f"{_count(len(blocks), 'block')} {verb}: {ids}"


def show(trace: StepTrace, console: Console) -> None:
    """Prints a table with a line per request, and the totals; 80 columns, without colour."""
    found = request_rows(trace)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("request", "prefill", "cached", "generated", "preempted", "steps", "ended"):
        table.add_column(name, justify="left" if name in ("request", "steps", "ended") else "right", no_wrap=True)
    for row in found[:MAX_LISTED_REQUESTS]:
        ended = row.finish.reason if row.finish else "not yet"
        table.add_row(Text(short(row.request, 14)), *map(str, row.counts), _steps(row, trace), ended)
    console.print(f"recorded by {printable(trace.recorded_by)}", markup=False, soft_wrap=True)
    console.print(table)
    if len(found) > MAX_LISTED_REQUESTS:
        console.print(f"and {len(found) - MAX_LISTED_REQUESTS} more")
    console.print(of_requests(trace, found))
    console.print("prefill: tokens computed before a decode, again after each preemption")
