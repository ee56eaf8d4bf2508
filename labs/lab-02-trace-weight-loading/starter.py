"""Lab 02, your work: predict how vLLM loads a Llama, compute the sizes of a model from its shapes, and find the faults of a load.

The trace of a load by vLLM is a list of records. One record, from Llama-3-8B on rank 1 of 2:

    {"tensor": "model.layers.0.self_attn.k_proj.weight", "shape": [1024, 4096],
     "mapping": {"from": ".k_proj", "to": ".qkv_proj", "shard": "k"},
     "parameter": "model.layers.0.self_attn.qkv_proj.weight", "parameter_shape": [3072, 4096],
     "destination": [[2048, 2560], [0, 4096]], "source": [[512, 1024], [0, 4096]], "tp_rank": 1, "tp_size": 2}

Spans are half-open, [start, stop), one for each dimension. Replace each `raise NotImplementedError` and run
`./lab check 02`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Shape = tuple[int, ...]
Span = tuple[int, int]


@dataclass(frozen=True)
class HeadSplit:
    """A way to split the rows of q_proj and k_proj into heads (given; nothing to do here).

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
    """The sizes of a model, as far as the shapes of its checkpoint show them (given; nothing to do here).

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
    """A fault of a load (given; nothing to do here).

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


def trace_row(name: str, config: Mapping[str, Any], tp_size: int = 1, tp_rank: int = 0) -> dict[str, Any]:
    """Predicts the record of vLLM's load of one checkpoint tensor, from config.json alone. Must not change ``config``.

    Args:
        name: a checkpoint tensor of a Llama: ``model.embed_tokens.weight``, ``model.layers.3.mlp.up_proj.weight``,
            ``model.norm.weight``, ``lm_head.weight`` and so on.
        config: the contents of config.json. If ``head_dim`` is absent or None, it is ``hidden_size // num_attention_heads``.
            If ``num_key_value_heads`` is absent or None, there are as many kv heads as query heads.
        tp_size: the number of ranks. It divides the query heads, the intermediate size and the padded vocabulary.
        tp_rank: the rank that loads, from 0.

    Returns:
        A record with the nine keys shown at the top of this file, with shapes and spans as lists:

        * q, k and v are fused into ``qkv_proj``, and gate and up into ``gate_up_proj``. They are cut along rows, and have a
          ``mapping``. If there are more ranks than kv heads, ``tp_size // K`` consecutive ranks hold the same kv head.
        * o_proj and down_proj are cut along columns, and norms are not cut. Their ``mapping`` is None.
        * The V rows of embed_tokens and lm_head are rounded up to a multiple of 64, then cut along rows. A rank reads only rows
          that exist; the rows below them are padding. Their ``mapping`` is None.

    Raises:
        ValueError: if a checkpoint of this config has no tensor of that name (for example a layer too many, or the lm_head of a
            tied model). The message has the name.
    """
    raise NotImplementedError("tasks row and ranks: compute the parameter, the rows written and the rows read")


def fingerprint(shapes: Mapping[str, Shape]) -> Fingerprint:
    """Computes the sizes of a Llama from the shapes of its checkpoint tensors. Must not change ``shapes``.

    Args:
        shapes: checkpoint tensor -> shape, as in the header of a safetensors file.

    Returns:
        The sizes, and what the shapes cannot tell.

        ``splits``: shapes show only the products N*D and K*D. List every (N, K, D) with these products in which D is even (rope
        rotates pairs) and N is a multiple of K. The likeliest comes first: by convention D is 64 up to a hidden size of 2048,
        and 128 above. Sort by how near D is to that size by ratio; of two equally near, the larger comes first.

        ``unknown``: at least one sentence each with ``rope_theta``; with ``rms_norm_eps``; with ``k_proj`` and ``v_proj``, which
        may be swapped; with ``head_dim`` if more than one split fits; with ``tie_word_embeddings`` if there is an lm_head,
        because a tied model is sometimes saved with a copy.
    """
    raise NotImplementedError("task fingerprint: read each size from a shape, and list what no shape shows")


def diagnose(
    rows: Sequence[Mapping[str, Any]], checkpoint_shapes: Mapping[str, Shape], parameter_shapes: Mapping[str, Shape]
) -> list[Finding]:
    """Finds what a recorded load left unwritten, wrote twice or cut off. Must not change its arguments.

    Args:
        rows: records of one rank, or of several ranks of the same load, in any order.
        checkpoint_shapes: every tensor of the checkpoint.
        parameter_shapes: every parameter of the model; the same on every rank.

    Returns:
        The findings in any order; an empty list if the load has no fault. Neighbouring parts with the same fault are one
        finding. Without any record, everything is missing on rank 0 of 1.

        * ``missing`` and ``twice`` are reported for each rank in the records. Padding is not missing: if a rank has P rows of
          embed_tokens (or lm_head), rank r holds the rows from r*P on that exist in the checkpoint, and the rest is padding.
        * ``cut off`` is reported only if the records have every rank, because another rank may read what one rank does not.
          Exception: ``rotary_emb.inv_freq`` is not cut off. Old checkpoints store it, but vLLM computes it.
    """
    raise NotImplementedError("task diagnose: count how often each part was written, and how often it was read")
