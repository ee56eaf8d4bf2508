"""Builds vLLM's real class for a model in this one process as rank r of n, as the engine does before it loads weights."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
import vllm
from torch import nn
from vllm import ModelRegistry, envs
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    get_tp_group,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.registry import _OOT_SUPPORTED_MODELS, _PREVIOUSLY_SUPPORTED_MODELS
from vllm.platforms import current_platform
from vllm.plugins import DEFAULT_PLUGINS_GROUP
from vllm.utils.torch_utils import set_default_torch_dtype

from labkit.checkpoints.known_models import Model
from labkit.load.library_output import describe_error
from labkit.system.errors import UserError

DTYPES = {
    **{"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8},
    **{"I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}
"""The element types of checkpoint tensors, by safetensors' names."""
# Words in the error message of a class that cannot be built without a GPU.
NEEDS_GPU = re.compile(r"\b(cuda|gpu|nvidia|rocm|hip|triton)\b", re.IGNORECASE)


def choose_device(model: Model, device: str | None) -> tuple[torch.device, str]:
    """The device for the parameters, and the device's name in a trace; raises UserError if the device cannot be used."""
    if device == "meta" or not model.files:
        if device not in (None, "meta"):
            raise UserError(f"{model.name} has no weights to put on {device}; give a directory that has safetensors files")
        return torch.device("meta"), "meta"
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in ("cpu", "cuda"):
        raise UserError(f"{device} is not a device for parameters; give cpu, cuda, or meta for shapes alone")
    if target.type == "cpu":
        return target, str(target)
    if not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; leave out --device to trace on the CPU")
    target = torch.device("cuda", target.index or 0)
    return target, f"{target} ({torch.cuda.get_device_name(target)})"


def parameter_dtype(model: Model) -> torch.dtype:
    """The element type to build parameters with: BF16, F16 or F32, whichever has most bytes in the checkpoint; BF16 if none."""
    sizes = {"BF16": 0, "F16": 0, "F32": 0}
    for name, tensor in model.stored.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{name} has type {tensor.dtype}; ./lab loads only {', '.join(DTYPES)}: convert it to one of them")
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.bytes[1] - tensor.bytes[0]
    return DTYPES[max(sizes, key=lambda name: sizes[name])]


@contextmanager
def group_of_one() -> Iterator[None]:
    """Initializes vLLM's process groups with this process as their only member, and destroys them at the end.

    Does nothing inside another ``group_of_one``; use one around several loads, because destroying the groups takes a tenth of a
    second. Raises UserError if this is vLLM's build for CUDA and the machine has no GPU.
    """
    if torch.distributed.is_initialized():
        yield
        return
    if not current_platform.device_type:
        raise UserError(
            f"this is the CUDA build of vLLM {vllm.__version__}, which builds models only on a GPU, and it finds no GPU here; "
            "run ./lab doctor, which says what is missing, or use the CPU build (in a separate work tree, or the cpu image)"
        )
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()), ExitStack() as cleanup:
        cleanup.callback(destroy_distributed_environment)
        cleanup.callback(destroy_model_parallel)
        init_distributed_environment(1, 0, Path(folder, "rendezvous").as_uri(), 0, "gloo")
        initialize_model_parallel(1, 1)
        yield


def as_rank(rank: int, size: int) -> AbstractContextManager[Any]:
    """A context manager: sets the rank and the size of the tensor-parallel group that layers read; restores them at the end.

    Most layers read rank and size once, when they are built; Mamba layers read them again while they load. Neither building nor
    loading communicates.
    """
    return mock.patch.multiple(get_tp_group(), rank_in_group=rank, world_size=size)


