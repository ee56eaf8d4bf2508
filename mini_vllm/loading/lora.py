"""Loads a LoRA adapter from a directory that peft's save_pretrained wrote, after comparing all of it with the model.

    adapter_config.json          r, lora_alpha, target_modules, ...
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight (r, in) and base_model.model.MODULE.lora_B.weight (out, r)

MODULE is the name in the base checkpoint, so the model's mapping rows translate it to a layer's name.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mini_vllm.layers.embedding import ParallelLMHead
from mini_vllm.layers.linear import LinearBase
from mini_vllm.layers.lora import LoRALayerWeights
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json
from mini_vllm.loading.loader import Target, target_name
from mini_vllm.loading.mapping import translate
from mini_vllm.parallel import Shard

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

REFUSED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""Keys of adapter_config.json that mean more than two matrices per linear layer: refused unless false, empty or null."""

INITS_WITHOUT_BASE_CHANGE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that do not change the base weights; an adapter with any other value needs a changed base."""


class AdapterError(CheckpointError):
    """An adapter does not fit the model or is not supported; nothing of it was loaded. The message has names and shapes."""


@dataclass(frozen=True)
class LoRAConfig:
    """Settings in adapter_config.json; named as in peft.

    Attributes:
        target_modules: suffixes of the adapter's module names; empty when the file has a pattern instead of a list.
        rank_pattern: suffix of module names -> r of these modules; ``alpha_pattern`` the same for lora_alpha.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_model_name_or_path: str

    @classmethod
    def read(cls, folder: Path) -> LoRAConfig:
        """Reads a directory's adapter_config.json; raises AdapterError if it is missing or not supported."""
        if not (folder / CONFIG).is_file():
            raise AdapterError(f"there is no {CONFIG} in {folder}; lora_path is a directory that peft's save_pretrained wrote")
        config = read_json(folder / CONFIG)

        def value(key: str, default: Any, fits: Callable[[Any], bool], wanted: str) -> Any:
            found = config.get(key)
            found = default if found is None else found
            if not fits(found):
                raise AdapterError(f"{folder / CONFIG} has {key} = {found!r}; {wanted}")
            return found

        value("peft_type", "LORA", lambda kind: kind == "LORA", "only LORA adapters are served")
        value("bias", "none", lambda bias: bias == "none", "only 'none' is served: train the adapter without biases")
        for key in REFUSED:
            value(key, False, lambda asked: not asked, "only plain LoRA is served: train the adapter without it")
        changed_base = "it needs a base that peft changed: save the adapter with path_initial_model_for_weight_conversion"
        value("init_lora_weights", True, lambda init: init in INITS_WITHOUT_BASE_CHANGE, changed_base)
        targets = value("target_modules", [], _names_or_pattern, "it must be a list of module names or a pattern")
        return cls(
            r=value("r", None, _rank, "it must be a whole number from 1 up"),
            lora_alpha=value("lora_alpha", None, _number, "it must be a number"),
            use_rslora=value("use_rslora", False, lambda flag: isinstance(flag, bool), "it must be true or false"),
            target_modules=() if isinstance(targets, str) else tuple(targets),
            rank_pattern=value("rank_pattern", {}, _by_name(_rank), "it must map module names to whole numbers from 1 up"),
            alpha_pattern=value("alpha_pattern", {}, _by_name(_number), "it must map module names to numbers"),
            base_model_name_or_path=str(config.get("base_model_name_or_path")),
        )

    def rank(self, module: str) -> int:
        """Returns the rank r of the module's two matrices: from rank_pattern if a suffix matches, else r."""
        return next((r for name, r in self.rank_pattern.items() if _ends_in(module, name)), self.r)

    def scaling(self, module: str) -> float:
        """Returns the factor s of a module's product; use_rslora: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor"."""
        alpha = next((alpha for name, alpha in self.alpha_pattern.items() if _ends_in(module, name)), self.lora_alpha)
        r = self.rank(module)
        return alpha / (math.sqrt(r) if self.use_rslora else r)


