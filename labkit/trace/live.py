"""The live part: builds the real vLLM class of a model as rank r of n in this one process, and records its load.

Imports vLLM, which takes about ten seconds; ``labkit.trace`` imports this module only when it traces.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import vllm
from safetensors import safe_open
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config import LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    get_tp_group,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from labkit.headers import Shape
from labkit.trace.known import Model
from labkit.trace.recorder import Copy, CopyRecorder
from labkit.trace.records import Fill, MappingRow, Record, Trace, TraceError

DTYPES = {
    **{"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8},
    **{"I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}
"""The element types of checkpoint tensors, as safetensors calls them."""

COMPUTED_IN = ("BF16", "F16", "F32")
"""Those of them that vLLM computes in."""


def trace(model: Model, tp_size: int, ranks: tuple[int, ...], device: str | None, progress: Callable[[str], None]) -> Trace:
    """Loads ``model`` once per rank and returns what was copied where; see ``labkit.trace.trace_load``."""
    target, label = _place(model, device)
    dtype = _dtype(model)
    records: list[Record] = []
    fills: list[Fill] = []
    rounded: dict[str, None] = {}
    parameter_shapes: dict[str, Shape] = {}
    repacked: dict[str, str] = {}
    with _group_of_one():
        for rank in ranks:
            progress(f"loading {model.name} as rank {rank} of {tp_size}")
            with as_rank(rank, tp_size):
                built, config = build(model, dtype, target)
            recorder = record_load(built, model, dtype, target, f"rank {rank} of {tp_size}")
            mapping = _mapping_rows(built)
            records += (_record(copy, recorder, model, mapping, rank, tp_size) for copy in recorder.copies)
            fills += (Fill(parameter, destination, rank) for parameter, destination in recorder.fills)
            parameter_shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
            if target.type != "meta":
                rounded |= dict.fromkeys(recorder.check_values())
                del recorder
                repacked = _repacked(built, config, target)
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
    )


def _place(model: Model, device: str | None) -> tuple[torch.device, str]:
    """The device for the parameters, and how the trace names it."""
    if device == "meta" or not model.files:
        if device not in (None, "meta"):
            raise TraceError(f"{model.name} has no weights to put on {device}; give a directory that has safetensors files")
        return torch.device("meta"), "meta"
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in ("cpu", "cuda"):
        raise TraceError(f"{device} is no device for parameters here; give cpu, cuda, or meta for shapes alone")
    if target.type == "cpu":
        return target, str(target)
    if not torch.cuda.is_available():
        raise TraceError("there is no CUDA device that this torch can use; leave the device out to trace on the CPU")
    target = torch.device("cuda", target.index or 0)
    return target, f"{target} ({torch.cuda.get_device_name(target)})"


def _dtype(model: Model) -> torch.dtype:
    """The element type of the parameters: that of most bytes of the checkpoint; if it is quantized, of most that is not."""
    if not model.files:
        return torch.bfloat16
    held = {name: 0 for name in COMPUTED_IN}
    for name, tensor in model.stored.items():
        if tensor.dtype not in DTYPES:
            raise TraceError(f"{name} is stored as {tensor.dtype}, which this torch does not have; known are {', '.join(DTYPES)}")
        if tensor.dtype in held:
            held[tensor.dtype] += tensor.bytes[1] - tensor.bytes[0]
    return DTYPES[max(held, key=lambda name: held[name])]


@contextmanager
def _group_of_one() -> Iterator[None]:
    """vLLM's process groups, with this process as their only member; gone afterwards, so that they can be made again."""
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()), ExitStack() as cleanup:
        cleanup.callback(destroy_distributed_environment)
        cleanup.callback(destroy_model_parallel)
        init_distributed_environment(1, 0, Path(folder, "rendezvous").as_uri(), 0, "gloo")
        initialize_model_parallel(1, 1)
        yield