def build(model: Model, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, ModelConfig]:
    """Builds vLLM's class with uninitialized parameters on ``device``; returns the model and the config it was built from.

    Raises UserError, with vLLM's message, if vLLM has no such architecture, cannot import the class or refuses the config.
    """
    found = _class_for(model)
    try:
        config = ModelConfig(
            str(model.directory),
            tokenizer=None,
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=True,
            trust_remote_code=model.trust_remote_code,
        )
        whole = VllmConfig(model_config=config)
        with set_current_vllm_config(whole), set_default_torch_dtype(dtype), device:
            built = initialize_model(whole, model_class=found)
            elsewhere = [each for each in built.parameters() if device.type == "meta" != each.device.type]
            for parameter in elsewhere:  # vLLM's Transformers backend ignores the device
                moved = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                vars(moved).update(vars(parameter))  # such as its weight_loader
                torch.utils.swap_tensors(parameter, moved)  # type: ignore[no-untyped-call]
            return built, config
    except Exception as error:
        message = describe_error(error)
        if current_platform.is_cpu() and NEEDS_GPU.search(message):
            message += "; it needs a GPU to be built, so try on a machine that has one"
        raise UserError(f"vLLM {vllm.__version__} refused the config in {model.directory}: {message}") from error


def _class_for(model: Model) -> type[nn.Module] | None:
    """The class that will load the model; None if vLLM wraps the class of transformers.

    Registers the class object in place of its import path: for a path, vLLM inspects the class in a second process, which
    imports everything again.
    """
    architecture = model.architecture
    if model.arch:
        found = _named_class(model.arch)
    else:
        registered = ModelRegistry.models.get(architecture)
        if registered is None:
            if hasattr(transformers, architecture) or (model.trust_remote_code and "auto_map" in model.config):
                return None
            raise UserError(_unknown_architecture(model))
        try:
            found = registered.load_model_cls()
        except Exception as error:
            said = f"vLLM {vllm.__version__} cannot import its class for {architecture} here: {describe_error(error)}"
            advice = "try where its packages are installed, on a machine with a GPU if it needs one"
            raise UserError(f"{said}; {advice}") from error
    try:
        ModelRegistry.register_model(architecture, found)
    except Exception as error:
        raise UserError(f"vLLM {vllm.__version__} cannot register {found.__qualname__}: {describe_error(error)}") from error
    return found


def class_name(model: Model) -> str:
    """The full name of the class that loads the model, or ``vLLM's Transformers backend``."""
    registered = ModelRegistry.models.get(model.architecture)
    if registered is None:
        return "vLLM's Transformers backend"
    found = getattr(registered, "model_cls", None)
    return f"{found.__module__}.{found.__qualname__}" if found else f"{registered.module_name}.{registered.class_name}"


def _named_class(name: str) -> type[nn.Module]:
    """Imports the class ``module:Class``; searches the working directory first, as Python does for a script."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"{name!r} names no class; say it as MODULE:CLASS, for instance my_package.my_model:MyForCausalLM")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        said = f"{name} cannot be imported: {describe_error(error)}"
        raise UserError(f"{said}; Python searches {Path.cwd()} and the installed packages") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{name} is not a subclass of torch's nn.Module, and vLLM builds nothing else; name the model's class")
    return found


def _unknown_architecture(model: Model) -> str:
    architecture = model.architecture
    unknown = f"vLLM {vllm.__version__} knows no architecture {architecture}"
    if version := _PREVIOUSLY_SUPPORTED_MODELS.get(architecture):
        return f"{unknown}; load it with vLLM {version}, the last version that knew it"
    if plugin := _OOT_SUPPORTED_MODELS.get(architecture):
        return f"{unknown} any more; install the plugin for it from {plugin}"
    if "auto_map" in model.config:
        code = f"config.json names code in the checkpoint's folder ({', '.join(sorted(model.config['auto_map']))})"
        return f"{unknown}, and {code}, which is not run without --trust-remote-code"
    near = difflib.get_close_matches(architecture, ModelRegistry.models, n=3)
    known = f"the nearest it knows: {', '.join(near)}" if near else f"it knows {len(ModelRegistry.models)} others"
    return f"{unknown}; {known}"


def load_plugins() -> list[str]:
    """Runs the installed vLLM plugins, as vLLM's engine does; returns a sentence for each plugin that fails."""
    failed = []
    for plugin in entry_points(group=DEFAULT_PLUGINS_GROUP):
        try:
            if envs.VLLM_PLUGINS is None or plugin.name in envs.VLLM_PLUGINS:
                plugin.load()()
        except Exception as error:
            said = f"the plugin {plugin.name} ({plugin.value}) failed: {describe_error(error)}"
            failed.append(f"{said}; vLLM only logs this, and does not know the architectures that the plugin registers")
    return failed
