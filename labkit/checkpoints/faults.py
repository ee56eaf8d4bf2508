"""Faulty copies of a checkpoint, one named fault in each: what ``./lab break`` makes, and what the loaders are held against.

A fault is made in the last layer, or in the whole checkpoint where that is its nature. It changes what its title says and
nothing else. Letters as everywhere: H hidden size, N query heads, K kv heads, D head size, V vocabulary.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.checkpoints.editable_checkpoint import Draft
from labkit.checkpoints.known_models import FAMILY, head_counts
from labkit.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION, MLP, NORM = "self_attn", "mlp", "input_layernorm"
Q, K, V, OUT = (f"{ATTENTION}.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"{MLP}.{name}_proj" for name in ("gate", "up", "down"))


@dataclass(frozen=True)
class Fault:
    """One way in which a checkpoint can be wrong.

    Attributes:
        name: what it is called, a short kebab-case word.
        title: what is wrong, in words.
        apply: makes a draft so; raises UserError or UserError where it does not apply, before anything is written.
    """

    name: str
    title: str
    apply: Callable[[Draft], None]


def break_checkpoint(source: Path, name: str, to: Path) -> Fault:
    """Writes a copy of a checkpoint with one fault in it; the source is not changed.

    Args:
        source: a directory with config.json and safetensors, of Llama, Mistral, Qwen2 or Qwen3.
        name: the fault, one of FAULTS.
        to: the directory to make; it does not exist yet, or is empty.

    Returns:
        The fault that was made.

    Raises:
        UserError: there is no such fault, or it does not apply to this checkpoint.
        UserError: the source cannot be read, or the copy not written.
    """
    if name not in FAULTS:
        near = difflib.get_close_matches(name, FAULTS, n=3)
        known = f"nearest: {', '.join(near)}" if near else "./lab break --list has them all"
        raise UserError(f"there is no fault {name!r}; {known}")
    fault, source = FAULTS[name], source.expanduser()
    draft = Draft.read(source)
    _check_family(draft)
    try:
        fault.apply(draft)
    except UserError as error:
        raise type(error)(f"{name} cannot be made of this checkpoint: {error}") from error
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:  # config.json speaks of other tensors than these
        raise UserError(f"{name} cannot be made of this checkpoint, whose config.json does not fit it: {error}") from error
    about = {"fault": f"{name}: {fault.title}", "made from": str(source.resolve())}
    readme = (
        f"# A faulty copy: {name}\n\nMade by `./lab break --fault {name}` from `{source.resolve()}`.\n\n"
        f"What is wrong: {fault.title}. All else is as in the source. Do not serve it, or you know why.\n"
    )
    draft.write(to, about, readme)
    return fault


def _check_family(draft: Draft) -> None:
    """Sees that names and shapes are those of the Llama family, unquantized."""
    named = draft.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named
    if architecture not in FAMILY:
        raise UserError(f"{draft.source} is of architecture {architecture}; faults are made in {', '.join(FAMILY)}")
    if "quantization_config" in draft.config:
        raise UserError(
            f"{draft.source} is quantized, and faults are made in plain weights; give the checkpoint it was made from"
        )
    for name in (f"{_layer(draft)}.{Q}.weight", EMBED):
        if name not in draft:
            raise UserError(f"{draft.source} has no {name}; it is faulty already, or no checkpoint of {architecture}")


# --- where a fault is made ----------------------------------------------------------------------------------------------


def _layer(draft: Draft) -> str:
    return f"model.layers.{_last(draft)}"


def _last(draft: Draft) -> int:
    number = draft.config.get("num_hidden_layers")
    if type(number) is not int or number < 1:
        raise UserError(f"config.json says num_hidden_layers {number!r}; it must be a whole number from 1 up")
    return number - 1


def _weight(draft: Draft, module: str) -> str:
    return f"{_layer(draft)}.{module}.weight"


def _tensors(draft: Draft, module: str) -> list[str]:
    """What the last layer stores of a module: its weight, and its bias where it has one."""
    names = [name for name in draft if name.startswith(f"{_layer(draft)}.{module}.")]
    if not names:
        raise UserError(f"it has no {_weight(draft, module)}")
    return names


def _heads(draft: Draft) -> tuple[int, int, int]:
    """N, K and D."""
    heads, kv_heads = head_counts(draft.config)
    return heads, kv_heads, draft.config.get("head_dim") or draft.config["hidden_size"] // heads


def _lm_head(draft: Draft) -> Tensor:
    if HEAD not in draft:
        raise UserError(f"it has no {HEAD}: the embedding serves for it")
    return draft[HEAD]


# --- kinds of fault -----------------------------------------------------------------------------------------------------


def _missing(*modules: str) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        for name in [name for module in modules for name in _tensors(draft, module)]:
            del draft[name]

    return apply


def _missing_embed(draft: Draft) -> None:
    del draft[EMBED]


def _missing_head(draft: Draft) -> None:
    _lm_head(draft)
    del draft[HEAD]


def _missing_layer(draft: Draft) -> None:
    for name in [name for name in draft if name.startswith(f"{_layer(draft)}.")]:
        del draft[name]


def _resized(module: str, axis: int, quarters: int) -> Callable[[Draft], None]:
    """A weight of the last layer with another number of rows (axis 0) or columns (axis 1), in quarters of what it has."""

    def apply(draft: Draft) -> None:
        name = _weight(draft, module)
        draft[name] = _quarters(draft[name], axis, quarters)

    return apply


def _quarters(tensor: Tensor, axis: int, quarters: int) -> Tensor:
    """The first rows or columns of a tensor; where more are asked for than there are, it begins again."""
    import torch

    size = tensor.shape[axis]
    if size < 4:
        raise UserError(f"a tensor {tuple(tensor.shape)} cannot be made a quarter larger or smaller; give a larger model")
    return torch.cat([tensor, tensor], axis).narrow(axis, 0, size * quarters // 4)


def _small_embed(draft: Draft) -> None:
    draft[EMBED] = _quarters(draft[EMBED], 0, 3)


def _large_head(draft: Draft) -> None:
    draft[HEAD] = _quarters(_lm_head(draft), 0, 5)


def _mha_into_gqa(draft: Draft) -> None:
    """Every kv head once for each query head that shares it, as a multi-head model would store them."""
    heads, kv_heads, head_size = _heads(draft)
    if heads == kv_heads:
        raise UserError(f"its config is multi-head, {heads} query heads and {kv_heads} kv heads; give a grouped-query model")
    for name in _tensors(draft, K) + _tensors(draft, V):
        split = draft[name].reshape(kv_heads, head_size, -1).repeat_interleave(heads // kv_heads, 0)
        draft[name] = split.reshape(heads * head_size, *draft[name].shape[1:])


def _swapped(one: str, other: str) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        for first in _tensors(draft, one):
            second = first.replace(one, other)
            draft[first], draft[second] = draft[second], draft[first]

    return apply


def _permuted(draft: Draft) -> None:
    """Pairs of a head side by side, as llama.cpp stores them, and no longer half a head apart."""
    *_, head_size = _heads(draft)
    for name in _tensors(draft, Q) + _tensors(draft, K):
        halves = draft[name].reshape(-1, 2, head_size // 2, *draft[name].shape[1:])
        draft[name] = halves.transpose(1, 2).reshape(draft[name].shape)


def _fused_beside_parts(draft: Draft) -> None:
    import torch

    parts = [draft[_weight(draft, module)] for module in (Q, K, V)]
    draft[_weight(draft, f"{ATTENTION}.qkv_proj")] = torch.cat(parts)


def _in_two_files(draft: Draft) -> None:
    """The final norm in a second file and all else in the first, as the index says; k_proj in the second once more."""
    name = _weight(draft, K)
    if len(draft.files) == 1:
        (tensors,) = draft.files.values()
        draft.files = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": {}}
        draft.files["model-00002-of-00002.safetensors"]["model.norm.weight"] = tensors.pop("model.norm.weight")
    draft.indexed, draft.index_says[name] = True, next(file for file, tensors in draft.files.items() if name in tensors)
    other = next(tensors for tensors in reversed(draft.files.values()) if name not in tensors)
    other[name] = draft[name].flip(0)


def _unread_bias(draft: Draft) -> None:
    weight, bias = _weight(draft, Q), f"{_layer(draft)}.{Q}.bias"
    if bias in draft:
        raise UserError(f"its model has a bias there, {bias}; give one without")
    draft[bias] = draft[weight][:, 0].clone()


def _inv_freq(draft: Draft) -> None:
    """The frequencies of rotary embedding, base ** (-2i / D), which old exports stored in every layer."""
    import torch

    *_, head_size = _heads(draft)
    base = float((draft.config.get("rope_parameters") or draft.config).get("rope_theta") or 10000.0)
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    draft[f"{_layer(draft)}.{ATTENTION}.rotary_emb.inv_freq"] = torch.exp(-math.log(base) * exponents)


def _tied_head(draft: Draft) -> None:
    """A tied model is given a head; one with a head is called tied."""
    if HEAD in draft:
        draft.config["tie_word_embeddings"] = True
    else:
        draft[HEAD] = draft[EMBED].clone()


def _float16(draft: Draft) -> None:
    import torch

    name = _weight(draft, DOWN)
    stored, rounded = draft[name], draft[name].to(torch.float16)
    if torch.equal(rounded.to(stored.dtype), stored):
        raise UserError(f"float16 holds every value of {name} as it is, so none would be rounded; try a float32 checkpoint")
    draft[name] = rounded


def _unmapped_name(draft: Draft) -> None:
    draft[_weight(draft, f"{MLP}.fc1")] = draft[_weight(draft, UP)].clone()


def _extra_layer(draft: Draft) -> None:
    old, new = f"{_layer(draft)}.", f"model.layers.{_last(draft) + 1}."
    for name in [name for name in draft if name.startswith(old)]:
        draft[name.replace(old, new)] = draft[name].clone()


def _without_prefix(draft: Draft) -> None:
    for tensors in draft.files.values():
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)


def _promised_file(draft: Draft) -> None:
    """The index places the last tensor of all in a file more than there are."""
    count = len(draft.files) + 1
    draft.indexed, draft.index_says = True, {list(draft)[-1]: f"model-{count:05}-of-{count:05}.safetensors"}


def _cut_short(draft: Draft) -> None:
    draft.bytes_lost = 1000


FAULTS: dict[str, Fault] = {
    name: Fault(name, title, apply)
    for name, title, apply in (
        ("missing-k", "k_proj missing", _missing(K)),
        ("missing-qkv", "q_proj, k_proj and v_proj missing", _missing(Q, K, V)),
        ("missing-o", "o_proj missing", _missing(OUT)),
        ("missing-gate", "gate_proj missing", _missing(GATE)),
        ("missing-embed", "embed_tokens missing", _missing_embed),
        ("missing-lm-head", "lm_head missing", _missing_head),
        ("missing-norm", "a norm missing", _missing(NORM)),
        ("missing-layer", "a whole layer missing", _missing_layer),
        ("mha-into-gqa", "k_proj and v_proj multi-head under a grouped-query config", _mha_into_gqa),
        ("wide-o", "o_proj too wide: more inputs than the config says", _resized(OUT, 1, 5)),
        ("wide-down", "down_proj too wide: more inputs than the config says", _resized(DOWN, 1, 5)),
        ("tall-gate", "gate_proj too tall: more rows than the config says", _resized(GATE, 0, 5)),
        ("short-k", "k_proj too short: fewer rows than the config says", _resized(K, 0, 2)),
        ("narrow-q", "q_proj with fewer inputs", _resized(Q, 1, 3)),
        ("wide-q", "q_proj with more inputs", _resized(Q, 1, 5)),
        ("small-embed", "embed_tokens with a smaller vocabulary", _small_embed),
        ("large-lm-head", "lm_head with a larger vocabulary", _large_head),
        ("short-norm", "a norm of another shape", _resized(NORM, 0, 2)),
        ("swapped-kv", "k_proj and v_proj swapped", _swapped(K, V)),
        ("swapped-gate-up", "gate_proj and up_proj swapped", _swapped(GATE, UP)),
        ("permuted-qk", "rows of q_proj and k_proj permuted, as llama.cpp stores them", _permuted),
        ("fused-beside-parts", "qkv_proj stored beside q_proj, k_proj and v_proj", _fused_beside_parts),
        ("in-two-files", "k_proj in two files, of which the index names one", _in_two_files),
        ("unread-bias", "a q_proj bias that the config does not mention", _unread_bias),
        ("inv-freq", "rotary_emb.inv_freq stored", _inv_freq),
        ("stored-tied-head", "config.json says tied, and an lm_head is stored", _tied_head),
        ("float16-down", "down_proj stored in float16, its values rounded", _float16),
        ("unmapped-name", "a name without a home", _unmapped_name),
        ("extra-layer", "a layer too many", _extra_layer),
        ("no-prefix", "no model. prefix", _without_prefix),
        ("missing-file", "a file that the index names is missing", _promised_file),
        ("cut-short", "a file cut short: its last 1000 bytes are missing", _cut_short),
    )
}
"""Every fault by its name, those that leave something out first."""
