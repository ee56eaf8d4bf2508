"""The live part: builds the real vLLM ``LlamaForCausalLM`` as rank r of n in this one process, and records its load.

Imports vLLM, which takes about ten seconds; ``labkit.trace`` imports this module only when it traces.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import vllm
from safetensors import safe_open
from torch import Tensor
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
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.utils.torch_utils import set_default_torch_dtype

from labkit.trace.known import ARCHITECTURE, Model
from labkit.trace.recorder import Copy, CopyRecorder
from labkit.trace.records import MappingRow, Record, Shape, Trace, TraceError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The element types of a checkpoint that is not quantized, as safetensors calls them."""


def trace(model: Model, tp_size: int, ranks: tuple[int, ...], device: str | None, progress: Callable[[str], None]) -> Trace:
    """Loads ``model`` once per rank and returns what was copied where; see ``labkit.trace.trace_load``."""
    target, label = _place(model, device)
    dtype = _dtype(model)
    records: list[Record] = []
    parameter_shapes: dict[str, Shape] = {}
    with _group_of_one():
        for rank in ranks:
            progress(f"loading {model.name} as rank {rank} of {tp_size}")
            with as_rank(rank, tp_size):
                llama = build(model.directory, dtype, target)
            recorder = record_load(llama, model, dtype, f"rank {rank} of {tp_size}")
            records += (_record(copy, recorder, llama, rank, tp_size) for copy in recorder.copies)
            parameter_shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
    return Trace(vllm.__version__, torch.__version__, label, model.name, tuple(records), model.shapes, parameter_shapes)


def _place(model: Model, device: str | None) -> tuple[torch.device, str]:
    """The device for the parameters, and how the trace names it."""
    if not model.files:
        if device is not None:
            raise TraceError(f"{model.name} has no weights to put on {device}; give a directory that has safetensors files")
        return torch.device("meta"), "meta"
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if target.type != "cuda":
        return target, str(target)
    if not torch.cuda.is_available():
        raise TraceError("there is no CUDA device that this torch can use; leave the device out to trace on the CPU")
    target = torch.device("cuda", target.index or 0)
    return target, f"{target} ({torch.cuda.get_device_name(target)})"


def _dtype(model: Model) -> torch.dtype:
    """The element type the parameters get: that of the checkpoint's first tensor, so that nothing is rounded on the way."""
    if not model.files:
        return torch.bfloat16
    with safe_open(model.files[0], framework="pt") as tensors:
        name = next(iter(tensors.keys()))
        stored = tensors.get_slice(name).get_dtype()
    if stored not in DTYPES:
        raise TraceError(f"{name} is stored as {stored}; traced are checkpoints of {', '.join(DTYPES)}")
    return DTYPES[stored]


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


def build(directory: Path, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """The real class with uninitialised parameters on ``device``, as the engine would build it.

    Raises:
        TraceError: vLLM refuses the config; says so in vLLM's words.
    """
    # The class itself in place of its path: else vLLM inspects it in a second process and imports everything there again.
    ModelRegistry.register_model(ARCHITECTURE, LlamaForCausalLM)
    try:
        model_config = ModelConfig(str(directory), tokenizer=None, skip_tokenizer_init=True, dtype=dtype, enforce_eager=True)
        config = VllmConfig(model_config=model_config)
        with set_current_vllm_config(config), set_default_torch_dtype(dtype), device:
            return LlamaForCausalLM(vllm_config=config)
    except Exception as error:
        raise TraceError(f"vLLM {vllm.__version__} refused the config in {directory}: {_words(error)}") from error


def record_load(llama: LlamaForCausalLM, model: Model, dtype: torch.dtype, who: str) -> CopyRecorder:
    """Runs the real ``load_weights`` over the checkpoint, then the real check for parameters left out.

    Raises:
        TraceError: vLLM refuses the load, or a parameter does not hold what was copied into it.
    """
    recorder = CopyRecorder(dict(llama.named_parameters()))
    refused = f"vLLM {vllm.__version__} refused the load as {who}"
    try:
        with recorder:
            loaded = llama.load_weights(recorder.watch(_tensors(model, dtype)))
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(f"{refused}: {_words(error)}; {_at(recorder, llama)}") from error
    try:
        DefaultModelLoader(LoadConfig()).track_weights_loading(llama, loaded)
    except Exception as error:
        raise TraceError(f"{refused}: {_words(error)}; is a file of the checkpoint missing?") from error
    if model.files:
        recorder.check_values()
    return recorder


def _tensors(model: Model, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors one after the other: shapes without values where it has no files."""
    if not model.files:
        for name, shape in model.shapes.items():
            yield name, torch.empty(shape, dtype=dtype, device="meta")
    for file in model.files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _record(copy: Copy, recorder: CopyRecorder, llama: LlamaForCausalLM, rank: int, size: int) -> Record:
    rows = llama.hf_to_vllm_mapper.orig_to_new_stacked
    return Record(
        tensor=copy.tensor,
        shape=tuple(recorder.tensors[copy.tensor].shape),
        mapping=next((MappingRow(old, *new) for old, new in rows.items() if old in copy.tensor and new[1] == copy.shard), None),
        parameter=copy.parameter,
        parameter_shape=tuple(recorder.parameters[copy.parameter].shape),
        destination=copy.destination,
        source=copy.source,
        tp_rank=rank,
        tp_size=size,
    )


def _words(error: Exception) -> str:
    """What vLLM said, without the list of all parameters that it may append."""
    said = str(error).split(" The available parameters")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__} without a message"


def _at(recorder: CopyRecorder, llama: LlamaForCausalLM) -> str:
    """Where the load stood when it failed: the tensor handed over last, and the parameter it was meant for."""
    if not recorder.tensors:
        return "no tensor had been read"
    name, tensor = list(recorder.tensors.items())[-1]
    last = f"the last tensor it took was {name} {tuple(tensor.shape)}"
    target = llama.hf_to_vllm_mapper.map_name(name)
    if target not in recorder.parameters:
        return last
    return f"{last}, meant for {target} {tuple(recorder.parameters[target].shape)}"
