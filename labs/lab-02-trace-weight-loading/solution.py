"""Lab 02, solution: predict how vLLM loads a Llama, compute the sizes of a model from its shapes, and find the faults of a load.

The trace of a load by vLLM is a list of records. One record, from Llama-3-8B on rank 1 of 2:

    {"tensor": "model.layers.0.self_attn.k_proj.weight", "shape": [1024, 4096],
     "mapping": {"from": ".k_proj", "to": ".qkv_proj", "shard": "k"},
     "parameter": "model.layers.0.self_attn.qkv_proj.weight", "parameter_shape": [3072, 4096],
     "destination": [[2048, 2560], [0, 4096]], "source": [[512, 1024], [0, 4096]], "tp_rank": 1, "tp_size": 2}

Spans are half-open, [start, stop), one for each dimension.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Shape = tuple[int, ...]
Span = tuple[int, int]


@dataclass(frozen=True)
class HeadSplit:
    """A way to split the rows of q_proj and k_proj into heads.

    Attributes:
        num_heads: N, query heads.
        num_kv_heads: K, key and value heads; N is a multiple of K.
        head_dim: D, rows per head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Fingerprint:
    """The sizes of a model, as far as the shapes of its checkpoint show them.

    Attributes:
        num_layers: decoder layers.
        hidden_size: H.
        intermediate_size: I, rows of gate_proj and of up_proj.
        vocab_size: V.
        tied: whether there is no lm_head; the embedding is then used in its place.
        splits: every split into heads that fits the shapes, the likeliest first.
        unknown: what the shapes cannot tell, one sentence for each.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    splits: tuple[HeadSplit, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A fault of a load.

    Attributes:
        fault: ``missing``: a part of a parameter that was never written. ``twice``: a part of a parameter that was written more
            than once. ``cut off``: a part of a checkpoint tensor that no rank read.
        name: the parameter; for ``cut off``, the checkpoint tensor.
        part: the part of it, one span for each dimension.
        tp_rank: the rank of the parameter; None for ``cut off``, which is about all ranks together.
    """

    fault: Literal["missing", "twice", "cut off"]
    name: str
    part: tuple[Span, ...]
    tp_rank: int | None


STACKED: dict[str, tuple[str, str | int]] = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""The mapping rows of vLLM, without the dots: checkpoint module -> (fused module, shard)."""

SHARDS: dict[str, tuple[str | int, ...]] = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": (0, 1)}
"""The shards of a fused parameter, in the order of their rows."""

VOCAB_PADDING = 64


@dataclass(frozen=True)
class _Cut:
    """The cut of a tensor: the axis, the size of the parameter on that axis, and the spans that are written and read."""

    axis: int
    length: int
    destination: Span
    source: Span


def trace_row(name: str, config: Mapping[str, Any], tp_size: int = 1, tp_rank: int = 0) -> dict[str, Any]:
    """Predicts the record of vLLM's load of one checkpoint tensor, from config.json alone.

    Raises:
        ValueError: if a checkpoint of this config has no tensor of that name.
    """
    shape = _checkpoint_shape(name, config)
    module = name.split(".")[-2]
    fused, shard = STACKED.get(module, (module, None))
    cut = _cut(module, shape, config, tp_size, tp_rank)
    parameter_shape = list(shape)
    parameter_shape[cut.axis] = cut.length
    destination, source = [[0, size] for size in parameter_shape], [[0, size] for size in shape]
    destination[cut.axis], source[cut.axis] = list(cut.destination), list(cut.source)
    return {
        "tensor": name,
        "shape": list(shape),
        "mapping": None if shard is None else {"from": f".{module}", "to": f".{fused}", "shard": shard},
        "parameter": name.replace(module, fused),
        "parameter_shape": parameter_shape,
        "destination": destination,
        "source": source,
        "tp_rank": tp_rank,
        "tp_size": tp_size,
    }


def _cut(module: str, shape: Shape, config: Mapping[str, Any], tp_size: int, tp_rank: int) -> _Cut:
    """Returns the cut: rows of a fused parameter or of the padded vocabulary, columns of a row-parallel one, or all of a norm."""
    if module in STACKED:
        return _fused_cut(module, config, tp_size, tp_rank)
    if module in ("o_proj", "down_proj"):
        columns = shape[1] // tp_size
        return _Cut(1, columns, (0, columns), (tp_rank * columns, (tp_rank + 1) * columns))
    if module in ("embed_tokens", "lm_head"):
        rows = -(-shape[0] // VOCAB_PADDING) * VOCAB_PADDING // tp_size
        start, stop = min(tp_rank * rows, shape[0]), min((tp_rank + 1) * rows, shape[0])
        return _Cut(0, rows, (0, stop - start), (start, stop))
    return _Cut(0, shape[0], (0, shape[0]), (0, shape[0]))


def _fused_cut(module: str, config: Mapping[str, Any], tp_size: int, tp_rank: int) -> _Cut:
    """Returns the cut of a shard. It begins where the shards before it end, and reads the block of its rank or of its kv head."""
    fused, shard = STACKED[module]
    heads, kv_heads, head_dim = _heads(config)
    rows: dict[str | int, int] = {"q": heads // tp_size * head_dim}
    rows["k"] = rows["v"] = max(1, kv_heads // tp_size) * head_dim
    rows[0] = rows[1] = config["intermediate_size"] // tp_size

    shards = SHARDS[fused]
    offset = sum(rows[before] for before in shards[: shards.index(shard)])
    # If there are more ranks than kv heads, tp_size // K consecutive ranks read the same kv head.
    block = tp_rank // max(1, tp_size // kv_heads) if shard in ("k", "v") else tp_rank
    return _Cut(
        axis=0,
        length=sum(rows[each] for each in shards),
        destination=(offset, offset + rows[shard]),
        source=(block * rows[shard], (block + 1) * rows[shard]),
    )


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns query heads, kv heads and head size, with defaults for keys that config.json does not have."""
    heads: int = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads


