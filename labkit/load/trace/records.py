"""The data of a traced load: one record for every copy from a checkpoint tensor into a parameter.

    checkpoint tensor   k_proj.weight   (1024, 4096)   source       [512, 1024)   what this rank reads
                           |  mapping row: .k_proj -> .qkv_proj, shard "k"
    fused parameter     qkv_proj.weight (3072, 4096)   destination [2048, 2560)   where it is written     (TP 2, rank 1)

A trace is written to a file as JSON with one record on a line, so that two traces can be compared with diff.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from labkit.checkpoints.headers import Shape
from labkit.load.trace.boxes import Box, Span
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError


class VllmLoadError(UserError):
    """vLLM's loader refused the checkpoint. A class of its own, because ``./lab verify`` reports this as a finding."""


@dataclass(frozen=True)
class MappingRow:
    """A row of the model's mapping in vLLM: ``from_`` in a checkpoint name, ``.q_proj``, is replaced by ``to``, ``.qkv_proj``.

    ``shard`` is the part of the fused parameter that the tensor fills: ``q``, ``k``, ``v``, or 0 (gate), 1 (up); None where the
    row only renames.
    """

    from_: str
    to: str
    shard: str | int | None

    def __str__(self) -> str:
        return f"{self.from_} -> {self.to}" + ("" if self.shard is None else f", shard {self.shard}")


