"""Reader of step traces, which mini_vllm/engine/step_trace.py writes: the header of a run, then the events of every step.

    line 1     {"format": "mini_vllm step trace", "version": 1, "block_size": 16, "num_blocks": 2048, ...}
    line 2     {"step": 0, "chunks": [{"request": "a", "kind": "prefill", "start": 32, "num_tokens": 16, ...}], ...}
    line 3     {"step": 1, "chunks": [{"request": "a", "kind": "decode", "start": 48, "num_tokens": 1, ...}], ...}

One JSON object on a line, UTF-8. The dataclasses below define the fields and their types, and every line is checked against
them; unknown fields are ignored, and another version of the format is refused. A test compares the dataclasses with the fields
that the engine writes; importing classes from mini_vllm would import torch, which takes a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from labkit.system.errors import UserError

FORMAT = "mini_vllm step trace"
VERSION = 1

SOURCE = "give a file that mini_vllm's step tracer wrote; LLM(MODEL, step_trace=FILE) writes one"
"""The end of the error messages about a file that is no step trace: the next step."""

Kind = Literal["prefill", "decode"]
Reason = Literal["stop", "length", "abort", "error"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REASONS: tuple[Reason, ...] = get_args(Reason)
Positive = Annotated[int, "from 1 up"]
T = TypeVar("T")

_hints = cache(partial(get_type_hints, include_extras=True))


@dataclass(frozen=True)
class Chunk:
    """The part of one request that ran in a step.

    Attributes:
        kind: ``decode`` if the chunk is one token, the last one that the request generated; else ``prefill``.
        start: position of the first token.
        cached_tokens: tokens right before ``start`` that the prefix cache had when this step admitted the request.
        blocks_taken: ids of the blocks allocated for this chunk.
        samples: whether the chunk contains the request's last token, so that the next one is sampled.
    """

    request: str
    kind: Kind
    start: int
    num_tokens: Positive
    cached_tokens: int
    blocks_taken: tuple[int, ...]
    samples: bool


@dataclass(frozen=True)
class Preemption:
    """A request was preempted: its blocks were freed, and it waits until its next chunk."""

    request: str
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class Finish:
    """A request finished, and its blocks were freed."""

    request: str
    reason: Reason
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One call of the model, with the requests that were preempted before it and finished after it.

    Attributes:
        step: the number of the step; increases from line to line.
        num_waiting: number of requests in the queue after the step.
        num_free_blocks: number of free blocks after the step.
        evicted: number of blocks evicted from the prefix cache in this step.
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
        """The number of tokens in the chunks of one kind."""
        return sum(chunk.num_tokens for chunk in self.chunks if chunk.kind == kind)


@dataclass(frozen=True)
class Header:
    """The first line of a step trace: the versions of mini_vllm and torch, and the engine's sizes."""

    recorded_by: str
    block_size: Positive
    num_blocks: Positive
    max_num_batched_tokens: Positive
    max_num_seqs: Positive


@dataclass(frozen=True)
class StepTrace(Header):
    """A recorded run.

    Attributes:
        steps: at least one step, by increasing number.
        cut_line: number of the last line if the run was killed while it wrote that line, which is then left out; else None.
    """

    steps: tuple[Step, ...]
    cut_line: int | None = None

    def columns(self, wanted: str) -> range:
        """The columns of the steps numbered ``FIRST:LAST``, both included; either may be left out.

        Raises:
            UserError: ``wanted`` has another form, or the trace has none of these steps.
        """
        numbers = re.fullmatch(r"(\d{0,18}):(\d{0,18})", wanted, re.ASCII)
        if not numbers:
            raise UserError(f"--steps {wanted} is no range; give the first and the last step: --steps 100:200")
        first, last = int(numbers[1] or 0), int(numbers[2] or self.steps[-1].step)
        found = [column for column, step in enumerate(self.steps) if first <= step.step <= last]
        if not found:
            raise UserError(
                f"--steps {wanted} has none of the steps of this trace, which are {self.steps[0].step} to {self.steps[-1].step}"
            )
        return range(found[0], found[-1] + 1)


def read(path: Path) -> StepTrace:
    """Reads a step trace: the header of the run, and its complete steps in the order of the file.

    Raises:
        UserError: the file cannot be read, is no step trace, or has a wrong line; the message names file, line and field.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {SOURCE}") from error
    # A complete file ends with a newline. Text after the last newline is a line without one, or a cut line.
    cut = bool(rest) and isinstance(_json(rest), Exception)
    if rest and not cut:
        lines.append(rest)
    if not lines:
        what = "has no complete line" if rest else "is empty"
        raise UserError(f"{path} {what}; a step trace begins with a header: record the run again")
    header, where = _json(lines[0]), f"{path}, line 1"
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f'{path} is no step trace: its first line is not {{"format": "{FORMAT}", ...}}; {SOURCE}')
    if (version := _field(header, "version", int, where)) != VERSION:
        raise UserError(
            f"{path} is written in version {version} of the format, and this ./lab reads version {VERSION}; "
            "draw it with the ./lab of the checkout that recorded it"
        )
    sizes = _parse(Header, header, where)
    steps: list[Step] = []
    for number, line in enumerate(lines[1:], 2):
        where, data = f"{path}, line {number}", _json(line)
        if isinstance(data, Exception):
            raise UserError(f"{where} is not JSON ({data}); record the run again")
        step = _parse(Step, data, where)
        if steps and step.step <= steps[-1].step:
            raise UserError(f"{where}: step {step.step} comes after step {steps[-1].step}; steps rise: record the run again")
        steps.append(step)
    if not steps:
        raise UserError(f"{path} has a header and no complete step; run at least one request, and let the step end")
    return StepTrace(**vars(sizes), steps=tuple(steps), cut_line=len(lines) + 1 if cut else None)


def _json(line: bytes) -> object:
    """The value of a line of JSON, or the exception that says why it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _parse(kind: Callable[..., T], data: object, where: str) -> T:
    """Makes the dataclass ``kind`` from a JSON object; raises UserError, which begins with ``where``, for a wrong field."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is {_quoted(data)} and should be an object; record the run again")
    return kind(**{name: _field(data, name, hint, where) for name, hint in _hints(kind).items()})


def _field(data: dict[str, Any], name: str, hint: Any, where: str) -> Any:
    if name not in data:
        raise UserError(f'{where} has no "{name}"; record the run again')
    value = data[name]
    check, wanted = _CHECKS.get(hint, (lambda value: isinstance(value, list), "a list"))
    if not check(value):
        raise UserError(f'{where}: "{name}" is {_quoted(value)} and should be {wanted}; record the run again')
    if not isinstance(value, list):
        return value
    if hint in _CHECKS:
        return tuple(value)
    return tuple(_parse(get_args(hint)[0], each, f"{where}, {name}[{index}]") for index, each in enumerate(value))


def _is_integer(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63  # no counter reaches 2**63, and a float can hold it


_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_integer, "an integer from 0 up"),
    Positive: (lambda value: _is_integer(value, 1), "an integer from 1 up"),
    tuple[int, ...]: (lambda value: isinstance(value, list) and all(map(_is_integer, value)), "a list of integers from 0 up"),
    float: (lambda value: type(value) in (int, float) and 0 <= value < 2**63, "a number from 0 up"),
    str: (lambda value: isinstance(value, str), "a text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    Kind: (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    Reason: (lambda value: value in REASONS, f"one of {', '.join(REASONS)}"),
}
"""Type of a field -> a check of the JSON value, and words for the values that the check accepts."""


def _quoted(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