def _checkpoint_shape(name: str, config: Mapping[str, Any]) -> Shape:
    """Returns the shape of a tensor on disk; raises ValueError if a checkpoint of this config has no such tensor."""
    hidden, intermediate, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = _heads(config)
    shapes: dict[str, Shape] = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head"] = (vocabulary, hidden)
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) < config["num_hidden_layers"]:
        shapes |= {
            f"{layer[0]}self_attn.q_proj": (heads * head_dim, hidden),
            f"{layer[0]}self_attn.k_proj": (kv_heads * head_dim, hidden),
            f"{layer[0]}self_attn.v_proj": (kv_heads * head_dim, hidden),
            f"{layer[0]}self_attn.o_proj": (hidden, heads * head_dim),
            f"{layer[0]}mlp.gate_proj": (intermediate, hidden),
            f"{layer[0]}mlp.up_proj": (intermediate, hidden),
            f"{layer[0]}mlp.down_proj": (hidden, intermediate),
            f"{layer[0]}input_layernorm": (hidden,),
            f"{layer[0]}post_attention_layernorm": (hidden,),
        }
    module, _, kind = name.rpartition(".")
    if kind != "weight" or module not in shapes:
        raise ValueError(f"a checkpoint of this config has no tensor {name!r}")
    return shapes[module]


