"""What the picture and the table say in words: every number of the trace as a phrase, and ids made safe to show."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.pictures.drawing import printable
from labkit.pictures.timeline.read import Chunk, Finish, Preemption, Step, StepTrace
from labkit.pictures.timeline.rows import Row, Stretch

SHOWN_BLOCKS = 12


def count(number: int, noun: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def totals(trace: StepTrace, found: Sequence[Row]) -> str:
    """The run in one line."""
    hits = sum(chunk.cached_tokens > 0 for row in found for chunk in row.chunks)
    cached = sum(row.num_cached_tokens for row in found)
    return (
        f"{count(len(found), 'request')}, {count(len(trace.steps), 'step')}, "
        f"{count(sum(row.num_preemptions for row in found), 'preemption')}, "
        f"{count(hits, 'prefix-cache hit')}" + (f" ({count(cached, 'token')})" if hits else "")
    )


def of_run(trace: StepTrace) -> str:
    """What the engine had, and how long it took."""
    seconds = sum(step.seconds for step in trace.steps)
    return (
        f"{trace.num_blocks} blocks of {trace.block_size} tokens; at most {trace.max_num_batched_tokens} tokens and "
        f"{trace.max_num_seqs} requests in a step; {seconds:.2f} s in {count(len(trace.steps), 'step')}"
    )


def of_part(trace: StepTrace, columns: range, detailed: bool) -> str:
    """What of the run is drawn, and how, where that is not all of it."""
    notes = []
    if len(columns) < len(trace.steps):
        notes.append(f"Steps {trace.steps[columns.start].step} to {trace.steps[columns.stop - 1].step} are drawn.")
    if not detailed:
        notes.append("An overview: decodes that follow each other are one line; --steps FIRST:LAST draws fewer steps in detail.")
    if trace.cut_line:
        notes.append(f"The run ended while line {trace.cut_line} was written, which is left out.")
    return " ".join(notes)


def of_row(row: Row, trace: StepTrace) -> str:
    """What became of a request."""
    last = len(trace.steps) - 1
    ended = f"finished: {row.finish.reason}" if row.finish else "not finished when the trace ends"
    return (
        f"request {printable(row.request)}: {count(row.num_prefill_tokens, 'token')} computed in prefill, "
        f"{row.num_cached_tokens} from the prefix cache, {row.num_sampled_tokens} generated, "
        f"{count(row.num_preemptions, 'preemption')}; steps {trace.steps[row.first].step} to "
        f"{trace.steps[row.last(last)].step}; {ended}"
    )


def of_chunk(chunk: Chunk, step: Step) -> str:
    """What ran of a request in a step."""
    sampled = "; a token is sampled" if chunk.samples else ""
    return (
        f"step {step.step}, request {printable(chunk.request)}: {chunk.kind} of {count(chunk.num_tokens, 'token')} "
        f"at {_positions(chunk.start, chunk.num_tokens)}; {_blocks(chunk.blocks_taken, 'taken')}{sampled}"
    )


def of_decodes(chunks: Sequence[Chunk], first: Step, last: Step) -> str:
    """What ran of a request in decodes that follow each other."""
    tokens = sum(chunk.num_tokens for chunk in chunks)
    return (
        f"steps {first.step} to {last.step}, request {printable(chunks[0].request)}: {count(len(chunks), 'decode')} of "
        f"{count(tokens, 'token')} at {_positions(chunks[0].start, tokens)}"
    )


def of_hit(chunk: Chunk, step: Step) -> str:
    """What the prefix cache had of a request when it was admitted."""
    return (
        f"step {step.step}, request {printable(chunk.request)}: {count(chunk.cached_tokens, 'token')} found in the prefix cache, "
        f"{_positions(chunk.start - chunk.cached_tokens, chunk.cached_tokens)}, not computed"
    )


def of_stretch(row: Row, stretch: Stretch, trace: StepTrace) -> str:
    """Where a request was while nothing of it ran."""
    first, last = trace.steps[stretch.first].step, trace.steps[stretch.last].step
    state = "waits after a preemption" if stretch.waits else "in the batch"
    return f"request {printable(row.request)}: {state}, steps {first} to {last}"


def of_preemption(preemption: Preemption, step: Step) -> str:
    """What a request lost."""
    return (
        f"step {step.step}, request {printable(preemption.request)}: preempted; {_blocks(preemption.blocks_freed, 'freed')}; "
        "it waits until its next chunk"
    )


def of_finish(finish: Finish, step: Step) -> str:
    """How a request ended."""
    freed = _blocks(finish.blocks_freed, "freed")
    return f"step {step.step}, request {printable(finish.request)}: finished ({finish.reason}); {freed}"


def of_step(step: Step, trace: StepTrace) -> str:
    """What a step used."""
    prefill, decode = step.num_tokens("prefill"), step.num_tokens("decode")
    return (
        f"step {step.step}: {prefill + decode} of {trace.max_num_batched_tokens} tokens ({prefill} prefill, {decode} decode), "
        f"{len(step.chunks)} of {trace.max_num_seqs} requests, {step.num_waiting} waiting; "
        f"{step.num_free_blocks} of {trace.num_blocks} blocks free, {step.evicted} evicted; {step.seconds * 1000:.1f} ms"
    )


def _positions(start: int, number: int) -> str:
    return f"position {start}" if number == 1 else f"positions {start} to {start + number - 1}"


def _blocks(blocks: tuple[int, ...], what: str) -> str:
    if not blocks:
        return f"no block {what}"
    ids = ", ".join(map(str, blocks[:SHOWN_BLOCKS])) + (", …" if len(blocks) > SHOWN_BLOCKS else "")
    return f"{count(len(blocks), 'block')} {what}: {ids}"
