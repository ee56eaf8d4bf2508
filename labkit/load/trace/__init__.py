"""Traces a real load: which part of which checkpoint tensor vLLM copies into which part of which parameter.

>>> from labkit.load.trace import trace_load
>>> trace_load("llama-3-8b", tp_size=2, ranks=(0, 1)).records[0]  # doctest: +SKIP

Importing this costs neither torch nor vLLM; the first trace does.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from labkit.checkpoints.known_models import check_ranks, known_names, resolve
from labkit.load.trace.quiet import quiet
from labkit.load.trace.records import MappingRow, Record, Trace
from labkit.load.trace.table import show, show_verdict
from labkit.system.errors import UserError

__all__ = [
    "FIVE",
    "MappingRow",
    "Record",
    "Trace",
    "UserError",
    "around",
    "known_names",
    "select",
    "show",
    "show_verdict",
    "trace_load",
]

FIVE = tuple(
    f"model.layers.0.{name}.weight"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
)
"""Five tensors that show all there is to see: three into one parameter, the first of two into one, and a cut along columns."""


def trace_load(
    model: str | Path,
    tp_size: int = 1,
    ranks: Sequence[int] = (0,),
    device: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Trace:
    """Loads a model through the ``load_weights`` of the real vLLM's class for it, and returns what was copied where.

    With safetensors beside config.json the tensors and the parameters are real, and every record is checked by value: the
    parameter's part equals the tensor's part to the bit. With config.json alone, both are shapes on torch's meta device; that
    goes for the Llama family, whose checkpoints follow from their config. Any other architecture that vLLM knows needs its files.

    Args:
        model: a directory with config.json, or a known name (``smollm2``, ``llama-3-8b``); a known name goes first.
        tp_size: over how many tensor-parallel ranks the model is split.
        ranks: which of them load, one after the other in this process.
        device: what holds the parameters: ``cuda``, ``cpu``, or ``meta`` for shapes alone; by default, of real ones, the first
            of these that there is.
        progress: is told in a few words what takes time, before it starts.

    Raises:
        UserError: the model, the ranks or the device will not do, vLLM is not installed, or vLLM refuses the load.
    """
    found = resolve(model)
    check_ranks(found.config, tp_size, ranks)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed in this environment; run ./lab trace, which installs the pinned version first")
    progress("importing vLLM")
    with quiet():
        from labkit.load.trace import live
    with quiet():  # again, for the loggers that their libraries have set up meanwhile
        return live.trace(found, tp_size, ranks, device, progress)


def select(trace: Trace, tensors: Sequence[str]) -> Trace:
    """The part of a trace that concerns these checkpoint tensors, in this order, rank after rank.

    The shapes are cut down to these tensors and the parameters that they were copied into.

    Raises:
        UserError: the checkpoint has no tensor of that name; names the nearest ones.
    """
    for name in tensors:
        if name not in trace.checkpoint_shapes:
            near = difflib.get_close_matches(name, trace.checkpoint_shapes, n=3, cutoff=0.5)
            known = f"nearest: {', '.join(near)}" if near else f"its names look like {next(iter(trace.checkpoint_shapes))}"
            raise UserError(f"{trace.model} has no tensor {name!r}; {known}")
    order = {name: place for place, name in enumerate(tensors)}
    records = sorted((r for r in trace.records if r.tensor in order), key=lambda r: (r.tp_rank, order[r.tensor]))
    parameters = {record.parameter for record in records}
    return replace(
        trace,
        records=tuple(records),
        checkpoint_shapes={name: trace.checkpoint_shapes[name] for name in order},
        parameter_shapes={name: shape for name, shape in trace.parameter_shapes.items() if name in parameters},
    )


def around(trace: Trace, tensors: Sequence[str]) -> Trace:
    """The part of a trace that concerns the parameters these checkpoint tensors were copied into, whatever else went there.

    Raises:
        UserError: the checkpoint has no tensor of that name; names the nearest ones.
    """
    parameters = {record.parameter for record in select(trace, tensors).records}
    records = tuple(record for record in trace.records if record.parameter in parameters)
    kept = {*tensors, *(record.tensor for record in records)}
    return replace(
        trace,
        records=records,
        checkpoint_shapes={name: shape for name, shape in trace.checkpoint_shapes.items() if name in kept},
        parameter_shapes={name: shape for name, shape in trace.parameter_shapes.items() if name in parameters},
        fills=tuple(fill for fill in trace.fills if fill.parameter in parameters),
        rounded=tuple(name for name in trace.rounded if name in kept),
        repacked={name: text for name, text in trace.repacked.items() if name in parameters},
    )