def fingerprint(shapes: Mapping[str, Shape]) -> Fingerprint:
    """Computes the sizes of a Llama from the shapes of its checkpoint tensors; the starter specifies ``unknown``."""
    vocabulary, hidden = shapes["model.embed_tokens.weight"]
    query_rows = shapes["model.layers.0.self_attn.q_proj.weight"][0]
    kv_rows = shapes["model.layers.0.self_attn.k_proj.weight"][0]
    usual = 64 if hidden <= 2048 else 128
    splits = [
        HeadSplit(query_rows // dim, kv_rows // dim, dim)
        for dim in range(2, kv_rows + 1, 2)
        if kv_rows % dim == 0 and query_rows % kv_rows == 0
    ]
    splits.sort(key=lambda split: (max(split.head_dim / usual, usual / split.head_dim), -split.head_dim))

    unknown = [
        "rope_theta and any rope scaling: they are computed, not stored",
        "rms_norm_eps: a number in config.json alone",
        "whether k_proj and v_proj, or gate_proj and up_proj, were swapped: their shapes are the same",
    ]
    if len(splits) > 1:
        unknown.append(f"head_dim: {query_rows} and {kv_rows} rows can be cut into heads in {len(splits)} ways")
    if "lm_head.weight" in shapes:
        unknown.append("tie_word_embeddings: the lm_head that is here may be a copy of the embedding")
    return Fingerprint(
        num_layers=len({match[1] for name in shapes if (match := re.match(r"model\.layers\.(\d+)\.", name))}),
        hidden_size=hidden,
        intermediate_size=shapes["model.layers.0.mlp.gate_proj.weight"][0],
        vocab_size=vocabulary,
        tied="lm_head.weight" not in shapes,
        splits=tuple(splits),
        unknown=tuple(unknown),
    )


def diagnose(
    rows: Sequence[Mapping[str, Any]], checkpoint_shapes: Mapping[str, Shape], parameter_shapes: Mapping[str, Shape]
) -> list[Finding]:
    """Finds what a recorded load left unwritten, wrote twice or cut off: counts how often each part was written and read."""
    ranks = sorted({row["tp_rank"] for row in rows}) or [0]
    tp_size = rows[0]["tp_size"] if rows else 1
    findings = []
    for rank in ranks:
        for name, shape in parameter_shapes.items():
            written = [row["destination"] for row in rows if row["tp_rank"] == rank and row["parameter"] == name]
            owed = _without_padding(name, shape, checkpoint_shapes, rank)
            findings += [Finding("missing", name, part, rank) for part in _parts(owed, written, lambda count: count == 0)]
            findings += [Finding("twice", name, part, rank) for part in _parts(shape, written, lambda count: count > 1)]
    if len(ranks) == tp_size:
        for name, shape in checkpoint_shapes.items():
            if name.endswith("rotary_emb.inv_freq"):
                continue
            read = [row["source"] for row in rows if row["tensor"] == name]
            findings += [Finding("cut off", name, part, None) for part in _parts(shape, read, lambda count: count == 0)]
    return findings


def _without_padding(name: str, shape: Shape, checkpoint_shapes: Mapping[str, Shape], rank: int) -> Shape:
    """Returns the shape of a parameter without padding: of the vocabulary, only the rows that exist in the checkpoint."""
    if name not in ("model.embed_tokens.weight", "lm_head.weight") or name not in checkpoint_shapes:
        return shape
    left = checkpoint_shapes[name][0] - rank * shape[0]
    return (min(max(left, 0), shape[0]), *shape[1:])


def _parts(shape: Shape, spans: Iterable[Sequence[Sequence[int]]], wanted: Callable[[int], bool]) -> list[tuple[Span, ...]]:
    """Returns the parts of a tensor that are covered a ``wanted`` number of times, with neighbouring parts joined.

    The edges of all spans cut each axis into pieces, which form a grid. All elements of a cell are covered equally often, so one
    count for each cell is enough. The cost depends on the number of records, not on the size of the tensor.
    """
    covering = list(spans)
    cells: list[tuple[Span, ...]] = [()]
    for axis, size in enumerate(shape):
        edges = sorted({0, size} | {min(edge, size) for span in covering for edge in span[axis]})
        cells = [(*cell, piece) for cell in cells for piece in pairwise(edges)]

    def inside(span: Sequence[int], piece: Span) -> bool:
        return span[0] <= piece[0] and piece[1] <= span[1]

    def count(cell: tuple[Span, ...]) -> int:
        return sum(all(map(inside, span, cell)) for span in covering)

    parts = [cell for cell in cells if wanted(count(cell))]
    for axis in range(len(shape)):
        parts = _joined(parts, axis)
    return parts


def _joined(parts: list[tuple[Span, ...]], axis: int) -> list[tuple[Span, ...]]:
    """Joins any two parts that are neighbours along ``axis`` and equal along every other axis."""

    def others(part: tuple[Span, ...]) -> tuple[Span, ...]:
        return part[:axis] + part[axis + 1 :]

    joined: list[tuple[Span, ...]] = []
    for part in sorted(parts, key=lambda part: (others(part), part[axis])):
        last = joined[-1] if joined else None
        if last and others(last) == others(part) and last[axis][1] == part[axis][0]:
            joined[-1] = (*last[:axis], (last[axis][0], part[axis][1]), *last[axis + 1 :])
        else:
            joined.append(part)
    return joined
