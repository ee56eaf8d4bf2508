"""Lab 02, your work: say where every tensor of a Llama goes before vLLM does, know a model by its shapes, find what a load lost.

The real vLLM's load, traced, is a list of records. One of them, from Llama-3-8B on rank 1 of 2:

    {"tensor": "model.layers.0.self_attn.k_proj.weight", "shape": [1024, 4096],
     "mapping": {"from": ".k_proj", "to": ".qkv_proj", "shard": "k"},
     "parameter": "model.layers.0.self_attn.qkv_proj.weight", "parameter_shape": [3072, 4096],
     "destination": [[2048, 2560], [0, 4096]], "source": [[512, 1024], [0, 4096]], "tp_rank": 1, "tp_size": 2}

Spans are half-open, [start, stop), one for each dimension. Replace each `raise NotImplementedError` and run
`./lab check 02 --impl starter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Shape = tuple[int, ...]
Span = tuple[int, int]


@dataclass(frozen=True)
class HeadSplit:
    """One way to cut the rows of q_proj and k_proj into heads (given; nothing to do here).

    Attributes:
        num_heads: N, query heads.
        num_kv_heads: K, key and value heads; N is a multiple of it.
        head_dim: D, rows per head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Fingerprint:
    """What the shapes of a checkpoint give away (given; nothing to do here).

    Attributes:
        num_layers: decoder layers.
        hidden_size: H.
        intermediate_size: I, rows of gate_proj and of up_proj.
        vocab_size: V.
        tied: there is no lm_head: the embedding serves for it.
        splits: every way to cut the heads that fits, likeliest first.
        unknown: what the shapes cannot tell, in words, a sentence for each.
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
    """One thing that is wrong with a load (given; nothing to do here).

    Attributes:
        fault: ``missing``: rows of a parameter that nothing was written to. ``twice``: rows of a parameter that were written more
            than once. ``cut off``: part of a checkpoint tensor that no rank read.
        name: the parameter; for ``cut off`` the checkpoint tensor.
        part: which part of it, one span for each dimension.
        tp_rank: the rank it happened on; None for ``cut off``, which concerns all of them together.
    """

    fault: Literal["missing", "twice", "cut off"]
    name: str
    part: tuple[Span, ...]
    tp_rank: int | None


def trace_row(name: str, config: Mapping[str, Any], tp_size: int = 1, tp_rank: int = 0) -> dict[str, Any]:
    """The record that vLLM's load of one checkpoint tensor will leave, worked out from config.json alone.

    Args:
        name: a checkpoint tensor of a Llama: ``model.embed_tokens.weight``, ``model.layers.3.mlp.up_proj.weight``,
            ``model.norm.weight``, ``lm_head.weight`` and so on.
        config: what config.json says. ``head_dim`` and ``num_key_value_heads`` may be absent or None: the head size is then
            ``hidden_size // num_attention_heads``, and there are as many kv heads as query heads.
        tp_size: how many ranks share the model. Query heads, intermediate size and padded vocabulary divide by it.
        tp_rank: the rank that loads, from 0.

    Returns:
        A record with the nine keys shown at the top of this file, shapes and spans as lists. In short:

        * q, k, v share ``qkv_proj``, gate and up share ``gate_up_proj``, cut along rows; ``mapping`` says so. With more ranks
          than kv heads, ``tp_size // K`` ranks in a row hold the same kv head.
        * o_proj and down_proj are cut along columns; norms are not cut; for all of these ``mapping`` is None.
        * embed_tokens and lm_head have their V rows rounded up to a multiple of 64, then cut along rows; a rank reads the rows
          that exist, and may have padding below them.

    Raises:
        ValueError: a checkpoint of this config has no tensor of that name (a layer too many, the lm_head of a tied model,
            a word that is no Llama's); the message has the name.
    """
    raise NotImplementedError("tasks row and ranks: which parameter, which rows of it, which rows of the tensor?")


def fingerprint(shapes: Mapping[str, Shape]) -> Fingerprint:
    """Knows a Llama by the shapes of its checkpoint tensors.

    Args:
        shapes: checkpoint tensor -> shape, as a safetensors header has it.

    Returns:
        What the shapes say, and what they do not.

        ``splits``: only the products N*D and K*D show, so it holds every (N, K, D) with these products in which D is even (rope
        turns pairs) and N is a multiple of K. Likeliest first: by convention D is 64 up to a hidden size of 2048, and 128
        above. The nearer D is to that by ratio, the earlier it comes; of two equally near, the larger first.

        ``unknown``: at least one sentence each that names ``rope_theta``, ``rms_norm_eps``, ``k_proj`` and ``v_proj`` (swapped,
        they fit as well), ``head_dim`` when more than one split fits, and ``tie_word_embeddings`` when there is an lm_head (a
        tied model is sometimes saved with a copy).
    """
    raise NotImplementedError("task fingerprint: which shape shows which size, and which size shows in none?")


def diagnose(
    rows: Sequence[Mapping[str, Any]], checkpoint_shapes: Mapping[str, Shape], parameter_shapes: Mapping[str, Shape]
) -> list[Finding]:
    """Finds what a recorded load left unwritten, wrote twice, or cut off.

    Args:
        rows: records of one rank, or of several ranks of the same load, in any order.
        checkpoint_shapes: every tensor of the checkpoint.
        parameter_shapes: every parameter of the model; the same on every rank.

    Returns:
        The findings in any order; an empty list for a load with nothing wrong. Neighbouring parts with the same fault are one
        finding. Without any record, everything is missing on rank 0 of 1.

        * ``missing`` and ``twice`` are told for each rank that is among the rows. Padding is not missing: of the V rows of
          embed_tokens (or lm_head) in the checkpoint, rank r holds those from r*P on in its P rows; what lies below is padding.
        * ``cut off`` is told only when every rank is among the rows: what one rank leaves, another may read. One thing that
          nobody reads is not cut off: ``rotary_emb.inv_freq``, which old checkpoints store and vLLM computes.
    """
    raise NotImplementedError("task diagnose: count how often each part was written, and how often it was read")
