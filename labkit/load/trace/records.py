"""What a traced load is, as data: one record for every copy from a checkpoint tensor into a parameter.

    checkpoint tensor   k_proj.weight   (1024, 4096)   source       [512, 1024)   what this rank reads
                           |  mapping row: .k_proj -> .qkv_proj, shard "k"
    fused parameter     qkv_proj.weight (3072, 4096)   destination [2048, 2560)   where it lands          (TP 2, rank 1)

The file form is JSON with one record on a line, so that two traces can be compared with diff.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.checkpoints.headers import Shape
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError

Span = tuple[int, int]
"""Half-open: [start, stop)."""


def in_words(part: tuple[Span, ...], shape: Shape) -> str:
    """A part of a tensor of this shape: ``rows 512:1024``, or ``columns 0:7168`` where only they are cut."""
    words = ("rows", "columns", *(f"axis {axis}" for axis in range(2, len(shape))))
    cut = [axis for axis, (span, size) in enumerate(zip(part, shape, strict=True)) if span != (0, size)]
    return ", ".join(f"{words[axis]} {part[axis][0]}:{part[axis][1]}" for axis in cut or range(min(1, len(shape)))) or "the value"


class LoadRefused(UserError):
    """vLLM's own loader refused the checkpoint: a finding about it, and not a failure to look."""


@dataclass(frozen=True)
class MappingRow:
    """One row of the model's mapping, as vLLM has it.

    Attributes:
        from_: the part of a checkpoint name that is replaced, ``.q_proj``.
        to: what replaces it, ``.qkv_proj``.
        shard: which part of the fused parameter the tensor fills: ``q``, ``k``, ``v``, or 0 (gate), 1 (up); None where the row
            only renames.
    """

    from_: str
    to: str
    shard: str | int | None

    def __str__(self) -> str:
        return f"{self.from_} -> {self.to}" + ("" if self.shard is None else f", shard {self.shard}")


