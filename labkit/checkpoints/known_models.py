"""Which model is traced, and what its checkpoint holds: from config.json alone, or from the safetensors beside it.

Everything here is checked before vLLM is imported: a slip of the pen is answered at once, not after ten seconds.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoints.headers import PICKLES, HeaderError, Shape, StoredTensor, read_checkpoint, weight_files
from labkit.system.errors import UserError

KNOWN = Path(__file__).resolve().parent / "known"
"""A folder for each model that can be traced by name, with its config.json."""

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The architectures whose checkpoint follows from config.json; any other is traced from the headers of its files."""

MOST_LAYERS = 1_000_000
"""A layer's number has six digits at most; a longer one is somebody's joke and no layer."""

VOCAB_PADDING = 64
"""vLLM rounds the vocabulary up to a multiple of this (vllm/model_executor/layers/vocab_parallel_embedding.py:36)."""

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim")
"""Sizes that a config may leave out, or give as null."""


@dataclass(frozen=True)
class Model:
    """A checkpoint to trace.

    Attributes:
        name: what the user called it, a directory or a known name.
        directory: where its config.json is.
        config: what config.json says.
        files: its safetensors files; none when there are only shapes to trace.
        stored: every tensor as the files hold it; of a name in two files, the later.
        shapes: every checkpoint tensor's shape, read from the files' headers, or implied by the config where there are none.
        arch: the class to build, ``module:Class``, in place of the one that vLLM has for the architecture.
        trust_remote_code: whether code that lies beside the checkpoint may be run.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    stored: Mapping[str, StoredTensor]
    shapes: Mapping[str, Shape]
    arch: str | None = None
    trust_remote_code: bool = False

    @property
    def architecture(self) -> str:
        """The class that config.json asks for."""
        return str(self.config["architectures"][0])


def resolve(model: str | Path) -> Model:
    """The model that a known name, a directory with config.json, or a file of headers beside one stands for.

    Raises:
        UserError: neither of the two, an architecture whose tensors are not known and not there, a file that cannot be read.
    """
    directory = KNOWN / model if str(model) in known_names() else Path(model).expanduser()
    if directory.suffix == ".json" and directory.is_file():
        return Model(str(model), directory.parent, _read_config(directory.parent), (), {}, _headers(directory))
    config = _read_config(directory)
    try:
        files = tuple(weight_files(directory))
        pickled = any(path.suffix in PICKLES for path in directory.iterdir())
        stored = read_checkpoint(directory) if files or pickled else {}
    except HeaderError as error:
        raise UserError(str(error)) from error
    shapes = {name: tensor.shape for name, tensor in stored.items()} if files else _known_shapes(directory, config)
    return Model(str(model), directory, config, files, stored, shapes)


def known_names() -> list[str]:
    """The names that stand for a config.json of ours."""
    return sorted(path.parent.name for path in KNOWN.glob("*/config.json"))


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        near = difflib.get_close_matches(str(directory), known_names(), n=3, cutoff=0.4) or ["llama-3-8b"]
        raise UserError(
            f"there is no config.json in {directory}; give a directory that has one, or one of {len(known_names())} known names, "
            f"such as {' or '.join(near)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise UserError(f'{path} names no architecture; vLLM finds its class by "architectures": ["{FAMILY[0]}"]')
    return config


def _headers(file: Path) -> dict[str, Shape]:
    """The shapes in a file of headers: JSON as safetensors has it, ``{name: {"dtype": ..., "shape": [...]}}``."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in read.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{file} holds no headers ({error!r:.100}); it should be {{"NAME": {{"dtype": "BF16", "shape": [...]}}, ...}}'
        ) from error
    if not shapes:
        raise UserError(f"{file} names no tensor; give the headers of a whole checkpoint")
    return shapes


