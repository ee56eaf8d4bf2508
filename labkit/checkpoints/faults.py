"""Fault injection: ``./lab break`` writes copies of a checkpoint with one named fault each, to test the tools that detect faults.

A fault changes only what its title says, in the last layer where that is possible.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoints.editable_checkpoint import EditableCheckpoint
from labkit.checkpoints.known_models import FAMILY, head_counts
from labkit.system.errors import UserError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION, MLP, NORM = "self_attn", "mlp", "input_layernorm"
Q, K, V, OUT = (f"{ATTENTION}.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"{MLP}.{name}_proj" for name in ("gate", "up", "down"))


@dataclass(frozen=True)
class Fault:
    """A fault that can be injected into a checkpoint.

    Attributes:
        name, title: the fault in kebab-case, as ``./lab break --fault`` takes it, and in words.
        apply: function of an EditableCheckpoint and ``arguments`` that injects the fault; raises UserError if that is impossible.
    """

    name: str
    title: str
    apply: Callable[..., None]
    arguments: tuple[Any, ...] = ()


def inject_fault(source: Path, name: str, to: Path) -> Fault:
    """Writes a copy of a checkpoint with the named fault to ``to``; returns the fault. ``source`` is not changed.

    Raises UserError if no fault has this name, the checkpoint is broken or cannot have the fault, or ``to`` cannot be written.
    """
    if name not in FAULTS:
        near = difflib.get_close_matches(name, FAULTS, n=3)
        known = f"nearest: {', '.join(near)}" if near else "./lab break --list shows all faults"
        raise UserError(f"there is no fault {name!r}; {known}")
    fault, source = FAULTS[name], source.expanduser()
    checkpoint = EditableCheckpoint.read(source)
    _check_family(checkpoint)
    try:
        fault.apply(checkpoint, *fault.arguments)
    except UserError as error:
        raise UserError(f"{name} cannot be made of this checkpoint: {error}") from error
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:  # config.json and the tensors disagree
        raise UserError(f"{name} cannot be made of this checkpoint: config.json does not fit its tensors: {error}") from error
    readme = (
        f"# A faulty copy: {name}\n\nMade by `./lab break --fault {name}` from `{source.resolve()}`.\n\n"
        f"The fault: {fault.title}. Everything else is as in the source. Do not serve this checkpoint: it is broken on purpose.\n"
    )
    checkpoint.write(to, {"fault": f"{name}: {fault.title}", "made from": str(source.resolve())}, readme)
    return fault


def _check_family(checkpoint: EditableCheckpoint) -> None:
    """Raises UserError if the architecture is not in FAMILY, or the weights are quantized or have no q_proj or no embedding."""
    named = checkpoint.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named
    if architecture not in FAMILY:
        raise UserError(f"{checkpoint.source} is of architecture {architecture}; faults are made in {', '.join(FAMILY)}")
    if "quantization_config" in checkpoint.config:
        raise UserError(
            f"{checkpoint.source} is quantized, and faults are made in plain weights; give the checkpoint it was made from"
        )
    for name in (f"{_layer(checkpoint)}.{Q}.weight", EMBED):
        if name not in checkpoint:
            raise UserError(f"{checkpoint.source} has no {name}; it is faulty already, or no checkpoint of {architecture}")


def _layer(checkpoint: EditableCheckpoint) -> str:
    """The prefix of the last layer's tensor names, such as ``model.layers.31``."""
    count = checkpoint.config.get("num_hidden_layers")
    if type(count) is not int or count < 1:
        raise UserError(f"config.json says num_hidden_layers {count!r}; it must be a whole number from 1 up")
    return f"model.layers.{count - 1}"


def _weight(checkpoint: EditableCheckpoint, module: str) -> str:
    """The tensor name of a module's weight: in the last layer, except for EMBED and HEAD."""
    if module == HEAD and HEAD not in checkpoint:
        raise UserError(f"it has no {HEAD}: the head is tied to the embedding; give a model that is not tied")
    return module if module in (EMBED, HEAD) else f"{_layer(checkpoint)}.{module}.weight"


def _tensors(checkpoint: EditableCheckpoint, module: str) -> list[str]:
    """The names of a module's tensors: the weight, and the bias if there is one."""
    weight = _weight(checkpoint, module)
    names = [name for name in checkpoint if name.startswith(weight.removesuffix("weight"))]
    if not names:
        raise UserError(f"it has no {weight}; give a checkpoint that has it")
    return names


def _heads(checkpoint: EditableCheckpoint) -> tuple[int, int, int]:
    """The number of query heads, the number of kv heads, and the head size."""
    heads, kv_heads = head_counts(checkpoint.config)
    return heads, kv_heads, checkpoint.config.get("head_dim") or checkpoint.config["hidden_size"] // heads


