"""What a traced load is, as data: one record for every copy from a checkpoint tensor into a parameter.

    checkpoint tensor   k_proj.weight   (1024, 4096)   source       [512, 1024)   what this rank reads
                           |  mapping row: .k_proj -> .qkv_proj, shard "k"
    fused parameter     qkv_proj.weight (3072, 4096)   destination [2048, 2560)   where it lands          (TP 2, rank 1)

The file form is JSON with one record on a line, so that two traces can be compared with diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Span = tuple[int, int]
"""Half-open: [start, stop)."""


class TraceError(Exception):
    """A load cannot be traced, or a trace cannot be read; the message is a sentence that says why and what to try."""


@dataclass(frozen=True)
class MappingRow:
    """One row of the model's mapping, as vLLM has it.

    Attributes:
        from_: the part of a checkpoint name that is replaced, ``.q_proj``.
        to: what replaces it, ``.qkv_proj``.
        shard: which part of the fused parameter the tensor fills: ``q``, ``k``, ``v``, or 0 (gate), 1 (up).
    """

    from_: str
    to: str
    shard: str | int

    def __str__(self) -> str:
        return f"{self.from_} -> {self.to}, shard {self.shard}"


@dataclass(frozen=True)
class Record:
    """One copy that the load made: which part of which checkpoint tensor went where.

    Attributes:
        tensor: the checkpoint tensor's name.
        shape: its shape.
        mapping: the mapping row that renamed it; None when it keeps its name.
        parameter: the parameter it was copied into.
        parameter_shape: that parameter's shape on this rank.
        destination: the part of the parameter that was written, one span per dimension.
        source: the part of the checkpoint tensor that was read, one span per dimension.
        tp_rank: the tensor-parallel rank that loaded, 0 to tp_size - 1.
        tp_size: the number of ranks.
    """

    tensor: str
    shape: Shape
    mapping: MappingRow | None
    parameter: str
    parameter_shape: Shape
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
            "mapping": row and {"from": row.from_, "to": row.to, "shard": row.shard},
            "parameter": self.parameter,
            "parameter_shape": list(self.parameter_shape),
            "destination": [list(span) for span in self.destination],
            "source": [list(span) for span in self.source],
            "tp_rank": self.tp_rank,
            "tp_size": self.tp_size,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """The record that ``as_dict`` wrote."""
        row = data["mapping"]
        return cls(
            tensor=data["tensor"],
            shape=tuple(data["shape"]),
            mapping=row and MappingRow(row["from"], row["to"], row["shard"]),
            parameter=data["parameter"],
            parameter_shape=tuple(data["parameter_shape"]),
            destination=tuple((start, stop) for start, stop in data["destination"]),
            source=tuple((start, stop) for start, stop in data["source"]),
            tp_rank=data["tp_rank"],
            tp_size=data["tp_size"],
        )


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
    """

    vllm: str
    torch: str
    device: str
    model: str
    records: tuple[Record, ...]
    checkpoint_shapes: Mapping[str, Shape]
    parameter_shapes: Mapping[str, Shape]

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
                ]
            )
            + "\n}\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that ``to_json`` wrote.

        Raises:
            TraceError: the text is not JSON, or not a trace; says what is missing.
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
            )
        except KeyError as error:
            raise TraceError(
                f"this is no trace: {error} is missing; record it again with ./lab trace MODEL --json FILE"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise TraceError(f"this is no trace ({error}); record it again with ./lab trace MODEL --json FILE") from error

    def write(self, path: Path) -> None:
        """Writes the file form, whole or not at all: a reader never sees half of it.

        Raises:
            TraceError: the file cannot be written there; says why.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.to_json(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise TraceError(f"cannot write {path}: {error.strerror}; name a file in a folder of yours") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Trace:
        """The trace in a file.

        Raises:
            TraceError: naming the file, when it cannot be read or holds no trace.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TraceError(
                f"cannot read {path}: {error.strerror}; give a file written by ./lab trace MODEL --json FILE"
            ) from error
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error


def _lines(shapes: Mapping[str, Shape]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(list(shape))}" for name, shape in shapes.items()) + "\n}"
