"""A step trace turned around: not who ran in each step, but what became of each request.

    step         0         1         2         3         4         5
    a            prefill   decode    decode    stop
    b            prefill   decode    preempt   . . . . . . . . . .  prefill        (waits for three steps)
    c                      prefill   ------------------- decode     decode         (in the batch, not scheduled, for one)

A *column* is a step's place in the trace, counted from 0; the step's number is what the recorder gave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from labkit.pictures.timeline.read import Chunk, Finish, Preemption, StepTrace

Event = Chunk | Preemption | Finish


@dataclass(frozen=True)
class Stretch:
    """Some columns of a row, both ends included, in which the request was in the batch, or waited after a preemption."""

    first: int
    last: int
    waits: bool


@dataclass
class Row:
    """What became of one request.

    Attributes:
        request: its id, as recorded: any text at all.
        events: what happened to it, with the column, in order.
    """

    request: str
    events: list[tuple[int, Event]] = field(default_factory=list)

    @property
    def chunks(self) -> list[Chunk]:
        """What ran of it."""
        return [event for _, event in self.events if isinstance(event, Chunk)]

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens computed in prefill chunks; after a preemption some are computed again, and count again."""
        return sum(chunk.num_tokens for chunk in self.chunks if chunk.kind == "prefill")

    @property
    def num_cached_tokens(self) -> int:
        """Tokens found in the prefix cache, over all of its admissions."""
        return sum(chunk.cached_tokens for chunk in self.chunks)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens generated."""
        return sum(chunk.samples for chunk in self.chunks)

    @property
    def num_preemptions(self) -> int:
        """How often it lost its blocks."""
        return sum(isinstance(event, Preemption) for _, event in self.events)

    @property
    def finish(self) -> Finish | None:
        """How it ended; None when the trace ends before."""
        last = self.events[-1][1]
        return last if isinstance(last, Finish) else None

    @property
    def first(self) -> int:
        """The column in which it is first seen."""
        return self.events[0][0]

    def last(self, end: int) -> int:
        """The column in which it ended, or ``end`` when it did not."""
        return self.events[-1][0] if self.finish else end

    def stretches(self, end: int) -> Iterator[Stretch]:
        """Where it was in the batch and where it waited, up to its end, or up to column ``end`` when it has not ended."""
        since, waits = self.first, False
        for column, event in self.events:
            if isinstance(event, Preemption) or (isinstance(event, Chunk) and waits):
                yield Stretch(since, column, waits)
                since, waits = column, isinstance(event, Preemption)
        yield Stretch(since, self.last(end), waits)


def rows(trace: StepTrace) -> list[Row]:
    """A row for each request, in the order in which they are first seen.

    An id that comes again after its request has finished is another request, with a row of its own.
    """
    found: list[Row] = []
    open_rows: dict[str, Row] = {}
    for column, step in enumerate(trace.steps):
        events: list[Event] = [*step.preempted, *step.chunks, *step.finished]
        for event in events:
            if event.request not in open_rows:
                open_rows[event.request] = Row(event.request)
                found.append(open_rows[event.request])
            open_rows[event.request].events.append((column, event))
            if isinstance(event, Finish):
                del open_rows[event.request]
    return found