def _missing(checkpoint: EditableCheckpoint, *modules: str) -> None:
    for name in [name for module in modules for name in _tensors(checkpoint, module)]:
        del checkpoint[name]


def _missing_layer(checkpoint: EditableCheckpoint) -> None:
    for name in [name for name in checkpoint if name.startswith(f"{_layer(checkpoint)}.")]:
        del checkpoint[name]


def _resized(checkpoint: EditableCheckpoint, module: str, axis: int, quarters: int) -> None:
    """Resizes a weight along ``axis`` (0: rows, 1: columns) to ``quarters`` quarters of its size; more repeat the first ones."""
    import torch

    tensor = checkpoint[_weight(checkpoint, module)]
    size = tensor.shape[axis]
    if size < 4:
        raise UserError(f"a tensor {tuple(tensor.shape)} cannot be made a quarter larger or smaller; give a larger model")
    checkpoint[_weight(checkpoint, module)] = torch.cat([tensor, tensor], axis).narrow(axis, 0, size * quarters // 4)


def _mha_into_gqa(checkpoint: EditableCheckpoint) -> None:
    """Repeats each kv head for every query head that shares it, as a multi-head model stores k_proj and v_proj."""
    heads, kv_heads, head_size = _heads(checkpoint)
    if heads == kv_heads:
        raise UserError(f"its model is multi-head, {heads} query heads and {kv_heads} kv heads; give a grouped-query model")
    for name in _tensors(checkpoint, K) + _tensors(checkpoint, V):
        split = checkpoint[name].reshape(kv_heads, head_size, -1).repeat_interleave(heads // kv_heads, 0)
        checkpoint[name] = split.reshape(heads * head_size, *checkpoint[name].shape[1:])


def _swapped(checkpoint: EditableCheckpoint, one: str, other: str) -> None:
    for first in _tensors(checkpoint, one):
        second = first.replace(one, other)
        checkpoint[first], checkpoint[second] = checkpoint[second], checkpoint[first]


def _permuted(checkpoint: EditableCheckpoint) -> None:
    """Puts the two rows of each rotary pair side by side, as llama.cpp stores them, instead of half a head apart."""
    *_, head_size = _heads(checkpoint)
    for name in _tensors(checkpoint, Q) + _tensors(checkpoint, K):
        halves = checkpoint[name].reshape(-1, 2, head_size // 2, *checkpoint[name].shape[1:])
        checkpoint[name] = halves.transpose(1, 2).reshape(checkpoint[name].shape)


def _fused_beside_parts(checkpoint: EditableCheckpoint) -> None:
    import torch

    parts = [checkpoint[_weight(checkpoint, module)] for module in (Q, K, V)]
    checkpoint[_weight(checkpoint, f"{ATTENTION}.qkv_proj")] = torch.cat(parts)


def _in_two_files(checkpoint: EditableCheckpoint) -> None:
    """Adds k_proj with other values to a file that the index does not name for it; splits an unsharded checkpoint first."""
    name = _weight(checkpoint, K)
    if len(checkpoint.files) == 1:
        (tensors,) = checkpoint.files.values()
        second = {"model.norm.weight": tensors.pop("model.norm.weight")}
        checkpoint.files = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": second}
    checkpoint.indexed = True
    checkpoint.index_overrides[name] = next(file for file, tensors in checkpoint.files.items() if name in tensors)
    other = next(tensors for tensors in reversed(checkpoint.files.values()) if name not in tensors)
    other[name] = checkpoint[name].flip(0)


def _unread_bias(checkpoint: EditableCheckpoint) -> None:
    weight, bias = _weight(checkpoint, Q), f"{_layer(checkpoint)}.{Q}.bias"
    if bias in checkpoint:
        raise UserError(f"its model already has {bias}; give a checkpoint without this bias")
    checkpoint[bias] = checkpoint[weight][:, 0].clone()


def _inv_freq(checkpoint: EditableCheckpoint) -> None:
    """Adds the frequencies of rotary embedding, base ** (-2i / D), which old exports store in every layer."""
    import torch

    *_, head_size = _heads(checkpoint)
    base = float((checkpoint.config.get("rope_parameters") or checkpoint.config).get("rope_theta") or 10000.0)
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    checkpoint[f"{_layer(checkpoint)}.{ATTENTION}.rotary_emb.inv_freq"] = torch.exp(-math.log(base) * exponents)


def _tied_head(checkpoint: EditableCheckpoint) -> None:
    """Adds an lm_head to a tied model; declares any other model as tied in config.json."""
    if HEAD in checkpoint:
        checkpoint.config["tie_word_embeddings"] = True
    else:
        checkpoint[HEAD] = checkpoint[EMBED].clone()


def _float16(checkpoint: EditableCheckpoint) -> None:
    name = _weight(checkpoint, DOWN)
    stored, rounded = checkpoint[name], checkpoint[name].half()
    if rounded.to(stored.dtype).equal(stored):
        raise UserError(f"float16 represents every value of {name} exactly, so none would be rounded; give a float32 checkpoint")
    checkpoint[name] = rounded


def _unmapped_name(checkpoint: EditableCheckpoint) -> None:
    checkpoint[_weight(checkpoint, f"{MLP}.fc1")] = checkpoint[_weight(checkpoint, UP)].clone()


def _extra_layer(checkpoint: EditableCheckpoint) -> None:
    old, new = f"{_layer(checkpoint)}.", f"model.layers.{checkpoint.config['num_hidden_layers']}."
    for name in [name for name in checkpoint if name.startswith(old)]:
        checkpoint[name.replace(old, new)] = checkpoint[name].clone()


def _without_prefix(checkpoint: EditableCheckpoint) -> None:
    for tensors in checkpoint.files.values():
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)


def _missing_file(checkpoint: EditableCheckpoint) -> None:
    """Makes the index assign the last tensor to a file that does not exist."""
    count = len(checkpoint.files) + 1
    checkpoint.indexed = True
    checkpoint.index_overrides[list(checkpoint)[-1]] = f"model-{count:05}-of-{count:05}.safetensors"


def _cut_short(checkpoint: EditableCheckpoint) -> None:
    checkpoint.bytes_lost = 1000


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("missing-k", "k_proj missing", _missing, (K,)),
        Fault("missing-qkv", "q_proj, k_proj and v_proj missing", _missing, (Q, K, V)),
        Fault("missing-o", "o_proj missing", _missing, (OUT,)),
        Fault("missing-gate", "gate_proj missing", _missing, (GATE,)),
        Fault("missing-embed", "embed_tokens missing", _missing, (EMBED,)),
        Fault("missing-lm-head", "lm_head missing", _missing, (HEAD,)),
        Fault("missing-norm", "a norm missing", _missing, (NORM,)),
        Fault("missing-layer", "a whole layer missing", _missing_layer),
        Fault("mha-into-gqa", "k_proj and v_proj multi-head under a grouped-query config", _mha_into_gqa),
        Fault("wide-o", "o_proj too wide: more inputs than the config says", _resized, (OUT, 1, 5)),
        Fault("wide-down", "down_proj too wide: more inputs than the config says", _resized, (DOWN, 1, 5)),
        Fault("tall-gate", "gate_proj too tall: more rows than the config says", _resized, (GATE, 0, 5)),
        Fault("short-k", "k_proj too short: fewer rows than the config says", _resized, (K, 0, 2)),
        Fault("narrow-q", "q_proj with fewer inputs", _resized, (Q, 1, 3)),
        Fault("wide-q", "q_proj with more inputs", _resized, (Q, 1, 5)),
        Fault("small-embed", "embed_tokens with a smaller vocabulary", _resized, (EMBED, 0, 3)),
        Fault("large-lm-head", "lm_head with a larger vocabulary", _resized, (HEAD, 0, 5)),
        Fault("short-norm", "a norm of another shape", _resized, (NORM, 0, 2)),
        Fault("swapped-kv", "k_proj and v_proj swapped", _swapped, (K, V)),
        Fault("swapped-gate-up", "gate_proj and up_proj swapped", _swapped, (GATE, UP)),
        Fault("permuted-qk", "rows of q_proj and k_proj permuted, as llama.cpp stores them", _permuted),
        Fault("fused-beside-parts", "qkv_proj stored beside q_proj, k_proj and v_proj", _fused_beside_parts),
        Fault("in-two-files", "k_proj in two files, of which the index names one", _in_two_files),
        Fault("unread-bias", "a q_proj bias that the config does not mention", _unread_bias),
        Fault("inv-freq", "rotary_emb.inv_freq stored", _inv_freq),
        Fault("stored-tied-head", "config.json says tied, and an lm_head is stored", _tied_head),
        Fault("float16-down", "down_proj stored in float16, its values rounded", _float16),
        Fault("unmapped-name", "a name that no parameter matches", _unmapped_name),
        Fault("extra-layer", "a layer too many", _extra_layer),
        Fault("no-prefix", "no model. prefix", _without_prefix),
        Fault("missing-file", "a file that the index names is missing", _missing_file),
        Fault("cut-short", "a file cut short: its last 1000 bytes are missing", _cut_short),
    )
}
"""Fault name -> fault."""
