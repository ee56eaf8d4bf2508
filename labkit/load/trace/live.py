"""The live part: runs the real vLLM's load of a checkpoint, rank after rank in this one process, and records it.

Imports vLLM, which takes about ten seconds; ``labkit.load.trace`` imports this module only when it traces.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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

from labkit.checkpoints.headers import Shape, read_header
from labkit.checkpoints.known_models import Model
from labkit.load.trace.build import DTYPES, as_rank, build, group_of_one, load_plugins, parameter_dtype, place, said_by
from labkit.load.trace.recorder import Copy, CopyRecorder
from labkit.load.trace.records import Fill, LoadRefused, MappingRow, Record, Trace
from labkit.system.errors import UserError
from labkit.system.labs import ROOT

PINNED_TORCH = re.findall(r"^torch=+([\d.]+)", (ROOT / "requirements" / "torch-cpu.in").read_text(), re.MULTILINE)[0]


Tensors = Iterable[tuple[str, Tensor]]
"""A checkpoint as a loader takes it, names and tensors."""


def trace(
    model: Model,
    tp_size: int,
    ranks: Sequence[int],
    device: str | None,
    progress: Callable[[str], None],
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Trace:
    """Loads ``model`` once per rank and returns what was copied where; see ``labkit.load.trace.trace_load``.

    Args:
        change: what is done with the names before the class sees them.
    """
    target, label = place(model, device)
    dtype = parameter_dtype(model)
    records: list[Record] = []
    fills: list[Fill] = []
    rounded: dict[str, None] = {}
    parameter_shapes: dict[str, Shape] = {}
    repacked: dict[str, str] = {}
    not_run = dict.fromkeys([*_what_is_amiss(), *load_plugins()])
    head_size: int | None = None
    with group_of_one(), _frozen_heap():
        for rank in ranks:
            progress(f"loading {model.name} as rank {rank} of {tp_size}")
            with as_rank(rank, tp_size):
                built, config = build(model, dtype, target)
                recorder = record_load(built, model, dtype, target, f"rank {rank} of {tp_size}", change)
            mapping = mapping_rows(built)
            records += (_record(copy, recorder, model, mapping, rank, tp_size) for copy in recorder.copies)
            fills += (Fill(parameter, destination, rank) for parameter, destination in recorder.fills)
            head_size = _head_size(built)
            parameter_shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
            if computed := sorted({copy.tensor for copy in recorder.copies if copy.changed}):
                not_run[
                    f"the loader computes with the values of {len(computed)} tensors, such as {computed[0]}, on the way: "
                    "their parts are checked, and their values are not"
                ] = None
            if target.type != "meta":
                rounded |= dict.fromkeys(recorder.check_values())
                del recorder
                try:
                    repacked = _repacked(built, config, target)
                except Exception as error:
                    not_run[f"vLLM could not make the loaded parameters ready to serve: {said_by(error)}"] = None
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
        head_size=head_size,
    )


def _head_size(built: nn.Module) -> int | None:
    """The head size that all attention layers have."""
    sizes = {
        module.head_size for module in built.modules() if isinstance(module, AttentionLayerBase) and hasattr(module, "head_size")
    }
    return cast(int, sizes.pop()) if len(sizes) == 1 else None


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Keeps the garbage collector from going through all that the imports have brought: a third of the time of a first trace."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _what_is_amiss() -> Iterator[str]:
    """What of the pinned installation is not here; a load needs none of it, and is traced all the same."""
    if not any(Path(vllm.__file__).parent.glob("_C*.so")):
        yield f"vLLM {vllm.__version__} is here without its compiled kernels; its Python loads a model, and nothing can serve one"
    if torch.__version__.split("+")[0] != PINNED_TORCH:
        yield f"torch is {torch.__version__}, and vLLM {vllm.__version__} is built for {PINNED_TORCH}; kernels may fail"


def record_load(
    built: nn.Module,
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    who: str,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> CopyRecorder:
    """Runs the real ``load_weights`` over the checkpoint, then the real check for parameters left out.

    Raises:
        LoadRefused: vLLM refuses the load; in its words.
    """
    recorder = CopyRecorder(dict(built.named_parameters()), lambda: built.state_dict(keep_vars=True))
    refused = f"vLLM {vllm.__version__} refused the load as {who}"
    try:
        with recorder:
            loaded = cast(Any, built).load_weights(change(recorder.watch(_tensors(model, dtype, device))))
    except UserError:
        raise
    except Exception as error:
        raise LoadRefused(f"{refused}: {said_by(error)}; {_at(recorder, built)}") from error
    if "quantization_config" not in model.config:  # as the engine decides (default_loader.py:508)
        try:
            DefaultModelLoader(LoadConfig()).track_weights_loading(built, loaded)
        except Exception as error:
            raise LoadRefused(f"{refused}: {said_by(error)}; is a file of the checkpoint missing?") from error
    return recorder


def _tensors(model: Model, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors one after the other; shapes without values where the parameters have none either."""
    if not model.files:
        for name, shape in model.shapes.items():
            yield name, torch.empty(shape, dtype=dtype, device="meta")
    for file in model.files:
        if device.type == "meta":
            for name, stored in read_header(file).items():
                yield name, torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _repacked(built: nn.Module, config: ModelConfig, device: torch.device) -> dict[str, str]:
    """Lets vLLM do what it does between loading and serving; says of each parameter that is another one afterwards what it is."""
    before = {name: (parameter, described(parameter)) for name, parameter in built.named_parameters()}
    process_weights_after_loading(built, config, device)
    after = dict(built.named_parameters())
    changed = {}
    for name, (parameter, was) in before.items():
        now = after.get(name)
        if now is None:
            changed[name] = f"{was} -> gone"
        elif described(now) != was:
            changed[name] = f"{was} -> {described(now)}"
        elif now.data_ptr() != parameter.data_ptr():
            changed[name] = f"{was} -> replaced by another tensor of this shape"
    return changed


