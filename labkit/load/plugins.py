"""Out-of-tree plugins for vLLM: writes the files of an installed plugin, and finds the reason why vLLM cannot serve it.

Only ``missing_methods`` and ``examine`` import torch or vLLM.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from labkit.load.library_output import describe_error
from labkit.system.errors import UserError

GROUP = "vllm.general_plugins"
"""The group of entry points that every process of vLLM loads: DEFAULT_PLUGINS_GROUP (vllm/plugins/__init__.py:18)."""

MODEL_METHODS: dict[str, tuple[str, ...]] = {
    "__init__": ("vllm_config", "prefix"),
    "embed_input_ids": ("input_ids",),
    "forward": ("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    "compute_logits": ("hidden_states",),
    "load_weights": ("weights",),
}
"""The methods that vLLM calls on a model that generates text, with their arguments by name: VllmModel
(vllm/model_executor/models/interfaces_base.py:47) and its subclasses."""


class PluginError(UserError):
    """A plugin cannot be found, loaded or served. Shown in place of vLLM's own error, which does not name the plugin's fault."""


def write_plugin(source: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], folder: Path) -> Path:
    """Writes into ``folder`` the files that pip installs for a package with one module; returns ``folder``.

    Raises PluginError if the entry points do not have the form below, or none is in GROUP.

    Args:
        name: the name of the package and of the module, a copy of the file ``source``.
        entry_points: group -> name -> "module:function", as under [project.entry-points] in pyproject.toml.
        folder: created if it does not exist; importlib.metadata finds the package if ``folder`` is on ``sys.path``.
    """
    lines = []
    for group, points in entry_points.items():
        if not isinstance(points, Mapping):
            raise PluginError(
                f"the group {group!r} is {points!r}; it must be a mapping from the plugin's name to 'module:function'"
            )
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    if not entry_points.get(GROUP):
        raise PluginError(
            f"there is no entry point in the group {GROUP!r}, the one that vLLM reads for models; "
            f"the package has {', '.join(map(repr, entry_points)) or 'no group at all'}"
        )
    installed = folder / f"{name}-0.1.dist-info"
    installed.mkdir(parents=True)
    (folder / f"{name}.py").write_bytes(source.read_bytes())
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def missing_methods(model: type) -> list[str]:
    """The methods and arguments of MODEL_METHODS that a class lacks, in its order, as text: ``compute_logits(hidden_states)``."""
    from torch import nn

    missing = []
    for name, arguments in MODEL_METHODS.items():
        method = getattr(model, name, None)
        if not callable(method) or method is getattr(nn.Module, name, None):
            missing.append(f"{name}({', '.join(arguments)})")
            continue
        given = inspect.signature(method).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values())
        if lacking := [argument for argument in arguments if argument not in given and not takes_any]:
            missing.append(f"{name} with an argument called {' and one called '.join(lacking)}")
    return missing


@contextmanager
def _blamed(fault: str, advice: str) -> Iterator[None]:
    """Turns any exception in the block into a PluginError: ``fault``, the exception, and ``advice``."""
    try:
        yield
    except Exception as error:
        raise PluginError(f"{fault}: {describe_error(error)}; {advice}") from error


def examine(folder: Path, architecture: str) -> None:
    """Raises PluginError, naming the fault, if a fault of the plugin in ``folder`` stops vLLM from serving ``architecture``.

    Runs the plugin's code in this process, which should end afterwards.
    """
    from vllm import ModelRegistry

    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    logged = 'vLLM only logs that ("Failed to load plugin") and continues without the plugin'
    for package in metadata.distributions(path=[str(folder)]):
        for point in package.entry_points.select(group=GROUP):
            advice = f"{logged}: check the names of the module and of the function"
            with _blamed(f"the entry point {point.name} = {point.value} cannot be loaded", advice):
                register = point.load()
            advice = "every process of vLLM calls it, and it must allow more than one call"
            for time in ("", " a second time"):
                with _blamed(f"{point.value} fails when it is called{time}", advice):
                    register()
    registered = ModelRegistry.models.get(architecture)
    if registered is None:
        near = difflib.get_close_matches(architecture, ModelRegistry.models, n=1)
        nearest = f"; the nearest registered name: {near[0]}" if near else ""
        raise PluginError(
            f"config.json asks for {architecture}, which no plugin has registered{nearest}; the first argument of "
            'ModelRegistry.register_model is the name that config.json has under "architectures"'
        )
    advice = 'the second argument of ModelRegistry.register_model is the class, or "module:Class"'
    with _blamed(f"{architecture} is registered, but its class cannot be imported", advice):
        model = registered.load_model_cls()
    if missing := missing_methods(model):
        raise PluginError(f"{model.__name__} has no {', no '.join(missing)}; vLLM calls {', '.join(MODEL_METHODS)}")
