"""Models to trace: config.json and the shapes of the checkpoint's tensors, from known configs or from files.

All checks here run before vLLM is imported: a typo is reported at once, not after ten seconds.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoints.headers import PICKLES, Shape, StoredTensor, read_checkpoint, weight_files
from labkit.system.errors import UserError

KNOWN = Path(__file__).resolve().parent / "known"
FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The architectures whose tensors follow from config.json; of any other, the headers of the files are needed."""

MAX_LAYERS = 1_000_000
VOCAB_PADDING = 64
"""vLLM pads the vocabulary to a multiple of this (vllm/model_executor/layers/vocab_parallel_embedding.py:36)."""
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim")
"""Sizes that a config may omit, or set to null."""


@dataclass(frozen=True)
class Model:
    """A checkpoint to trace.

    Attributes:
        name: the directory or known name that the user gave.
        directory: the directory that holds config.json.
        files: the safetensors files; empty if only the shapes are known.
        stored: tensor name -> tensor, from all files; the last file with a name counts.
        shapes: the shape of every checkpoint tensor, from the files' headers, or from the config if there are no files.
        arch: the class to build, ``module:Class``, in place of vLLM's class for the architecture.
        trust_remote_code: whether Python code in the checkpoint's directory may be run.
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
        """The first architecture in config.json."""
        return str(self.config["architectures"][0])


def resolve(model: str | Path) -> Model:
    """The model of a known name, of a directory with config.json, or of a JSON file of headers beside a config.json.

    Raises UserError if a file is missing or broken, or the tensors follow neither from files nor from config.json.
    """
    directory = KNOWN / model if str(model) in known_names() else Path(model).expanduser()
    if directory.suffix == ".json" and directory.is_file():
        return Model(str(model), directory.parent, _config(directory.parent), (), {}, _headers(directory))
    config = _config(directory)
    files = tuple(weight_files(directory))
    pickled = any(path.suffix in PICKLES for path in directory.iterdir())
    stored = read_checkpoint(directory) if files or pickled else {}
    shapes = {name: tensor.shape for name, tensor in stored.items()} if files else _known_shapes(directory, config)
    return Model(str(model), directory, config, files, stored, shapes)


def known_names() -> list[str]:
    """The names of the known models."""
    return sorted(path.parent.name for path in KNOWN.glob("*/config.json"))


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.json in a directory; raises UserError if the file is missing, unreadable or not a JSON object."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no config.json in {directory}; give a directory with config.json and safetensors") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return config


def _config(directory: Path) -> dict[str, Any]:
    """The content of config.json; raises UserError if the file is missing or names no architecture."""
    if not (directory / "config.json").is_file():
        near = difflib.get_close_matches(str(directory), known_names(), n=3, cutoff=0.4) or ["llama-3-8b"]
        raise UserError(
            f"there is no config.json in {directory}; give a directory that has one, or one of {len(known_names())} known names, "
            f"such as {' or '.join(near)}"
        )
    config = read_config(directory)
    if not isinstance(config.get("architectures"), list) or not config["architectures"]:
        path = directory / "config.json"
        raise UserError(f'{path} names no architecture, by which vLLM finds the class; add one: "architectures": ["{FAMILY[0]}"]')
    return config


def _headers(file: Path) -> dict[str, Shape]:
    """The shapes in a JSON file of headers, in the format of safetensors: ``{name: {"dtype": ..., "shape": [...]}}``."""
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
    """The shapes that follow from config.json, for a directory without safetensors files; raises UserError if none follow."""
    path, architecture = directory / "config.json", config["architectures"][0]
    if architecture not in FAMILY:
        raise UserError(
            f"{path} names {architecture}, and there is no safetensors file beside it; "
            f"add the files: from config.json alone, only {', '.join(FAMILY)} can be traced"
        )
    if "quantization_config" in config:
        raise UserError(f"{path} describes a quantized checkpoint, whose tensors do not follow from it; put its files beside it")
    missing = [key for key in _SIZES if not _is_size(config.get(key))]
    missing += [key for key in _OPTIONAL if config.get(key) is not None and not _is_size(config[key])]
    if missing:
        raise UserError(f"{path} does not say {', '.join(missing)}; a {architecture} needs a whole number for each")
    if config["num_hidden_layers"] > MAX_LAYERS:
        raise UserError(f"{path} says {config['num_hidden_layers']:,} layers, more than any model has; fetch it again")
    return implied_shapes(config)


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def implied_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Tensor name -> shape, in the order of the layers, of a checkpoint with this config; its architecture must be in FAMILY.

    With H the hidden size, I the intermediate size, V the vocabulary, N query heads, K kv heads and D the head size:
    q_proj (N*D, H), k_proj and v_proj (K*D, H), o_proj (H, N*D), gate_proj and up_proj (I, H), down_proj (H, I), norms (H,),
    embed_tokens and lm_head (V, H). A tied model has no lm_head.
    Qwen3 also has q_norm and k_norm (D,). Qwen2 has biases of q, k and v; the others only the biases that the config names.
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
    attention_bias = architecture == "Qwen2ForCausalLM" or config.get("attention_bias")
    biased = list(linears)[:3] if attention_bias else []
    if not architecture.startswith("Qwen"):
        biased = [name for name in linears if config.get("attention_bias" if name.startswith("self_attn") else "mlp_bias")]
    layer: dict[str, Shape] = {}
    for name, shape in linears.items():
        layer[f"{name}.weight"] = shape
        if name in biased:
            layer[f"{name}.bias"] = shape[:1]
    if architecture == "Qwen3ForCausalLM":
        layer |= {"self_attn.q_norm.weight": (head_size,), "self_attn.k_norm.weight": (head_size,)}
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of query heads and of kv heads; they are equal if the config has no num_key_value_heads."""
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads


def check_ranks(config: Mapping[str, Any], tp_size: int, ranks: Sequence[int]) -> None:
    """Raises UserError if the model cannot be divided over ``tp_size`` ranks, or ``ranks`` is empty or names a missing rank."""
    if obstacle := _obstacle(config, tp_size):
        fitting = [str(size) for size in range(1, config["num_attention_heads"] + 1) if not _obstacle(config, size)]
        raise UserError(f"{obstacle}; TP sizes that fit this model: {', '.join(fitting)}")
    if not ranks:
        raise UserError(f"no rank was given; TP {tp_size} has the ranks 0 to {tp_size - 1}")
    for rank in ranks:
        if not 0 <= rank < tp_size:
            raise UserError(f"there is no rank {rank} at TP {tp_size}; give one of 0 to {tp_size - 1}")


def _obstacle(config: Mapping[str, Any], tp_size: int) -> str | None:
    """The reason why the model cannot be divided over ``tp_size`` ranks, or None."""
    if tp_size < 1:
        return f"TP {tp_size} is not a number of ranks"
    if not all(_is_size(config.get(key)) for key in _SIZES) or not _is_size(head_counts(config)[1]):
        return None  # another architecture's keys; vLLM reports what does not fit
    heads, kv_heads = head_counts(config)
    padded = -(-config["vocab_size"] // VOCAB_PADDING) * VOCAB_PADDING
    parts = {"query heads": heads, "intermediate rows": config["intermediate_size"], "padded vocabulary rows": padded}
    for what, count in parts.items():
        if count % tp_size:
            return f"{count} {what} cannot be divided over {tp_size} ranks"
    if kv_heads % tp_size and tp_size % kv_heads:
        return f"{kv_heads} kv heads can be neither divided over {tp_size} ranks nor repeated on them evenly"
    return None
