"""Lab 03, your work: load the tensors of a checkpoint into the fused parameters of a serving engine.

A checkpoint stores q_proj, k_proj and v_proj separately. An engine stacks them and multiplies once. With grouped-query
attention, k and v have fewer rows than q. Llama-3-8B has 32 query heads, 8 kv heads and 128 rows per head:

    qkv_proj.weight, one rank        row 0              4096     5120     6144
                                         |------ q ------|-- k --|-- v --|
    the same, rank 1 of 2            row 0      2048 2560 3072
                                         |-- q --|-k-|-v-|
                                             |     |   `--- v_proj rows  512:1024
                                             |     `------- k_proj rows  512:1024
                                             `------------- q_proj rows 2048:4096

Replace each `raise NotImplementedError` and run `./lab check 03`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

ShardId = str | int
"""vLLM's ids for the parts of a fused parameter: "q", "k", "v", 0 (gate) and 1 (up)."""

STACKED_PARAMS_MAPPING: tuple[tuple[str, str, ShardId], ...] = ()
"""The mapping rows: (fused module, checkpoint module, shard id), for instance ("qkv_proj", "q_proj", "q"). Five for a Llama."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model in config.json (given; nothing to do here).

    Attributes:
        hidden_size: H, the input of every projection here.
        num_heads: N, query heads in the whole model.
        num_kv_heads: K, key and value heads in the whole model; N is a multiple of K.
        head_dim: D, rows per head.
        intermediate_size: I, rows of gate_proj and of up_proj.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int


def translate(name: str) -> tuple[str, ShardId | None]:
    """Returns the parameter that a checkpoint tensor belongs to, and the shard of the parameter.

    Args:
        name: a name in the checkpoint, for example ``model.layers.0.self_attn.q_proj.weight``.

    Returns:
        ``("model.layers.0.self_attn.qkv_proj.weight", "q")``, or ``(name, None)`` if no mapping row matches. A row matches only
        the whole name of the module that owns the tensor: the row of ``up_proj`` matches neither ``backup_proj`` nor
        ``up_proj_norm``.
    """
    raise NotImplementedError("task names: fill STACKED_PARAMS_MAPPING and translate with it")


def shard_slices(shard_id: ShardId, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1) -> tuple[slice, slice]:
    """Returns the rows of a rank's fused parameter that a shard fills, and the rows of the checkpoint tensor to copy.

    Args:
        shard_id: "q", "k", "v", 0 (gate) or 1 (up).
        shape: the sizes of the whole model.
        tp_rank: this rank, from 0.
        tp_size: the number of ranks. Each rank has an equal share of the query heads and of the intermediate size. If there
            are more ranks than kv heads, ``tp_size / K`` consecutive ranks hold a copy of the same kv head.

    Returns:
        (destination, source), two slices of rows with start and stop.

    Raises:
        ValueError: if the heads or the intermediate size cannot be divided by the ranks; the message has both numbers.
    """
    raise NotImplementedError("task slices: compute the first row and the number of rows of the shard on this rank")


def load_shard(
    param: Tensor, loaded: Tensor, shard_id: ShardId | None, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1
) -> None:
    """Copies this rank's rows of one checkpoint tensor into its parameter, in place. Must not change ``loaded``.

    Args:
        param: this rank's parameter: (rows of all its shards, H), or (rows,) for a bias; it keeps its dtype.
        loaded: the whole checkpoint tensor: ``(N * D, H)`` for q, ``(K * D, H)`` for k and v, ``(I, H)`` for gate and up;
            without H for a bias. It is mapped memory that other ranks read too.
        shard_id: the shard of the parameter, or None if the tensor is not fused. Each dimension of an unfused tensor is equal
            to the parameter's, or ``tp_size`` times as large; then copy this rank's block (o_proj: columns, lm_head: rows).
        shape: the sizes of the whole model.
        tp_rank: this rank, from 0.
        tp_size: the number of ranks.

    Raises:
        ValueError: if ``loaded`` or ``param`` has a wrong shape, too large or too small. The message has both shapes. Raise it
            before anything is copied.
    """
    raise NotImplementedError("task loud: compare both shapes with the config, then copy")


def load_weights(
    params: Mapping[str, Tensor],
    weights: Iterable[tuple[str, Tensor]],
    shape: ModelShape,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> set[str]:
    """Loads a whole checkpoint. Every shard of every parameter must be loaded exactly once.

    Args:
        params: this rank's parameters by name. Fill the tensors in place, but add and remove no entry.
        weights: (checkpoint name, whole tensor) pairs in any order; it may be an iterator. Must not be changed.
        shape: the sizes of the whole model.
        tp_rank: this rank, from 0.
        tp_size: the number of ranks.

    Returns:
        The names of all parameters.

    Raises:
        ValueError: if tensors are unknown or come twice, or shards are missing. The message names every such tensor, and every
            such parameter with its shard, and has different words for the three faults.
    """
    raise NotImplementedError("task load: translate each name, load each shard, and check that none is missing")