def _known_shapes(directory: Path, config: Mapping[str, Any]) -> dict[str, Shape]:
    """What a checkpoint of this config holds, where there is none to look into."""
    path, architecture = directory / "config.json", config["architectures"][0]
    if architecture not in FAMILY:
        raise UserError(
            f"{path} names {architecture}, and there is no safetensors file beside it; "
            f"from config.json alone, traced are {', '.join(FAMILY)}"
        )
    if "quantization_config" in config:
        raise UserError(f"{path} describes a quantized checkpoint, whose tensors do not follow from it; put its files beside it")
    missing = [key for key in _SIZES if not _is_size(config.get(key))]
    missing += [key for key in _OPTIONAL if config.get(key) is not None and not _is_size(config[key])]
    if missing:
        raise UserError(f"{path} does not say {', '.join(missing)}; a {architecture} needs a whole number for each")
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise UserError(f"{path} says {config['num_hidden_layers']:,} layers, more than any model has; fetch it again")
    return implied_shapes(config)


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def implied_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """The tensors that a Llama checkpoint of this config holds, in the order of the layers.

    With H the hidden size, I the intermediate size, V the vocabulary, N query heads, K kv heads and D the head size:
    q_proj (N*D, H), k_proj and v_proj (K*D, H), o_proj (H, N*D), gate_proj and up_proj (I, H), down_proj (H, I), norms (H,),
    embed_tokens and lm_head (V, H). A tied model has no lm_head. Biases only where the config asks for them.
    """
    hidden, intermediate, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = head_counts(config)
    head_size = config.get("head_dim") or hidden // heads
    linears = {
        "self_attn.q_proj": (heads * head_size, hidden),
        "self_attn.k_proj": (kv_heads * head_size, hidden),
        "self_attn.v_proj": (kv_heads * head_size, hidden),
        "self_attn.o_proj": (hidden, heads * head_size),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }

    architecture = config["architectures"][0]

    def has_bias(name: str) -> bool:
        if architecture == "Qwen2ForCausalLM":
            return name in QKV
        if architecture == "Qwen3ForCausalLM":
            return name in QKV and bool(config.get("attention_bias"))
        return bool(config.get("attention_bias" if name.startswith("self_attn") else "mlp_bias"))

    def layer() -> Iterator[tuple[str, Shape]]:
        for name, shape in linears.items():
            yield f"{name}.weight", shape
            if has_bias(name):
                yield f"{name}.bias", shape[:1]
        if architecture == "Qwen3ForCausalLM":
            yield "self_attn.q_norm.weight", (head_size,)
            yield "self_attn.k_norm.weight", (head_size,)
        yield "input_layernorm.weight", (hidden,)
        yield "post_attention_layernorm.weight", (hidden,)

    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """Query heads and kv heads; a config without num_key_value_heads has as many of both."""
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads


def check_ranks(config: Mapping[str, Any], tp_size: int, ranks: Sequence[int]) -> None:
    """Sees that the model can be split over ``tp_size`` ranks, and that ``ranks`` are some of them.

    Raises:
        UserError: naming what does not divide, and the TP sizes that do.
    """
    if obstacle := _obstacle(config, tp_size):
        fitting = [str(size) for size in range(1, config["num_attention_heads"] + 1) if not _obstacle(config, size)]
        raise UserError(f"{obstacle}; TP sizes that fit this model: {', '.join(fitting)}")
    if not ranks:
        raise UserError(f"no rank was given; TP {tp_size} has the ranks 0 to {tp_size - 1}")
    for rank in ranks:
        if not 0 <= rank < tp_size:
            raise UserError(f"there is no rank {rank} at TP {tp_size}; give one of 0 to {tp_size - 1}")


def _obstacle(config: Mapping[str, Any], tp_size: int) -> str | None:
    """Why the model cannot be split over ``tp_size`` ranks, or None."""
    if tp_size < 1:
        return f"TP {tp_size} is not a number of ranks"
    if not all(_is_size(config.get(key)) for key in _SIZES) or not _is_size(head_counts(config)[1]):
        return None  # another architecture's words; vLLM says itself what does not fit
    heads, kv_heads = head_counts(config)
    padded = -(-config["vocab_size"] // VOCAB_PADDING) * VOCAB_PADDING
    parts = {"query heads": heads, "intermediate rows": config["intermediate_size"], "padded vocabulary rows": padded}
    for what, count in parts.items():
        if count % tp_size:
            return f"{count} {what} cannot be divided over {tp_size} ranks"
    if kv_heads % tp_size and tp_size % kv_heads:
        return f"{kv_heads} kv heads can be neither divided over {tp_size} ranks nor repeated on them evenly"
    return None
