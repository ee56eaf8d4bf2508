"""Lab 03, your work: from the tensors of a checkpoint to the fused parameters of a serving engine.

A checkpoint stores q_proj, k_proj and v_proj apart. An engine multiplies once, so it stacks them. With grouped-query
attention k and v are shorter than q. Llama-3-8B has 32 query heads, 8 kv heads, 128 rows per head:

    qkv_proj.weight, one rank        row 0              4096     5120     6144
                                         |------ q ------|-- k --|-- v --|
    the same, rank 1 of 2            row 0      2048 2560 3072
                                         |-- q --|-k-|-v-|
                                             |     |   `--- v_proj rows  512:1024
                                             |     `------- k_proj rows  512:1024
                                             `------------- q_proj rows 2048:4096

Replace each `raise NotImplementedError` and run `./lab check 03 --impl starter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

ShardId = str | int
"""What vLLM calls the parts of a fused parameter: "q", "k", "v", 0 (gate) and 1 (up)."""

STACKED_PARAMS_MAPPING: tuple[tuple[str, str, ShardId], ...] = ()
"""The mapping rows: (fused module, checkpoint module, shard id), for instance ("qkv_proj", "q_proj", "q"). Five for a Llama."""


@dataclass(frozen=True)
class ModelShape:
    """What config.json says of a model's sizes (given; nothing to do here).

    Attributes:
        hidden_size: H, the input of every projection here.
        num_heads: N, query heads in the whole model.
        num_kv_heads: K, key and value heads in the whole model; N is a multiple of it.
        head_dim: D, rows per head.
        intermediate_size: I, rows of gate_proj and of up_proj.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int


def translate(name: str) -> tuple[str, ShardId | None]:
    """The parameter a checkpoint tensor belongs to, and which shard of it the tensor is.

    Args:
        name: as the checkpoint has it, ``model.layers.0.self_attn.q_proj.weight``.

    Returns:
        ``("model.layers.0.self_attn.qkv_proj.weight", "q")``; ``(name, None)`` when no mapping row matches. A row matches the
        whole name of the module that owns the tensor: ``backup_proj`` and ``up_proj_norm`` are no ``up_proj``.
    """
    raise NotImplementedError("task names: fill STACKED_PARAMS_MAPPING and translate with it")


def shard_slices(shard_id: ShardId, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1) -> tuple[slice, slice]:
    """Which rows of a rank's fused parameter a shard fills, and which rows of the checkpoint tensor they come from.

    Args:
        shard_id: "q", "k", "v", 0 (gate) or 1 (up).
        shape: the whole model's sizes.
        tp_rank: this rank, from 0.
        tp_size: how many ranks share the model. Ranks divide the query heads and the intermediate size; when there are more
            ranks than kv heads, ``tp_size / K`` ranks in a row hold a copy of the same kv head.

    Returns:
        (destination, source), two slices of rows with start and stop.

    Raises:
        ValueError: the heads or the intermediate size cannot be shared evenly; the message has both numbers.
    """
    raise NotImplementedError("task slices: where does each shard begin, and how tall is it, on this rank?")


def load_shard(
    param: Tensor, loaded: Tensor, shard_id: ShardId | None, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1
) -> None:
    """Copies this rank's rows of one checkpoint tensor into its parameter, in place.

    Args:
        param: this rank's parameter: (rows of all its shards, H), or (rows,) for a bias; it keeps its dtype.
        loaded: the whole checkpoint tensor: ``(N * D, H)`` for q, ``(K * D, H)`` for k and v, ``(I, H)`` for gate and up, or
            without H for a bias.
        shard_id: which shard ``loaded`` is. None: the tensor is not fused; each dimension of it is either the parameter's
            own, or ``tp_size`` times that, and then this rank's block of it is taken (o_proj: columns, lm_head: rows).
        shape: the whole model's sizes.
        tp_rank: this rank.
        tp_size: how many there are.

    Raises:
        ValueError: ``loaded`` or ``param`` has another shape, too tall as well as too short; the message has both shapes, and
            not a byte was copied.
    """
    raise NotImplementedError("task loud: check both shapes against the config, then copy")


def load_weights(
    params: Mapping[str, Tensor],
    weights: Iterable[tuple[str, Tensor]],
    shape: ModelShape,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> set[str]:
    """Loads a whole checkpoint, strictly: every shard of every parameter exactly once.

    Args:
        params: this rank's parameters by name, filled in place.
        weights: (checkpoint name, whole tensor), in any order.
        shape: the whole model's sizes.
        tp_rank: this rank.
        tp_size: how many there are.

    Returns:
        The names of the parameters that were filled: all of them.

    Raises:
        ValueError: naming every tensor that has no parameter or comes twice, and every parameter, with its shard, that no
            tensor filled; what is wrong with each is told apart.
    """
    raise NotImplementedError("task load: translate, load each shard, and account for every one of them")
