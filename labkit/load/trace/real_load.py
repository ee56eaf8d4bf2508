"""Runs the real vLLM's load of a checkpoint, rank after rank in this one process, and records every copy.

Imports vLLM, which takes about ten seconds; ``trace_load`` imports this module only when it is called.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import vllm
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import LoadConfig, ModelConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import process_weights_after_loading

from labkit.checkpoints.headers import read_header
from labkit.checkpoints.known_models import Model
from labkit.load.library_output import describe_error
from labkit.load.trace.real_model import DTYPES, as_rank, build, choose_device, group_of_one, load_plugins, parameter_dtype
from labkit.load.trace.recorder import Copy, CopyRecorder
from labkit.load.trace.records import Fill, MappingRow, Record, Trace, VllmLoadError
from labkit.system.errors import UserError
from labkit.system.labs import ROOT

PINNED_TORCH = re.findall(r"^torch=+([\d.]+)", (ROOT / "requirements" / "torch-cpu.in").read_text(), re.MULTILINE)[0]

Tensors = Iterable[tuple[str, Tensor]]  # (name, tensor) pairs, the argument of load_weights


def trace(
    model: Model,
    tp_size: int,
    ranks: Sequence[int],
    device: str | None,
    progress: Callable[[str], None],
    rename: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Trace:
    """Does ``labkit.load.trace.trace_load`` for a resolved model; ``rename`` renames the tensors that load_weights gets."""
    target, label = choose_device(model, device)
    dtype = parameter_dtype(model)
    records: list[Record] = []
    fills: list[Fill] = []
    rounded: dict[str, None] = {}
    repacked: dict[str, str] = {}
    not_run = dict.fromkeys([*_unusual_installation(), *load_plugins()])
    with group_of_one(), ExitStack() as cleanup:
        gc.freeze()  # without the imported objects, whose garbage collection takes a third of the time of a first trace
        cleanup.callback(gc.unfreeze)
        for rank in ranks:
            progress(f"loading {model.name} as rank {rank} of {tp_size}")
            with as_rank(rank, tp_size):
                built, config = build(model, dtype, target)
                recorder = record_load(built, model, dtype, target, f"rank {rank} of {tp_size}", rename)
            stacked = stacked_rows(built)
            records += (_record(copy, recorder, model, stacked, rank, tp_size) for copy in recorder.copies)
            fills += (Fill(parameter, destination, rank) for parameter, destination in recorder.fills)
            parameter_shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
            if computed := sorted({copy.tensor for copy in recorder.copies if copy.changed}):
                not_run[
                    f"the loader computes with the values of {len(computed)} tensors, such as {computed[0]}, before it copies "
                    "them: their parts were checked, their values were not"
                ] = None
            if target.type != "meta":
                rounded |= dict.fromkeys(recorder.check_values())
                del recorder
                try:
                    repacked = _repacked(built, config, target)
                except Exception as error:
                    not_run[f"vLLM could not prepare the loaded parameters for serving: {describe_error(error)}"] = None
    layers = (module for module in built.modules() if isinstance(module, AttentionLayerBase))
    head_sizes: set[int] = {layer.head_size for layer in layers if hasattr(layer, "head_size")}
    return Trace(
        vllm=vllm.__version__,
        torch=torch.__version__,
        device=label,
        model=model.name,
        records=tuple(records),
        checkpoint_shapes=model.shapes,
        parameter_shapes=parameter_shapes,
        fills=tuple(fills),
        rounded=tuple(rounded),
        repacked=repacked,
        not_run=tuple(not_run),
        head_size=head_sizes.pop() if len(head_sizes) == 1 else None,
    )


def _unusual_installation() -> Iterator[str]:
    """Yields a sentence for each difference from the pinned installation; no such difference prevents a trace."""
    if not any(Path(vllm.__file__).parent.glob("_C*.so")):
        yield f"vLLM {vllm.__version__} is installed without its compiled kernels: it can load a model, but not serve one"
    if torch.__version__.split("+")[0] != PINNED_TORCH:
        yield f"torch is {torch.__version__}, and vLLM {vllm.__version__} is built for {PINNED_TORCH}; kernels may fail"


def record_load(
    built: nn.Module,
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    rank: str,
    rename: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> CopyRecorder:
    """Runs ``load_weights`` and vLLM's check for uninitialized parameters; returns the recorder; VllmLoadError names ``rank``."""
    recorder = CopyRecorder(dict(built.named_parameters()), lambda: built.state_dict(keep_vars=True))
    refused = f"vLLM {vllm.__version__} refused the load as {rank}"
    try:
        with recorder:
            loaded = cast(Any, built).load_weights(rename(recorder.watch(_tensors(model, dtype, device))))
    except UserError:
        raise
    except Exception as error:
        raise VllmLoadError(f"{refused}: {describe_error(error)}; {_last_tensor(recorder, built)}") from error
    if "quantization_config" not in model.config:  # the engine's own condition (default_loader.py:508)
        try:
            DefaultModelLoader(LoadConfig()).track_weights_loading(built, loaded)
        except Exception as error:
            raise VllmLoadError(
                f"{refused}: {describe_error(error)}; check that no file is missing and load_weights returns every loaded name"
            ) from error
    return recorder


