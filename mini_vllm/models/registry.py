"""Model registry: maps an architecture name to the function that builds the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mini_vllm.contract import Model
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError

Factory = Callable[[Mapping[str, Any], Checkpoint], Model]
"""(config.json's object, checkpoint) -> a model; called while torch's default dtype is the dtype of the model."""

PLUGINS = "mini_vllm.general_plugins"
"""Entry-point group of packages that register architectures, like vLLM's ``vllm.general_plugins``."""

BUILT_IN = {
    "LlamaForCausalLM": "mini_vllm.models.llama",
    "MistralForCausalLM": "mini_vllm.models.mistral",
    "Qwen2ForCausalLM": "mini_vllm.models.qwen2",
    "Qwen3ForCausalLM": "mini_vllm.models.qwen3",
}
"""Architecture, also the class name -> module, which is imported on first use, as in vLLM's registry."""


_factories: dict[str, Factory] = {}


def register_model(architecture: str, factory: Factory) -> None:
    """Registers ``factory`` for a name in config.json's "architectures"; replaces an earlier registration."""
    _factories[architecture] = factory


def build_model(config: Mapping[str, Any], checkpoint: Checkpoint) -> Model:
    """Builds the model that ``config`` names; CheckpointError if no architecture in it is registered, or a plugin fails."""
    load_plugins()
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"{checkpoint.folder}/config.json has architectures {architectures!r}; a list of names is needed")
    for architecture in architectures:
        if architecture in _factories:
            return _factories[architecture](config, checkpoint)
        if architecture in BUILT_IN:
            factory: Factory = getattr(import_module(BUILT_IN[architecture]), architecture).from_checkpoint
            return factory(config, checkpoint)
    named = " or ".join(map(repr, architectures)) or "no architecture"
    raise CheckpointError(
        f"{checkpoint.folder}/config.json names {named}, and the engine knows {', '.join(sorted({*BUILT_IN, *_factories}))}; "
        "register_model(name, factory) adds one"
    )


@cache
def load_plugins() -> None:
    """Calls every installed plugin's registration function once; raises CheckpointError if one fails."""
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()()
        except Exception as error:
            package = plugin.dist.name if plugin.dist else "a package"
            raise CheckpointError(
                f"the plugin {plugin.name!r} of {package} fails in {plugin.value}: {type(error).__name__}: {error}; "
                f"fix it, or uninstall it: pip uninstall {package}"
            ) from error
