"""The real vLLM class of a model, built in this one process as rank r of n: the way of the engine up to the load."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import torch
import transformers
import vllm
from pydantic import ValidationError
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
from labkit.system.errors import UserError

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
            raise UserError(f"{model.name} has no weights to put on {device}; give a directory that has safetensors files")
        return torch.device("meta"), "meta"
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in ("cpu", "cuda"):
        raise UserError(f"{device} is no device for parameters here; give cpu, cuda, or meta for shapes alone")
    if target.type == "cpu":
        return target, str(target)
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device that this torch can use; leave the device out to trace on the CPU")
    target = torch.device("cuda", target.index or 0)
    return target, f"{target} ({torch.cuda.get_device_name(target)})"


def parameter_dtype(model: Model) -> torch.dtype:
    """The element type of the parameters: that of most bytes of the checkpoint; if it is quantized, of most that is not."""
    if not model.files:
        return torch.bfloat16
    held = {name: 0 for name in COMPUTED_IN}
    for name, tensor in model.stored.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{name} is stored as {tensor.dtype}, which this torch does not have; known are {', '.join(DTYPES)}")
        if tensor.dtype in held:
            held[tensor.dtype] += tensor.bytes[1] - tensor.bytes[0]
    return DTYPES[max(held, key=lambda name: held[name])]


NEEDS_GPU = re.compile(r"\b(cuda|gpu|nvidia|rocm|hip|triton)\b", re.IGNORECASE)
"""Words in what is said where a class cannot be built without one."""


@contextmanager
def group_of_one() -> Iterator[None]:
    """vLLM's process groups, with this process as their only member; gone afterwards, so that they can be made again.

    Inside of it, it is there already: whoever loads several times makes it once, for ending it takes a tenth of a second.

    Raises:
        UserError: vLLM's build does not fit the machine.
    """
    if torch.distributed.is_initialized():
        yield
        return
    if not current_platform.device_type:
        raise UserError(
            f"this is the CUDA build of vLLM {vllm.__version__}, which builds no model where it finds no GPU, and it finds none "
            "here; ./lab doctor says what is missing, and the CPU build (in a work tree of its own, or the cpu image) needs none"
        )
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()), ExitStack() as cleanup:
        cleanup.callback(destroy_distributed_environment)
        cleanup.callback(destroy_model_parallel)
        init_distributed_environment(1, 0, Path(folder, "rendezvous").as_uri(), 0, "gloo")
        initialize_model_parallel(1, 1)
        yield


@contextmanager
def as_rank(rank: int, size: int) -> Iterator[None]:
    """Lets layers that are built here take themselves for rank ``rank`` of ``size``.

    Most ask the group once, when they are built, and keep the answer; Mamba's ask again while they load. Neither building nor
    loading communicates.
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
        UserError: vLLM does not know the architecture, cannot import its class, or refuses the config; in vLLM's words.
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
            return (_all_on_meta(built) if device.type == "meta" else built), config
    except Exception as error:
        said = said_by(error)
        if current_platform.is_cpu() and NEEDS_GPU.search(said):
            said += "; it needs a GPU to be built, so try on a machine that has one"
        raise UserError(f"vLLM {vllm.__version__} refused the config in {model.directory}: {said}") from error


def _class_for(model: Model) -> type[nn.Module] | None:
    """The class that will load the model, registered as itself; None where vLLM wraps the class that transformers has.

    In place of its path: else vLLM inspects the class in a second process, and imports everything there again.
    """
    architecture = model.architecture
    if model.arch:
        found = _named_class(model.arch)
    else:
        registered = ModelRegistry.models.get(architecture)
        if registered is None:
            if hasattr(transformers, architecture) or (model.trust_remote_code and "auto_map" in model.config):
                return None
            raise UserError(_unknown(model))
        try:
            found = registered.load_model_cls()
        except Exception as error:
            raise UserError(
                f"vLLM {vllm.__version__} cannot import its class for {architecture} here: {said_by(error)}; "
                "try where its packages are installed, and a GPU is if it needs one"
            ) from error
    try:
        ModelRegistry.register_model(architecture, found)
    except Exception as error:
        raise UserError(f"vLLM {vllm.__version__} cannot register {found.__qualname__}: {said_by(error)}") from error
    return found


def class_name(model: Model) -> str:
    """The class that loads the model, in full."""
    registered = ModelRegistry.models.get(model.architecture)
    if registered is None:
        return "vLLM's Transformers backend"
    found = getattr(registered, "model_cls", None)
    if found is None:
        return f"{registered.module_name}.{registered.class_name}"
    return f"{found.__module__}.{found.__qualname__}"


def _named_class(name: str) -> type[nn.Module]:
    """The class ``module:Class``; the module is looked for in the working directory too, as Python does for a script."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"{name!r} names no class; say it as MODULE:CLASS, for instance my_package.my_model:MyForCausalLM")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(
            f"{name} cannot be imported: {said_by(error)}; Python looks for it in {Path.cwd()} and in what is installed"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{name} is no class of torch's nn.Module, and vLLM builds nothing else; name the model's class")
    return found


def _unknown(model: Model) -> str:
    """Why vLLM has no class for an architecture, and the next thing to try."""
    architecture = model.architecture
    said = f"vLLM {vllm.__version__} knows no architecture {architecture}"
    if version := _PREVIOUSLY_SUPPORTED_MODELS.get(architecture):
        return f"{said}; the last version that did was {version}"
    if plugin := _OOT_SUPPORTED_MODELS.get(architecture):
        return f"{said} any more; the plugin for it is at {plugin}"
    if "auto_map" in model.config:
        return (
            f"{said}, and config.json asks to run code that lies beside it ({', '.join(sorted(model.config['auto_map']))}), "
            "which is never done unless --trust-remote-code says so"
        )
    near = difflib.get_close_matches(architecture, ModelRegistry.models, n=3)
    known = f"the nearest it knows: {', '.join(near)}" if near else f"it knows {len(ModelRegistry.models)} others"
    return f"{said}; {known}"


def load_plugins() -> list[str]:
    """Runs the plugins of vLLM that are installed here, as its engine does; a sentence for each that fails.

    vLLM itself only logs a plugin that cannot be imported, and then knows none of its architectures.
    """
    failed = []
    for plugin in entry_points(group=DEFAULT_PLUGINS_GROUP):
        if envs.VLLM_PLUGINS is not None and plugin.name not in envs.VLLM_PLUGINS:
            continue
        try:
            plugin.load()()
        except Exception as error:
            failed.append(
                f"the plugin {plugin.name} ({plugin.value}) failed: {said_by(error)}; "
                "what it would have registered is not known to vLLM, which only logs this"
            )
    return failed


def _all_on_meta(built: nn.Module) -> nn.Module:
    """Parameters that the class itself has put elsewhere, as vLLM's Transformers backend does, as shapes like the others."""
    moved: dict[int, nn.Parameter] = {}
    for module in built.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type != "meta":
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                    vars(moved[id(parameter)]).update(vars(parameter))  # the weight_loader, and what it needs
                setattr(module, name, moved[id(parameter)])
    return built


def said_by(error: Exception) -> str:
    """What vLLM said, without the list of all parameters that it may append, and without pydantic's frame around it."""
    said = "; ".join(fault["msg"] for fault in error.errors()) if isinstance(error, ValidationError) else str(error)
    said = said.split(" The available parameters")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__} without a message"
