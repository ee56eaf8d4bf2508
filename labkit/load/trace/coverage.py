"""Finds the faults of a load: parameter rows never written or written twice, tensor rows never read, rounded values.

vLLM does not check this: it checks whether each parameter's *name* was loaded
(vllm/model_executor/model_loader/default_loader.py:520), not whether all its rows were.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from labkit.checkpoints.headers import UNREAD_SUFFIXES, Shape
from labkit.load.trace.boxes import Box, covered, describe_box, whole, without
from labkit.load.trace.records import Trace


@dataclass(frozen=True)
class Finding:
    """One fault of a load.

    Attributes:
        fault: ``missing``: a part of a parameter was never written. ``twice``: a part was written more than once.
            ``cut off``: a part of a checkpoint tensor was read by no rank. ``rounded``: a conversion changed values.
        name: the parameter; for ``cut off`` and ``rounded`` the checkpoint tensor. ``shape`` is the shape of this tensor.
        tp_rank: the rank that holds the parameter; None for ``cut off`` and ``rounded``.
    """

    fault: Literal["missing", "twice", "cut off", "rounded"]
    name: str
    part: Box
    shape: Shape
    tp_rank: int | None = None

    def __str__(self) -> str:
        part = "values" if self.fault == "rounded" else describe_box(self.part, self.shape)
        predicate = {
            "missing": f"never written on rank {self.tp_rank}",
            "twice": f"written more than once on rank {self.tp_rank}",
            "cut off": "read by no rank",
            "rounded": "changed by the conversion to the parameter's element type",
        }[self.fault]
        return f"{self.fault}: {part} of {self.name} ({'x'.join(map(str, self.shape))}) were {predicate}"


def find_faults(trace: Trace) -> list[Finding]:
    """All faults of a load: of parameters, rank by rank; ``cut off``, if the trace has all ranks of the group; ``rounded``."""
    ranks = sorted({record.tp_rank for record in trace.records}) or [0]
    written: dict[tuple[int, str], list[Box]] = defaultdict(list)
    read: dict[str, list[Box]] = defaultdict(list)
    for record in trace.records:
        written[record.tp_rank, record.parameter].append(record.destination)
        read[record.tensor].append(record.source)
    filled: dict[tuple[int, str], list[Box]] = defaultdict(list)
    for fill in trace.fills:
        filled[fill.tp_rank, fill.parameter].append(fill.destination)

    findings = []
    for rank in ranks:
        for name, shape in trace.parameter_shapes.items():
            once, twice = covered(written[rank, name])
            once += filled[rank, name]
            findings += [Finding("missing", name, box, shape, rank) for box in without(whole(shape), once)]
            findings += [Finding("twice", name, box, shape, rank) for box in twice]
    if all(len(ranks) == record.tp_size for record in trace.records[:1]):
        for name, shape in trace.checkpoint_shapes.items():
            if not name.endswith(UNREAD_SUFFIXES):
                findings += [Finding("cut off", name, box, shape) for box in without(whole(shape), read[name])]
    rounded = ((name, trace.checkpoint_shapes[name]) for name in trace.rounded)
    return findings + [Finding("rounded", name, whole(shape), shape) for name, shape in rounded]
