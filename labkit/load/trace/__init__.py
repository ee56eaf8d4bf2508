"""Traces a real load: which part of which checkpoint tensor vLLM copies into which part of which parameter.

>>> from labkit.load.trace import trace_load
>>> trace_load("llama-3-8b", tp_size=2, ranks=(0, 1)).records[0]  # doctest: +SKIP

Importing this package imports neither torch nor vLLM; the first trace does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from labkit.checkpoints.known_models import check_ranks, resolve
from labkit.load.library_output import require_vllm, silence_logs
from labkit.load.trace.records import MappingRow, Record, Trace, select, select_parameters_of
from labkit.load.trace.table import print_coverage, print_trace

__all__ = [
    "EXAMPLE_TENSORS",
    "MappingRow",
    "Record",
    "Trace",
    "print_coverage",
    "print_trace",
    "select",
    "select_parameters_of",
    "trace_load",
]

EXAMPLE_TENSORS = tuple(
    f"model.layers.0.{name}.weight"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
)
"""Five tensors that show every case: three that are fused, the first of two that are fused, and one cut along columns."""


def trace_load(
    model: str | Path,
    tp_size: int = 1,
    ranks: Sequence[int] = (0,),
    device: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Trace:
    """Loads a model through ``load_weights`` of vLLM's class for the model, and returns a record of every copy.

    With safetensors beside config.json the tensors and the parameters are real, and every record is checked by value: the
    parameter's part equals the tensor's part to the bit. With config.json alone, tensors and parameters are shapes on the meta
    device. This works for the Llama family, whose tensors follow from the config; other architectures need safetensors files.

    Args:
        model: a directory with config.json, or a known name (``smollm2``); a name takes precedence over a directory called so.
        ranks: the ranks to load, one after the other in this process.
        device: ``cuda``, ``cpu``, or ``meta`` for shapes alone; by default CUDA, else the CPU; meta without safetensors files.
        progress: called with a few words before each step that takes time.

    Raises:
        UserError: the model, the ranks or the device is unusable, vLLM is not installed, or vLLM refuses the load.
    """
    found = resolve(model)
    check_ranks(found.config, tp_size, ranks)
    require_vllm("trace")
    progress("importing vLLM")
    with silence_logs():
        from labkit.load.trace import real_load
    with silence_logs():
        return real_load.trace(found, tp_size, ranks, device, progress)