def described(parameter: Tensor) -> str:
    """``(6144, 4096) bfloat16``."""
    return f"{tuple(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')}"


def mapping_rows(built: nn.Module) -> tuple[MappingRow, ...]:
    """The rows that fuse, of every mapper in the model: ``orig_to_new_stacked`` of its ``WeightsMapper``."""
    mappers: list[Any] = [mapper for module in built.modules() if (mapper := getattr(module, "hf_to_vllm_mapper", None))]
    rows = {MappingRow(old, *new): None for mapper in mappers for old, new in mapper.orig_to_new_stacked.items()}
    return tuple(rows)


def _row_of(copy: Copy, rows: tuple[MappingRow, ...]) -> MappingRow | None:
    """The row that claimed a tensor, from a mapper; where none has it, the part in which the two names differ."""
    if copy.tensor == copy.parameter:
        return None
    for row in rows:
        if row.from_ in copy.tensor and copy.tensor.replace(row.from_, row.to, 1) == copy.parameter and row.shard == copy.shard:
            return row
    theirs, ours = copy.tensor.split("."), copy.parameter.split(".")
    while theirs and ours and theirs[0] == ours[0]:
        del theirs[0], ours[0]
    while theirs and ours and theirs[-1] == ours[-1]:
        del theirs[-1], ours[-1]
    return MappingRow("." + ".".join(theirs), "." + ".".join(ours), copy.shard)


def _record(copy: Copy, recorder: CopyRecorder, model: Model, rows: tuple[MappingRow, ...], rank: int, size: int) -> Record:
    stored = model.stored.get(copy.tensor)
    parameter = recorder.parameters[copy.parameter]
    return Record(
        tensor=copy.tensor,
        shape=tuple(recorder.tensors[copy.tensor].shape),
        dtype=stored.dtype if stored else None,
        file=stored.file.name if stored else None,
        bytes=stored.bytes if stored else None,
        mapping=_row_of(copy, rows),
        parameter=copy.parameter,
        parameter_shape=tuple(parameter.shape),
        parameter_dtype=str(parameter.dtype).removeprefix("torch."),
        destination=copy.destination,
        source=copy.source,
        tp_rank=rank,
        tp_size=size,
    )


def _at(recorder: CopyRecorder, built: nn.Module) -> str:
    """Where the load stood when it failed: the tensor handed over last, and the parameter it was meant for."""
    if not recorder.tensors:
        return "no tensor had been read"
    name, tensor = list(recorder.tensors.items())[-1]
    last = f"the last tensor it took was {name} {tuple(tensor.shape)}"
    mapper = getattr(built, "hf_to_vllm_mapper", None)
    target = mapper.map_name(name) if mapper else name
    if target not in recorder.parameters:
        return last
    return f"{last}, meant for {target} {tuple(recorder.parameters[target].shape)}"