def _tensors(model: Model, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yields the checkpoint's (name, tensor) pairs; on meta if ``device`` is meta or the model has only shapes."""
    if not model.files:
        yield from ((name, torch.empty(shape, dtype=dtype, device="meta")) for name, shape in model.shapes.items())
    for file in model.files:
        if device.type == "meta":
            for name, stored in read_header(file).items():
                yield name, torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")
        else:
            with safe_open(file, framework="pt") as tensors:
                yield from ((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118


def _last_tensor(recorder: CopyRecorder, built: nn.Module) -> str:
    """Words for the tensor that the loader read last before it failed and, if one has that name, for the parameter."""
    if not recorder.tensors:
        return "no tensor had been read"
    name, tensor = list(recorder.tensors.items())[-1]
    last = f"the last tensor it read was {name} {tuple(tensor.shape)}"
    mapper = getattr(built, "hf_to_vllm_mapper", None)
    parameter = recorder.parameters.get(target := mapper.map_name(name) if mapper else name)
    return last if parameter is None else f"{last}, for {target} {tuple(parameter.shape)}"


def _repacked(built: nn.Module, config: ModelConfig, device: torch.device) -> dict[str, str]:
    """Runs vLLM's process_weights_after_loading; returns the name of each parameter that it changes -> ``before -> after``."""

    def described() -> dict[str, tuple[str, Tensor]]:
        kinds = ((name, made, str(made.dtype).removeprefix("torch.")) for name, made in built.named_parameters())
        return {name: (f"{tuple(made.shape)} {dtype}", made) for name, made, dtype in kinds}

    before, changed = described(), {}
    process_weights_after_loading(built, config, device)
    after = described()
    for name, (was, parameter) in before.items():
        now, replacement = after.get(name, ("gone", parameter))
        if now != was:
            changed[name] = f"{was} -> {now}"
        elif replacement.data_ptr() != parameter.data_ptr():
            changed[name] = f"{was} -> replaced by another tensor of this shape"
    return changed


def stacked_rows(built: nn.Module) -> tuple[MappingRow, ...]:
    """The rows of every ``WeightsMapper`` in the model that fuse tensors (``orig_to_new_stacked``)."""
    mappers: list[Any] = [mapper for module in built.modules() if (mapper := getattr(module, "hf_to_vllm_mapper", None))]
    return tuple(dict.fromkeys(MappingRow(old, *new) for mapper in mappers for old, new in mapper.orig_to_new_stacked.items()))


def _row_of(copy: Copy, stacked: tuple[MappingRow, ...]) -> MappingRow | None:
    """The mapper's row for a copied tensor, else a row of the parts in which both names differ; None if the names are equal."""
    if copy.tensor == copy.parameter:
        return None
    for row in stacked:
        if row.from_ in copy.tensor and copy.tensor.replace(row.from_, row.to, 1) == copy.parameter and row.shard == copy.shard:
            return row
    theirs, ours = copy.tensor.split("."), copy.parameter.split(".")
    for end in (0, -1):
        while theirs and ours and theirs[end] == ours[end]:
            del theirs[end], ours[end]
    return MappingRow("." + ".".join(theirs), "." + ".".join(ours), copy.shard)


def _record(copy: Copy, recorder: CopyRecorder, model: Model, stacked: tuple[MappingRow, ...], rank: int, size: int) -> Record:
    stored = model.stored.get(copy.tensor)
    parameter = recorder.parameters[copy.parameter]
    return Record(
        tensor=copy.tensor,
        shape=tuple(recorder.tensors[copy.tensor].shape),
        dtype=stored.dtype if stored else None,
        file=stored.file.name if stored else None,
        bytes=stored.bytes if stored else None,
        mapping=_row_of(copy, stacked),
        parameter=copy.parameter,
        parameter_shape=tuple(parameter.shape),
        parameter_dtype=str(parameter.dtype).removeprefix("torch."),
        destination=copy.destination,
        source=copy.source,
        tp_rank=rank,
        tp_size=size,
    )
