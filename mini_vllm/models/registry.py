"""Which architecture is built by whom: the only door through which a model comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mini_vllm.contract import Model
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError

Factory = Callable[[Mapping[str, Any], Checkpoint], Model]
"""Takes config.json's object and the checkpoint, returns an object with ``forward``. It runs with torch's default dtype set
to the one that the model is to be served in."""

PLUGINS = "mini_vllm.general_plugins"
"""The entry-point group of packages that bring an architecture; the same shape as vLLM's ``vllm.general_plugins``."""

BUILT_IN = {
    "LlamaForCausalLM": "mini_vllm.models.llama",
    "MistralForCausalLM": "mini_vllm.models.mistral",
    "Qwen2ForCausalLM": "mini_vllm.models.qwen2",
    "Qwen3ForCausalLM": "mini_vllm.models.qwen3",
}
"""Architecture, which is the class's name too, -> module; imported when it is asked for, as in vLLM's registry."""


def _built_in(architecture: str) -> Factory:
    return lambda config, checkpoint: getattr(import_module(BUILT_IN[architecture]), architecture).from_checkpoint(
        config, checkpoint
    )


_factories: dict[str, Factory] = {architecture: _built_in(architecture) for architecture in BUILT_IN}


def register_model(architecture: str, factory: Factory) -> None:
    """Makes ``architecture``, as config.json's "architectures" names it, servable; a later registration replaces an earlier."""
    _factories[architecture] = factory


def build_model(config: Mapping[str, Any], checkpoint: Checkpoint) -> Model:
    """The model that a checkpoint's config.json asks for.

    Raises:
        CheckpointError: no architecture is named, or none of the named is known (the message lists those that are), or an
            installed plugin fails.
    """
    load_plugins()
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"{checkpoint.folder}/config.json has architectures {architectures!r}; a list of names is needed")
    for architecture in architectures:
        if architecture in _factories:
            return _factories[architecture](config, checkpoint)
    named = " or ".join(map(repr, architectures)) or "no architecture"
    raise CheckpointError(
        f"{checkpoint.folder}/config.json names {named}, and the engine knows {', '.join(sorted(_factories))}; "
        "register_model(name, factory) adds one"
    )


@cache
def load_plugins() -> None:
    """Runs every installed plugin's registration function, once.

    Raises:
        CheckpointError: one fails; the message names it, and the package that brings it.
    """
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()()
        except Exception as error:
            package = plugin.dist.name if plugin.dist else "a package"
            raise CheckpointError(
                f"the plugin {plugin.name!r} of {package} fails in {plugin.value}: {type(error).__name__}: {error}; "
                f"mend it, or uninstall it: pip uninstall {package}"
            ) from error
