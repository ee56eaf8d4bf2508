"""What a step trace is, as data: the header of a run, and for every step who ran which tokens, who lost and who ended.

    line 1     {"format": "mini_vllm step trace", "version": 1, "block_size": 16, "num_blocks": 2048, ...}
    line 2     {"step": 0, "chunks": [{"request": "a", "kind": "prefill", "start": 32, "num_tokens": 16, ...}], ...}
    line 3     {"step": 1, "chunks": [{"request": "a", "kind": "decode", "start": 48, "num_tokens": 1, ...}], ...}

One JSON object on a line, UTF-8. Fields that are not known here are ignored; a later version of the format is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.pictures.timeline.fields import Fields
from labkit.system.errors import UserError

FORMAT = "mini_vllm step trace"
VERSION = 1

GIVE = "give a file that mini_vllm's step tracer wrote, as LLM(MODEL, step_trace=FILE) has it do"
"""What to do about a file that is none, as part of a sentence."""

Kind = Literal["prefill", "decode"]
Reason = Literal["stop", "length", "abort", "error"]
KINDS: tuple[Kind, ...] = ("prefill", "decode")
REASONS: tuple[Reason, ...] = ("stop", "length", "abort", "error")


@dataclass(frozen=True)
class Chunk:
    """The part of one request that ran in a step.

    Attributes:
        request: whose tokens.
        kind: ``prefill`` while the request catches up with the tokens it has, ``decode`` from then on.
        start: position of the first token.
        num_tokens: how many ran.
        cached_tokens: how many tokens right before ``start`` were found in the prefix cache when this step admitted the request.
        blocks_taken: ids of the blocks that the request was given for this chunk.
        samples: whether the chunk reached the request's newest token, so that the next one was sampled.
    """

    request: str
    kind: Kind
    start: int
    num_tokens: int
    cached_tokens: int
    blocks_taken: tuple[int, ...]
    samples: bool


@dataclass(frozen=True)
class Preemption:
    """A request lost its blocks to make room; it waits until its next chunk."""

    request: str
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class Finish:
    """A request ended, and its blocks are free again."""

    request: str
    reason: Reason
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One call of the model: what ran in it, who lost its blocks for it, and who ended.

    Attributes:
        step: its number; rises from line to line.
        seconds: how long it took.
        num_waiting: requests in the queue after it.
        num_free_blocks: blocks that nobody holds after it.
        evicted: blocks that the prefix cache gave up to make room.
    """

    step: int
    seconds: float
    chunks: tuple[Chunk, ...]
    preempted: tuple[Preemption, ...]
    finished: tuple[Finish, ...]
    num_waiting: int
    num_free_blocks: int
    evicted: int

    def num_tokens(self, kind: Kind) -> int:
        """How many tokens of one kind ran."""
        return sum(chunk.num_tokens for chunk in self.chunks if chunk.kind == kind)


@dataclass(frozen=True)
class StepTrace:
    """A recorded run.

    Attributes:
        recorded_by: the versions that ran.
        block_size: tokens a block holds.
        num_blocks: blocks in the cache.
        max_num_batched_tokens: the token budget of a step.
        max_num_seqs: the most requests in a step.
        steps: at least one, in order.
        cut_line: number of the last line when the run was killed while it wrote that line, which is then left out; else None.
    """

    recorded_by: str
    block_size: int
    num_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    steps: tuple[Step, ...]
    cut_line: int | None = None

    def columns(self, wanted: str) -> range:
        """Which of the steps have numbers in ``FIRST:LAST``, both included; either may be left out.

        Raises:
            UserError: no steps are asked for in this form, or none of these are here; says which are.
        """
        asked = re.fullmatch(r"(\d{0,18}):(\d{0,18})", wanted, re.ASCII)
        if not asked:
            raise UserError(f"--steps {wanted} is no range; give the first and the last step: --steps 100:200")
        first, last = int(asked[1] or 0), int(asked[2] or self.steps[-1].step)
        found = [column for column, step in enumerate(self.steps) if first <= step.step <= last]
        if not found:
            raise UserError(
                f"--steps {wanted} has none of the steps of this trace, which are {self.steps[0].step} to {self.steps[-1].step}"
            )
        return range(found[0], found[-1] + 1)


def read(path: Path) -> StepTrace:
    """The step trace in a file.

    Raises:
        UserError: the file cannot be read, is no step trace, or a line is wrong; names the file, the line and the field.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {GIVE}") from error
    # A whole file ends with a newline. What follows the last one is either a line without its newline, or a piece of one.
    cut = False
    if rest:
        cut = not _is_json(rest)
        lines += [] if cut else [rest]
    if not lines:
        what = "has no complete line" if rest else "is empty"
        raise UserError(f"{path} {what}; a step trace begins with a header: record the run again")
    header = _header(lines[0], path)
    steps: list[Step] = []
    for number, line in enumerate(lines[1:], 2):
        where = f"{path}, line {number}"
        step = _step(Fields(_object(line, where), where))
        if steps and step.step <= steps[-1].step:
            raise UserError(f"{where}: step {step.step} comes after step {steps[-1].step}; steps rise: record the run again")
        steps.append(step)
    if not steps:
        raise UserError(f"{path} has a header and no complete step; run at least one request, and let the step end")
    return StepTrace(
        recorded_by=header.text("recorded_by"),
        block_size=header.integer("block_size", 1),
        num_blocks=header.integer("num_blocks", 1),
        max_num_batched_tokens=header.integer("max_num_batched_tokens", 1),
        max_num_seqs=header.integer("max_num_seqs", 1),
        steps=tuple(steps),
        cut_line=len(lines) + 1 if cut else None,
    )


def _header(line: bytes, path: Path) -> Fields:
    data = json.loads(line) if _is_json(line) else None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{path} is no step trace: its first line is not {{"format": "{FORMAT}", ...}}; {GIVE}')
    fields = Fields(data, f"{path}, line 1")
    if (version := fields.integer("version")) != VERSION:
        raise UserError(
            f"{path} is written in version {version} of the format, and this reads version {VERSION}; "
            "draw it with the ./lab of the checkout that recorded it"
        )
    return fields


def _step(fields: Fields) -> Step:
    return Step(
        step=fields.integer("step"),
        seconds=fields.seconds("seconds"),
        chunks=tuple(_chunk(chunk) for chunk in fields.objects("chunks")),
        preempted=tuple(Preemption(one.text("request"), one.integers("blocks_freed")) for one in fields.objects("preempted")),
        finished=tuple(
            Finish(one.text("request"), one.word("reason", REASONS), one.integers("blocks_freed"))
            for one in fields.objects("finished")
        ),
        num_waiting=fields.integer("num_waiting"),
        num_free_blocks=fields.integer("num_free_blocks"),
        evicted=fields.integer("evicted"),
    )


def _chunk(fields: Fields) -> Chunk:
    return Chunk(
        request=fields.text("request"),
        kind=fields.word("kind", KINDS),
        start=fields.integer("start"),
        num_tokens=fields.integer("num_tokens", 1),
        cached_tokens=fields.integer("cached_tokens"),
        blocks_taken=fields.integers("blocks_taken"),
        samples=fields.flag("samples"),
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _object(line: bytes, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); record the run again") from error
