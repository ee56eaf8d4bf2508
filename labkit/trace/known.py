"""Which model is traced, and what its checkpoint holds: from config.json alone, or from the safetensors beside it.

Everything here is checked before vLLM is imported: a slip of the pen is answered at once, not after ten seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from labkit.trace.records import Shape, TraceError

KNOWN = Path(__file__).resolve().parent.parent / "known"
"""A folder for each model that can be traced by name, with its config.json."""

ARCHITECTURE = "LlamaForCausalLM"
"""The architecture that is traced."""

VOCAB_PADDING = 64
"""vLLM rounds the vocabulary up to a multiple of this (vllm/model_executor/layers/vocab_parallel_embedding.py:36)."""

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Model:
    """A checkpoint to trace.

    Attributes:
        name: what the user called it, a directory or a known name.
        directory: where its config.json is.
        config: what config.json says.
        files: its safetensors files; none when there are only shapes to trace.
        shapes: every checkpoint tensor's shape, read from the files' headers, or implied by the config where there are none.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    shapes: Mapping[str, Shape]


def resolve(model: str | Path) -> Model:
    """The model that a known name or a directory with config.json stands for.

    Raises:
        TraceError: neither of the two, another architecture, a quantized checkpoint, a file that is missing or cut off.
    """
    directory = KNOWN / model if str(model) in known_names() else Path(model).expanduser()
    config = _read_config(directory)
    files = _weight_files(directory)
    shapes = stored_shapes(files) if files else implied_shapes(config)
    return Model(str(model), directory, config, files, shapes)


def known_names() -> list[str]:
    """The names that stand for a config.json of ours."""
    return sorted(path.parent.name for path in KNOWN.glob("*/config.json"))


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        names = " or ".join(known_names())
        raise TraceError(f"there is no config.json in {directory}; give a directory that has one, or a known name: {names}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise TraceError(f"{path} holds no JSON object; fetch it again")
    architectures = config.get("architectures") or ["no architecture"]
    if ARCHITECTURE not in architectures:
        raise TraceError(f"{path} names {architectures[0]}; the architecture traced here is {ARCHITECTURE}")
    if "quantization_config" in config:
        raise TraceError(f"{path} describes a quantized checkpoint, whose parameters are packed; trace the unquantized one")
    missing = [key for key in _SIZES if not isinstance(config.get(key), int)]
    if missing:
        raise TraceError(f"{path} does not say {', '.join(missing)}; a {ARCHITECTURE} needs a whole number for each")
    return config


def _weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory: those its index names, or all there are."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return tuple(sorted(directory.glob("*.safetensors")))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{index} has no weight_map that can be read ({error!r}); fetch it again") from error
    for name in names:
        if not (directory / name).is_file():
            raise TraceError(f"{index} names {name}, and there is no such file beside it; fetch the checkpoint again")
    return tuple(directory / name for name in names)


def stored_shapes(files: tuple[Path, ...]) -> dict[str, Shape]:
    """The shape of every tensor in these safetensors files, from their headers.

    Raises:
        TraceError: a file is cut off or is no safetensors file.
    """
    shapes: dict[str, Shape] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise TraceError(
                f"{file} ({file.stat().st_size:,} bytes) is cut off or is no safetensors file ({error}); fetch it again"
            ) from error
    return shapes


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

    def layer() -> Iterator[tuple[str, Shape]]:
        for name, shape in linears.items():
            yield f"{name}.weight", shape
            if config.get("attention_bias" if name.startswith("self_attn") else "mlp_bias"):
                yield f"{name}.bias", shape[:1]
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


def check_ranks(config: Mapping[str, Any], tp_size: int, ranks: tuple[int, ...]) -> None:
    """Sees that the model can be split over ``tp_size`` ranks, and that ``ranks`` are some of them.

    Raises:
        TraceError: naming what does not divide, and the TP sizes that do.
    """
    if obstacle := _obstacle(config, tp_size):
        fitting = [str(size) for size in range(1, config["num_attention_heads"] + 1) if not _obstacle(config, size)]
        raise TraceError(f"{obstacle}; TP sizes that fit this model: {', '.join(fitting)}")
    if not ranks:
        raise TraceError(f"no rank was given; TP {tp_size} has the ranks 0 to {tp_size - 1}")
    for rank in ranks:
        if not 0 <= rank < tp_size:
            raise TraceError(f"there is no rank {rank} at TP {tp_size}; give one of 0 to {tp_size - 1}")


def _obstacle(config: Mapping[str, Any], tp_size: int) -> str | None:
    """Why the model cannot be split over ``tp_size`` ranks, or None."""
    if tp_size < 1:
        return f"TP {tp_size} is not a number of ranks"
    heads, kv_heads = head_counts(config)
    padded = -(-config["vocab_size"] // VOCAB_PADDING) * VOCAB_PADDING
    parts = {"query heads": heads, "intermediate rows": config["intermediate_size"], "padded vocabulary rows": padded}
    for what, count in parts.items():
        if count % tp_size:
            return f"{count} {what} cannot be divided over {tp_size} ranks"
    if kv_heads % tp_size and tp_size % kv_heads:
        return f"{kv_heads} kv heads can be neither divided over {tp_size} ranks nor repeated on them evenly"
    return None