@dataclass(frozen=True)
class Record:
    """One copy that the load made: which part of which checkpoint tensor went where.

    Attributes:
        tensor: the checkpoint tensor's name.
        shape: its shape.
        dtype: the element type it is stored in, in safetensors' words, ``BF16``; None when there are only shapes.
        file: the file that holds it; None when there are only shapes.
        bytes: where in that file its data lies, [start, stop); None when there are only shapes.
        mapping: the mapping row that renamed it; None when it keeps its name.
        parameter: the parameter it was copied into.
        parameter_shape: that parameter's shape on this rank.
        parameter_dtype: its element type, in torch's words, ``bfloat16``.
        destination: the part of the parameter that was written, one span per dimension.
        source: the part of the checkpoint tensor that was read, one span per dimension.
        tp_rank: the tensor-parallel rank that loaded, 0 to tp_size - 1.
        tp_size: the number of ranks.
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
    destination: tuple[Span, ...]
    source: tuple[Span, ...]
    tp_rank: int
    tp_size: int

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        row = self.mapping
        return {
            "tensor": self.tensor,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "file": self.file,
            "bytes": self.bytes and list(self.bytes),
            "mapping": row and {"from": row.from_, "to": row.to, "shard": row.shard},
            "parameter": self.parameter,
            "parameter_shape": list(self.parameter_shape),
            "parameter_dtype": self.parameter_dtype,
            "destination": [list(span) for span in self.destination],
            "source": [list(span) for span in self.source],
            "tp_rank": self.tp_rank,
            "tp_size": self.tp_size,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """The record that ``as_dict`` wrote."""
        name, row = data["tensor"], data["mapping"]
        return cls(
            tensor=name,
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            file=data["file"],
            bytes=data["bytes"] and (data["bytes"][0], data["bytes"][1]),
            mapping=row and MappingRow(row["from"], row["to"], row["shard"]),
            parameter=data["parameter"],
            parameter_shape=tuple(data["parameter_shape"]),
            parameter_dtype=data["parameter_dtype"],
            destination=_spans(data["destination"]),
            source=_spans(data["source"]),
            tp_rank=data["tp_rank"],
            tp_size=data["tp_size"],
        )


@dataclass(frozen=True)
class Fill:
    """A part of a parameter that the load filled with a number instead of a checkpoint's values: a vocabulary's padding.

    Attributes:
        parameter: the parameter.
        destination: the part, one span per dimension.
        tp_rank: the rank that loaded.
    """

    parameter: str
    destination: tuple[Span, ...]
    tp_rank: int


@dataclass(frozen=True)
class Trace:
    """Every copy of one load, on one rank or on several, with the shapes that were there to be covered.

    Attributes:
        vllm: the version of vLLM that loaded.
        torch: the version of torch under it.
        device: what held the parameters: ``meta`` (shapes only, no values), ``cpu``, or ``cuda:0 (name of the device)``.
        model: the directory or the known name that was traced.
        records: the copies in the order in which they were made, rank after rank.
        checkpoint_shapes: every tensor of the checkpoint, read or not.
        parameter_shapes: every parameter of the model on one rank, written or not; the same on every rank.
        fills: the parts of parameters that the load filled without a checkpoint tensor.
        rounded: checkpoint tensors of which values were changed by being converted to the parameter's element type.
        repacked: parameters that vLLM replaces once they are loaded, each with what it makes of them, in words.
        not_run: what could not be done in this installation, a sentence for each.
        head_size: D, rows of one head, as vLLM's attention layers have it; None where they have none, or several.
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
        """The part of the trace that concerns one rank."""
        records = tuple(record for record in self.records if record.tp_rank == tp_rank)
        return replace(self, records=records, fills=tuple(fill for fill in self.fills if fill.tp_rank == tp_rank))

    def to_json(self) -> str:
        """The file form: an object, one record and one shape on a line."""
        head = [f"{json.dumps(key)}: {json.dumps(getattr(self, key))}" for key in ("vllm", "torch", "device", "model")]
        records = ",\n".join(json.dumps(record.as_dict()) for record in self.records)
        return (
            "{\n"
            + ",\n".join(
                [
                    *head,
                    f'"records": [\n{records}\n]',
                    f'"checkpoint_shapes": {_lines(self.checkpoint_shapes)}',
                    f'"parameter_shapes": {_lines(self.parameter_shapes)}',
                    f'"fills": {json.dumps([asdict(fill) for fill in self.fills])}',
                    f'"rounded": {json.dumps(self.rounded)}',
                    f'"repacked": {json.dumps(self.repacked)}',
                    f'"not_run": {json.dumps(self.not_run)}',
                    f'"head_size": {json.dumps(self.head_size)}',
                ]
            )
            + "\n}\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that ``to_json`` wrote.

        Raises:
            UserError: the text is not JSON, or not a trace; says what is missing.
        """
        try:
            data = json.loads(text)
            return cls(
                vllm=data["vllm"],
                torch=data["torch"],
                device=data["device"],
                model=data["model"],
                records=tuple(Record.from_dict(record) for record in data["records"]),
                checkpoint_shapes={name: tuple(shape) for name, shape in data["checkpoint_shapes"].items()},
                parameter_shapes={name: tuple(shape) for name, shape in data["parameter_shapes"].items()},
                fills=tuple(Fill(fill["parameter"], _spans(fill["destination"]), fill["tp_rank"]) for fill in data["fills"]),
                rounded=tuple(data["rounded"]),
                repacked=dict(data["repacked"]),
                not_run=tuple(data["not_run"]),
                head_size=data["head_size"],
            )
        except KeyError as error:
            raise UserError(
                f"this is no trace: {error} is missing; record it again with ./lab trace MODEL --json FILE"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"this is no trace ({error}); record it again with ./lab trace MODEL --json FILE") from error

    def write(self, path: Path) -> None:
        """Writes the file form, whole or not at all: a reader never sees half of it.

        Raises:
            UserError: the file cannot be written there; says why.
        """
        atomic_write(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Trace:
        """The trace in a file.

        Raises:
            UserError: naming the file, when it cannot be read or holds no trace.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; give a file written by ./lab trace MODEL --json FILE"
            ) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _lines(shapes: Mapping[str, Shape]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(list(shape))}" for name, shape in shapes.items()) + "\n}"


def _spans(data: Iterable[Iterable[int]]) -> tuple[Span, ...]:
    return tuple((start, stop) for start, stop in data)
