"""The real vLLM class of a model, built in this one process as rank r of n: the way of the engine up to the load."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import vllm
from pydantic import ValidationError
from torch import nn
from vllm import ModelRegistry
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    get_tp_group,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from labkit.trace.known import Model
from labkit.trace.records import TraceError

DTYPES = {
    **{"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8},
    **{"I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}
"""The element types of checkpoint tensors, as safetensors calls them."""

COMPUTED_IN = ("BF16", "F16", "F32")
"""Those of them that vLLM computes in."""


def place(model: Model, device: str | None) -> tuple[torch.device, str]:
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


def parameter_dtype(model: Model) -> torch.dtype:
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
def group_of_one() -> Iterator[None]:
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
        raise TraceError(f"{refused}: {said_by(error)}") from error


def said_by(error: Exception) -> str:
    """What vLLM said, without the list of all parameters that it may append, and without pydantic's frame around it."""
    said = "; ".join(fault["msg"] for fault in error.errors()) if isinstance(error, ValidationError) else str(error)
    said = said.split(" The available parameters")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__} without a message"
