"""Lab 03, solution: load the tensors of a checkpoint into the fused parameters of a serving engine.

A checkpoint stores q_proj, k_proj and v_proj separately. An engine stacks them and multiplies once. With grouped-query
attention, k and v have fewer rows than q. Llama-3-8B has 32 query heads, 8 kv heads and 128 rows per head:

    qkv_proj.weight, one rank        row 0              4096     5120     6144
                                         |------ q ------|-- k --|-- v --|
    the same, rank 1 of 2            row 0      2048 2560 3072
                                         |-- q --|-k-|-v-|
                                             |     |   `--- v_proj rows  512:1024
                                             |     `------- k_proj rows  512:1024
                                             `------------- q_proj rows 2048:4096
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

ShardId = str | int
"""vLLM's ids for the parts of a fused parameter: "q", "k", "v", 0 (gate) and 1 (up)."""

STACKED_PARAMS_MAPPING: tuple[tuple[str, str, ShardId], ...] = (
    # (fused module, checkpoint module, shard id)
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model in config.json.

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

    Returns:
        (parameter name, shard id), or ``(name, None)`` if no mapping row matches the module that owns the tensor.
    """
    owner, _, kind = name.rpartition(".")
    path, dot, module = owner.rpartition(".")
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module == original:
            return f"{path}{dot}{fused}.{kind}", shard_id
    return name, None


def shard_slices(shard_id: ShardId, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1) -> tuple[slice, slice]:
    """Returns the rows of a rank's fused parameter that a shard fills, and the rows of the checkpoint tensor to copy.

    Returns:
        (destination, source).

    Raises:
        ValueError: if the heads or the intermediate size cannot be divided by the ranks.
    """
    if shard_id in (0, 1):
        rows = share(shape.intermediate_size, tp_size, f"{shape.intermediate_size} rows of gate_proj")
        return block(int(shard_id), rows), block(tp_rank, rows)
    heads = share(shape.num_heads, tp_size, f"{shape.num_heads} query heads")
    replicas = max(1, tp_size // shape.num_kv_heads)
    kv_heads = share(shape.num_kv_heads * replicas, tp_size, f"{shape.num_kv_heads} kv heads")
    first_head, num_heads, source = {
        "q": (0, heads, tp_rank),
        "k": (heads, kv_heads, tp_rank // replicas),
        "v": (heads + kv_heads, kv_heads, tp_rank // replicas),
    }[str(shard_id)]
    start, rows = first_head * shape.head_dim, num_heads * shape.head_dim
    return slice(start, start + rows), block(source, rows)


def share(total: int, tp_size: int, what: str) -> int:
    """Returns ``total / tp_size``; raises ValueError if it is not a whole number. ``what`` names the number in the message."""
    if total % tp_size:
        raise ValueError(f"{what} cannot be divided by {tp_size} ranks; choose another tp_size")
    return total // tp_size


def block(index: int, rows: int) -> slice:
    """Returns the slice of block ``index``, where each block has ``rows`` rows."""
    return slice(index * rows, (index + 1) * rows)


def checkpoint_rows(shard_id: ShardId, shape: ModelShape) -> int:
    """Returns the number of rows of the whole checkpoint tensor of a shard."""
    kv_rows = shape.num_kv_heads * shape.head_dim
    return {"q": shape.num_heads * shape.head_dim, "k": kv_rows, "v": kv_rows}.get(str(shard_id), shape.intermediate_size)


def fused_rows(shard_id: ShardId, shape: ModelShape, tp_rank: int, tp_size: int) -> int:
    """Returns the number of rows of a rank's fused parameter: the end of its last shard."""
    return shard_slices(1 if shard_id in (0, 1) else "v", shape, tp_rank, tp_size)[0].stop


def load_shard(
    param: Tensor, loaded: Tensor, shard_id: ShardId | None, shape: ModelShape, tp_rank: int = 0, tp_size: int = 1
) -> None:
    """Copies this rank's part of one checkpoint tensor into its parameter, in place.

    Raises:
        ValueError: if a shape is not the one that the config requires; nothing is copied then.
    """
    if shard_id is None:
        param.data.copy_(loaded[unfused_source(param, loaded, tp_rank, tp_size)])
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    inputs = (shape.hidden_size,)[: param.dim() - 1]  # a bias has rows only
    wanted = (checkpoint_rows(shard_id, shape), *inputs)
    if loaded.shape != wanted:
        raise ValueError(
            f"shard {shard_id!r} of the checkpoint is {tuple(loaded.shape)}, but the config requires {wanted}; compare the "
            f"checkpoint with config.json's num_key_value_heads {shape.num_kv_heads}, head_dim {shape.head_dim} and "
            f"intermediate_size {shape.intermediate_size}"
        )
    wanted = (fused_rows(shard_id, shape, tp_rank, tp_size), *inputs)
    if param.shape != wanted:
        raise ValueError(f"the fused parameter is {tuple(param.shape)}, but rank {tp_rank} of {tp_size} needs {wanted}")
    param.data[destination].copy_(loaded[source])


def unfused_source(param: Tensor, loaded: Tensor, tp_rank: int, tp_size: int) -> tuple[slice, ...]:
    """Returns this rank's part of an unfused tensor: its block of every dimension in which the parameter is smaller."""
    sizes = list(zip(param.shape, loaded.shape, strict=False))
    if loaded.dim() != param.dim() or any(big not in (own, own * tp_size) for own, big in sizes):
        raise ValueError(
            f"the checkpoint tensor is {tuple(loaded.shape)} and the parameter of rank {tp_rank} of {tp_size} is "
            f"{tuple(param.shape)}; each dimension must be that of the parameter, or {tp_size} times it"
        )
    return tuple(block(tp_rank if big != own else 0, own) for own, big in sizes)


def load_weights(
    params: Mapping[str, Tensor],
    weights: Iterable[tuple[str, Tensor]],
    shape: ModelShape,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> set[str]:
    """Loads a whole checkpoint. Every shard of every parameter must be loaded exactly once.

    Returns:
        The names of all parameters.

    Raises:
        ValueError: if tensors are unknown or come twice, or shards are missing; the message names them all.
    """
    expected = [(name, shard_id) for name in params for shard_id in shards_of(name)]
    missing, problems = set(expected), []
    for name, loaded in weights:
        target = parameter, shard_id = translate(name)
        if target not in expected:
            problems.append(f"{name} is unknown: the model has no parameter {parameter}")
        elif target not in missing:
            problems.append(f"{name} comes twice")
        else:
            load_shard(params[parameter], loaded, shard_id, shape, tp_rank, tp_size)
            missing.remove(target)
    for name, shard_id in expected:
        if (name, shard_id) in missing:
            problems.append(f"{name} was never filled" if shard_id is None else f"{name} [{shard_id}] was never filled")
    if problems:
        raise ValueError(f"the checkpoint does not fit the model: {'; '.join(problems)}")
    return set(params)


def shards_of(parameter: str) -> tuple[ShardId | None, ...]:
    """Returns the shards that fill a parameter, by the mapping rows; (None,) if it is not fused."""
    module = parameter.rpartition(".")[0].rpartition(".")[2]
    return tuple(shard_id for fused, _, shard_id in STACKED_PARAMS_MAPPING if fused == module) or (None,)