@dataclass(frozen=True)
class Record:
    """One copy that the load made, from a part of a checkpoint tensor into a part of a parameter.

    Attributes:
        dtype: the checkpoint tensor's element type in safetensors' names, ``BF16``; None when there are only shapes.
        file: the file that holds the tensor, and ``bytes`` the range of its data there; None when there are only shapes.
        mapping: the mapping row that renamed the tensor; None when tensor and parameter have the same name.
        parameter_shape: the parameter's shape on this rank; ``parameter_dtype`` is its type in torch's names, ``bfloat16``.
        destination: the part of the parameter that was written.
        source: the part of the checkpoint tensor that was read.
    """

    tensor: str
    shape: Shape
    dtype: str | None
    file: str | None
    bytes: Span | None
    mapping: MappingRow | None
    parameter: str
    parameter_shape: Shape
    parameter_dtype: str
    destination: Box
    source: Box
    tp_rank: int
    tp_size: int

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values: shapes and spans are lists, and the key of ``from_`` is ``from``."""
        values = {each.name: _as_lists(getattr(self, each.name)) for each in fields(self)}
        row = self.mapping
        return values | {"mapping": row and {"from": row.from_, "to": row.to, "shard": row.shard}}


@dataclass(frozen=True)
class Fill:
    """A part of a parameter that a rank filled with a number instead of a checkpoint's values: a vocabulary's padding."""

    parameter: str
    destination: Box
    tp_rank: int


@dataclass(frozen=True)
class Trace:
    """Every copy of one load, on one rank or on several, with the shapes of all tensors and parameters.

    Attributes:
        vllm: the version of vLLM that loaded the model; ``torch`` is the version of torch that vLLM used.
        device: the device of the parameters: ``meta`` (shapes only, no values), ``cpu``, or ``cuda:0 (name of the device)``.
        model: the directory or the known name of the model.
        records: the copies in the order in which they were made, rank after rank.
        checkpoint_shapes: every tensor of the checkpoint, read or not.
        parameter_shapes: every parameter of the model on one rank, written or not; the same on every rank.
        fills: the parts of parameters that the load filled without a checkpoint tensor.
        rounded: checkpoint tensors whose values were changed by the conversion to the parameter's element type.
        repacked: parameters that vLLM replaces after the load, each with a description of the change.
        not_run: a sentence for each step that could not be done in this installation.
        head_size: D, the rows of one head, from vLLM's attention layers; None where they have none, or several.
    """

    vllm: str
    torch: str
    device: str
    model: str
    records: tuple[Record, ...]
    checkpoint_shapes: Mapping[str, Shape]
    parameter_shapes: Mapping[str, Shape]
    fills: tuple[Fill, ...] = ()
    rounded: tuple[str, ...] = ()
    repacked: Mapping[str, str] = field(default_factory=dict)
    not_run: tuple[str, ...] = ()
    head_size: int | None = None

    def of_rank(self, tp_rank: int) -> Trace:
        """The trace with only the records and fills of one rank."""
        records = tuple(record for record in self.records if record.tp_rank == tp_rank)
        return replace(self, records=records, fills=tuple(fill for fill in self.fills if fill.tp_rank == tp_rank))

    def to_json(self) -> str:
        """Formats the trace as a JSON object, one record and one shape on a line."""
        records = ",\n".join(json.dumps(record.as_dict()) for record in self.records)
        values = {
            "records": f"[\n{records}\n]",
            "checkpoint_shapes": _shape_lines(self.checkpoint_shapes),
            "parameter_shapes": _shape_lines(self.parameter_shapes),
            "fills": json.dumps([asdict(fill) for fill in self.fills]),
        }
        names = [each.name for each in fields(self)]
        return "{\n" + ",\n".join(f'"{name}": {values.get(name) or json.dumps(getattr(self, name))}' for name in names) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Parses the text that ``to_json`` returned; raises UserError, naming a missing field, if the text is not a trace."""
        try:
            return cast(Trace, _read(cls, json.loads(text)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"this is not a trace: {cause}; record it again with ./lab trace MODEL --json FILE") from error

    def write(self, path: Path) -> None:
        """Writes ``to_json()`` to a file atomically; raises UserError if the file cannot be written."""
        atomic_write(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Reads a trace from a file; raises UserError, naming the file, if it cannot be read or is not a trace."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            said = f"cannot read {path}: {error.strerror}; give a file written by ./lab trace MODEL --json FILE"
            raise UserError(said) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def select(trace: Trace, tensors: Sequence[str]) -> Trace:
    """The trace with only the records of ``tensors``, rank after rank in that order, and the parameters they were copied into.

    Raises:
        UserError: the checkpoint has no tensor of a given name; the message has the nearest names.
    """
    for name in tensors:
        if name not in trace.checkpoint_shapes:
            near = difflib.get_close_matches(name, trace.checkpoint_shapes, n=3, cutoff=0.5)
            known = f"nearest: {', '.join(near)}" if near else f"its names look like {next(iter(trace.checkpoint_shapes))}"
            raise UserError(f"{trace.model} has no tensor {name!r}; {known}")
    order = {name: place for place, name in enumerate(tensors)}
    records = sorted((r for r in trace.records if r.tensor in order), key=lambda r: (r.tp_rank, order[r.tensor]))
    return _restricted(trace, records, tensors)


def select_parameters_of(trace: Trace, tensors: Sequence[str]) -> Trace:
    """The trace with all records of the parameters that ``tensors`` were copied into; raises UserError for an unknown name."""
    parameters = select(trace, tensors).parameter_shapes
    records = [record for record in trace.records if record.parameter in parameters]
    return _restricted(trace, records, [*tensors, *(record.tensor for record in records)])


def _restricted(trace: Trace, records: Iterable[Record], tensors: Iterable[str]) -> Trace:
    kept = tuple(records)
    shapes = {name: trace.checkpoint_shapes[name] for name in tensors}
    parameters = {record.parameter for record in kept}
    return replace(
        trace,
        records=kept,
        checkpoint_shapes=shapes,
        parameter_shapes={name: shape for name, shape in trace.parameter_shapes.items() if name in parameters},
        fills=tuple(fill for fill in trace.fills if fill.parameter in parameters),
        rounded=tuple(name for name in trace.rounded if name in shapes),
        repacked={name: text for name, text in trace.repacked.items() if name in parameters},
    )


def _shape_lines(shapes: Mapping[str, Shape]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(list(shape))}" for name, shape in shapes.items()) + "\n}"


def _read(kind: Callable[..., Any], data: Mapping[str, Any]) -> Any:
    """Makes the dataclass ``kind`` from a JSON object with the same fields; _READERS or _as_tuples converts each value."""
    return kind(**{each.name: _READERS.get(each.name, _as_tuples)(data[each.name]) for each in fields(kind)})  # type: ignore[arg-type]


def _shapes(data: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in data.items()}


def _box(data: Any) -> Box:
    return tuple((start, stop) for start, stop in data)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(each) for name, each in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _as_lists(value: Any) -> Any:
    return list(map(_as_lists, value)) if isinstance(value, tuple) else value


_READERS: dict[str, Callable[[Any], Any]] = {
    "records": lambda data: tuple(_read(Record, each) for each in data),
    "fills": lambda data: tuple(_read(Fill, each) for each in data),
    "mapping": lambda data: data and MappingRow(data["from"], data["to"], data["shard"]),
    "shape": tuple,
    "parameter_shape": tuple,
    "checkpoint_shapes": _shapes,
    "parameter_shapes": _shapes,
    "destination": _box,
    "source": _box,
}