def load_lora(model: object, lora_id: int, folder: Path) -> None:
    """Adds an adapter to a model's linear layers, for requests with ``lora_id``; each rank loads its shard.

    Raises:
        AdapterError: the adapter is not supported, or does not fit the model; the model is unchanged.
        CheckpointError: a file of the adapter is damaged; the model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise AdapterError(f"the model, a {type(model).__name__}, has no linear layers for the adapter in {folder}")
    config = LoRAConfig.read(folder)
    if (folder / PICKLE).exists() and not (folder / TENSORS).exists():
        raise AdapterError(
            f"{folder} holds {PICKLE} and no {TENSORS}: the first is a pickle, which can run anything and is never read; "
            "load it with peft where you trust it, and save_pretrained() it again"
        )
    checkpoint = Checkpoint(folder, TENSORS)
    modules, faults = _modules(checkpoint)
    again = checkpoint.stored_again.items()
    faults += [f"{name} is in {file} too, and not only in {checkpoint.file(name)}" for name, (file, *_) in again]
    rows, named = getattr(model, "stacked_params_mapping", ()), dict(model.named_modules())
    places: dict[Target, _Place] = {}
    for module in modules:
        target = translate(f"{module}.weight", rows)
        place = _place(module, target, named.get(target[0].removesuffix(".weight")))
        if isinstance(place, str):
            faults.append(place)
        elif target in places:
            faults.append(f"{module} and {places[target].module} both go to {target_name(target)}")
        else:
            places[target] = place
            faults += _wrong_shapes(checkpoint, module, target_name(target), place.shard.shape, config.rank(module))
    faults += [
        f"{CONFIG} has {name!r} among its target_modules, and {TENSORS} no tensors of a module of that name"
        for name in config.target_modules
        if not any(_ends_in(module, name) for module in modules)
    ]
    if faults:
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise AdapterError(
            f"the adapter in {folder} does not fit the model: {faults[0]}{more}; nothing was loaded; serve the model that "
            f"the adapter was trained on, {config.base_model_name_or_path!r}"
        )
    read: dict[LinearBase, list[tuple[Shard, Tensor, Tensor]]] = {}
    for place in places.values():
        a, b = (checkpoint[_tensor(place.module, letter)].float() for letter in "AB")
        read.setdefault(place.layer, []).append((place.shard, a, b * config.scaling(place.module)))
    # Every file was read above, so that no error can leave an adapter in some of the layers only.
    for layer, weights in [(layer, _fused(layer, parts)) for layer, parts in read.items()]:
        layer.lora[lora_id] = weights


class _Place(NamedTuple):
    module: str
    layer: LinearBase
    shard: Shard


def _modules(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Returns the names of the modules that have a lora_A or a lora_B, and messages about wrong or missing tensors."""
    tensors = {name: re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name) for name in checkpoint}
    faults = [f"{name} is no linear layer's lora_A.weight or lora_B.weight" for name, found in tensors.items() if not found]
    modules = list(dict.fromkeys(found[1] for found in tensors.values() if found))
    for module in modules:
        lacking = [_tensor(module, letter) for letter in "AB" if _tensor(module, letter) not in tensors]
        faults += [f"{name} is not in {TENSORS}, and its other matrix is" for name in lacking]
    return modules, faults if tensors else [f"{TENSORS} has no tensors"]


def _tensor(module: str, letter: str) -> str:
    return f"base_model.model.{module}.lora_{letter}.weight"


def _place(module: str, target: Target, layer: nn.Module | None) -> _Place | str:
    """Returns the layer and the shard that a module's lora_A and lora_B belong to, or an error message."""
    if layer is None:
        return f"{module} goes to {target_name(target)}, which the model does not have"
    if not isinstance(layer, LinearBase) or isinstance(layer, ParallelLMHead):
        return f"{module} is a {type(layer).__name__}, and only the linear layers between embedding and head take adapters"
    shards = layer.shards("weight")
    if target[1] not in shards:
        return f"{module} is a fused layer of {', '.join(map(str, shards))}, and needs a lora_A and a lora_B for each of them"
    return _Place(module, layer, shards[target[1]])


def _wrong_shapes(checkpoint: Checkpoint, module: str, target: str, shape: tuple[int, ...], r: int) -> Iterator[str]:
    for letter, takes in (("A", (r, shape[1])), ("B", (shape[0], r))):
        name = _tensor(module, letter)
        if name in checkpoint and checkpoint.shape(name) != takes:
            yield f"{name} is {checkpoint.shape(name)}, and {target}, {shape}, takes {takes} with r = {r}"


def _fused(layer: LinearBase, parts: Sequence[tuple[Shard, Tensor, Tensor]]) -> LoRALayerWeights:
    """Returns this rank's part of one A and one B, fused from the A and B of each projection as layers/lora.py shows."""
    lora_a, lora_b, first = [], layer.weight.new_zeros(layer.output_size, sum(len(a) for _, a, _ in parts)), 0
    for shard, a, b in parts:
        sharded_by_outputs = shard.dim == 0
        rows = slice(*shard.target) if sharded_by_outputs else slice(None)
        lora_a.append(a if sharded_by_outputs else shard.take(a))
        lora_b[rows, first : first + len(a)] = shard.take(b) if sharded_by_outputs else b
        first += len(a)
    return LoRALayerWeights(torch.cat(lora_a).to(lora_b), lora_b)


def _ends_in(module: str, name: str) -> bool:
    """Whether a name in adapter_config.json is the module's full name or its last parts, as in peft."""
    return f".{module}".endswith(f".{name}")


def _names_or_pattern(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= sys.float_info.max


def _by_name(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns a check of {name: value}. Names only: peft allows patterns, but an untrusted pattern can take hours to match."""
    return lambda value: (
        isinstance(value, dict) and all(re.fullmatch(r"[\w.]+", name) and fits(own) for name, own in value.items())
    )