@contextmanager
def as_rank(rank: int, size: int) -> Iterator[None]:
    """Lets layers that are built here take themselves for rank ``rank`` of ``size``.

    They ask the group once, when they are built, and keep the answer; neither building nor loading communicates.
    """
    group = get_tp_group()
    mine = group.rank_in_group, group.world_size
    group.rank_in_group, group.world_size = rank, size
    try:
        yield
    finally:
        group.rank_in_group, group.world_size = mine


def build(model: Model, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, ModelConfig]:
    """The real class with uninitialised parameters on ``device``, as the engine builds it, and the config it was built from.

    Raises:
        TraceError: vLLM does not know the architecture, cannot import its class, or refuses the config; in vLLM's words.
    """
    registered = ModelRegistry.models.get(model.architecture)
    if registered is None:
        near = difflib.get_close_matches(model.architecture, ModelRegistry.models, n=3)
        known = f"the nearest it knows: {', '.join(near)}" if near else f"it knows {len(ModelRegistry.models)} others"
        raise TraceError(f"vLLM {vllm.__version__} knows no architecture {model.architecture}; {known}")
    refused = f"vLLM {vllm.__version__} refused the config in {model.directory}"
    try:
        found = registered.load_model_cls()
        # The class itself in place of its path: else vLLM inspects it in a second process and imports everything there again.
        ModelRegistry.register_model(model.architecture, found)
        config = ModelConfig(str(model.directory), tokenizer=None, skip_tokenizer_init=True, dtype=dtype, enforce_eager=True)
        whole = VllmConfig(model_config=config)
        with set_current_vllm_config(whole), set_default_torch_dtype(dtype), device:
            return initialize_model(whole, model_class=found), config
    except Exception as error:
        raise TraceError(f"{refused}: {_words(error)}") from error


def record_load(built: nn.Module, model: Model, dtype: torch.dtype, device: torch.device, who: str) -> CopyRecorder:
    """Runs the real ``load_weights`` over the checkpoint, then the real check for parameters left out.

    Raises:
        TraceError: vLLM refuses the load.
    """
    recorder = CopyRecorder(dict(built.named_parameters()))
    refused = f"vLLM {vllm.__version__} refused the load as {who}"
    try:
        with recorder:
            loaded = cast(Any, built).load_weights(recorder.watch(_tensors(model, dtype, device)))
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(f"{refused}: {_words(error)}; {_at(recorder, built)}") from error
    if "quantization_config" not in model.config:  # as the engine decides (default_loader.py:508)
        try:
            DefaultModelLoader(LoadConfig()).track_weights_loading(built, loaded)
        except Exception as error:
            raise TraceError(f"{refused}: {_words(error)}; is a file of the checkpoint missing?") from error
    return recorder


def _tensors(model: Model, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors one after the other; shapes without values where the parameters have none either."""
    if device.type == "meta":
        for name, shape in model.shapes.items():
            stored = DTYPES[model.stored[name].dtype] if name in model.stored else dtype
            yield name, torch.empty(shape, dtype=stored, device="meta")
        return
    for file in model.files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _repacked(built: nn.Module, config: ModelConfig, device: torch.device) -> dict[str, str]:
    """Lets vLLM do what it does between loading and serving; says of each parameter that is another one afterwards what it is."""
    before = {name: (parameter, described(parameter)) for name, parameter in built.named_parameters()}
    try:
        process_weights_after_loading(built, config, device)
    except Exception as error:
        return {"": f"vLLM could not prepare the loaded parameters here: {_words(error)}"}
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


def _mapping_rows(built: nn.Module) -> tuple[MappingRow, ...]:
    """The rows that fuse, of every mapper in the model: ``orig_to_new_stacked`` of its ``WeightsMapper``."""
    mappers: list[Any] = [module.hf_to_vllm_mapper for module in built.modules() if hasattr(module, "hf_to_vllm_mapper")]
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


def _words(error: Exception) -> str:
    """What vLLM said, without the list of all parameters that it may append."""
    said = str(error).split(" The available parameters")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__} without a message"


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
