"""Out-of-tree plugins for vLLM: laid out as an installation would, and looked at when vLLM fails, because vLLM says little.

Nothing here imports vLLM until a plugin is examined.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from labkit.system.errors import UserError

GROUP = "vllm.general_plugins"
"""The entry points that every process of vLLM loads: its DEFAULT_PLUGINS_GROUP (vllm/plugins/__init__.py:18)."""

FIVE: dict[str, tuple[str, ...]] = {
    "__init__": ("vllm_config", "prefix"),
    "embed_input_ids": ("input_ids",),
    "forward": ("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    "compute_logits": ("hidden_states",),
    "load_weights": ("weights",),
}
"""The five methods that vLLM asks of a model that generates text, and their arguments by name: VllmModel
(vllm/model_executor/models/interfaces_base.py:47) and what was added to it since."""


class PluginError(UserError):
    """A plugin cannot be found, loaded or served; the message says why and what to look at."""


def write_plugin(source: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], folder: Path) -> Path:
    """Leaves in ``folder`` what installing a package of one module leaves in site-packages.

    Args:
        source: the module's file.
        name: what module and package are called there.
        entry_points: group -> name -> "module:function", as pyproject.toml has them under [project.entry-points].
        folder: made if need be; on ``sys.path``, importlib.metadata finds the package in it.

    Returns:
        ``folder``.

    Raises:
        PluginError: the entry points are not of this form, or none is in GROUP.
    """
    lines = []
    for group, points in entry_points.items():
        if not isinstance(points, Mapping):
            raise PluginError(
                f"the group {group!r} is {points!r}; under it stands a mapping, from the plugin's name to 'module:function'"
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
    """What of FIVE a class does not have, a few words each: ``compute_logits(hidden_states)``."""
    from torch import nn

    missing = []
    for name, arguments in FIVE.items():
        method = getattr(model, name, None)
        if not callable(method) or method is getattr(nn.Module, name, None):
            missing.append(f"{name}({', '.join(arguments)})")
            continue
        given = inspect.signature(method).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values()):
            continue
        if lacking := [argument for argument in arguments if argument not in given]:
            missing.append(f"{name} with an argument called {' and one called '.join(lacking)}")
    return missing


def examine(folder: Path, architecture: str) -> None:
    """Says why vLLM cannot serve ``architecture`` from the package in ``folder``, if that is for the plugin's sake.

    Runs the plugin in this process, which is not to be used for much else afterwards.

    Raises:
        PluginError: in a sentence, what is wrong with it.
    """
    from vllm import ModelRegistry

    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    points = [
        point for package in metadata.distributions(path=[str(folder)]) for point in package.entry_points.select(group=GROUP)
    ]
    for point in points:
        try:
            register = point.load()
        except Exception as error:
            raise PluginError(
                f"the entry point {point.name} = {point.value} cannot be loaded: {said_by(error)}; vLLM only logs that "
                '("Failed to load plugin") and goes on without the plugin, so look at the name of the module and of the function'
            ) from error
        for which in ("", " a second time"):
            try:
                register()
            except Exception as error:
                raise PluginError(
                    f"{point.value} fails when it is called{which}: {said_by(error)}; every process of vLLM calls it, and it "
                    "must work where it has worked before"
                ) from error
    registered = ModelRegistry.models.get(architecture)
    if registered is None:
        near = difflib.get_close_matches(architecture, ModelRegistry.models, n=1)
        nearest = f"; the nearest there is: {near[0]}" if near else ""
        raise PluginError(
            f"config.json asks for {architecture}, which no plugin has registered{nearest}; the first argument of "
            'ModelRegistry.register_model is the name that config.json has under "architectures"'
        )
    try:
        model = registered.load_model_cls()
    except Exception as error:
        raise PluginError(
            f"{architecture} is registered, and its class cannot be imported: {said_by(error)}; "
            'the second argument of ModelRegistry.register_model is the class, or "module:Class"'
        ) from error
    if missing := missing_methods(model):
        raise PluginError(f"{model.__name__} has no {', no '.join(missing)}; vLLM asks a model for {', '.join(FIVE)}")


def said_by(error: BaseException) -> str:
    """The exception's name and its first line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else f"{type(error).__name__} without a message"
