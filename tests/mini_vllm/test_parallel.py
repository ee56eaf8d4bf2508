"""How layers are cut for ranks: against vLLM's numbers, and against what must hold for any sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mini_vllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from mini_vllm.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from mini_vllm.parallel import ParallelError, Shard, ShardId, TPGroup, tp_group


def of_each_rank(build: Callable[[], nn.Module], size: int) -> list[nn.Module]:
    """The same layer as each of ``size`` ranks has it; shapes only."""
    layers = []
    for rank in range(size):
        with torch.device("meta"), tp_group(TPGroup(rank, size)):
            layers.append(build())
    return layers


def rows(shard: Shard) -> tuple[tuple[int, int], tuple[int, int]]:
    """(destination, source)."""
    return shard.target, shard.source


def test_llama_3_8b_is_cut_as_vllm_cuts_it() -> None:
    """The numbers that lab 02 records from the real vLLM."""

    def qkv(rank: int, size: int) -> dict[ShardId, tuple[tuple[int, int], tuple[int, int]]]:
        layer = of_each_rank(lambda: QKVParallelLinear(4096, 128, 32, 8), size)[rank]
        return {shard_id: rows(shard) for shard_id, shard in layer.shards("weight").items()}  # type: ignore[operator]

    assert qkv(0, 1) == {"q": ((0, 4096),) * 2, "k": ((4096, 5120), (0, 1024)), "v": ((5120, 6144), (0, 1024))}
    assert qkv(1, 2) == {"q": ((0, 2048), (2048, 4096)), "k": ((2048, 2560), (512, 1024)), "v": ((2560, 3072), (512, 1024))}
    # 16 ranks, 8 kv heads: ranks 14 and 15 both have the last.
    assert qkv(15, 16) == {"q": ((0, 256), (3840, 4096)), "k": ((256, 384), (896, 1024)), "v": ((384, 512), (896, 1024))}
    gate_up = of_each_rank(lambda: MergedColumnParallelLinear(4096, [14336] * 2), 2)[1].shards("weight")  # type: ignore[operator]
    assert {number: rows(shard) for number, shard in gate_up.items()} == {
        0: ((0, 7168), (7168, 14336)),
        1: ((7168, 14336), (7168, 14336)),
    }
    down = of_each_rank(lambda: RowParallelLinear(14336, 4096), 2)[1].shards("weight")[None]  # type: ignore[operator]
    assert (down.dim, down.shape, rows(down)) == (1, (4096, 14336), ((0, 7168), (7168, 14336)))
    table = of_each_rank(lambda: VocabParallelEmbedding(128257, 8), 2)
    assert [rows(each.shards("weight")[None])[1] for each in table] == [(0, 64160), (64160, 128257)]  # type: ignore[operator]
    assert [len(each.weight) for each in table] == [64160, 64160], "128257 rows are padded to 128320"  # type: ignore[arg-type]


@given(size=st.sampled_from([1, 2, 3, 4, 6, 8]), heads=st.integers(1, 3), kv=st.sampled_from([1, 2, 3, 4, 8]), data=st.data())
def test_every_row_has_a_rank_and_every_parameter_is_full(size: int, heads: int, kv: int, data: st.DataObject) -> None:
    build: dict[str, Callable[[], nn.Module]] = {
        "column": lambda: ColumnParallelLinear(4, 2 * size, bias=True),
        "merged": lambda: MergedColumnParallelLinear(4, [size, 3 * size], bias=True),
        "qkv": lambda: QKVParallelLinear(4, 2, heads * size * kv, kv, bias=True),
        "row": lambda: RowParallelLinear(5 * size, 3, bias=True),
        "embedding": lambda: VocabParallelEmbedding(64 * size - 5, 4),
        "head": lambda: ParallelLMHead(64 * size - 63, 4),
    }
    kind = data.draw(st.sampled_from(sorted(build)))
    if kind == "qkv" and kv % min(size, kv) | size % min(size, kv):
        with pytest.raises(ParallelError, match=f"{kv} kv heads and {size} ranks: one must be a multiple"):
            of_each_rank(build[kind], size)
        return
    layers = of_each_rank(build[kind], size)
    for name, _ in layers[0].named_parameters():
        read: dict[ShardId, Counter[int]] = {}
        for layer in layers:
            filled: Counter[int] = Counter()
            parameter = layer.get_parameter(name)
            for shard_id, shard in layer.shards(name).items():  # type: ignore[operator]
                assert shard.place(parameter).shape == shard.take(torch.empty(shard.shape, device="meta")).shape
                filled.update(range(*shard.target))
                read.setdefault(shard_id, Counter()).update(range(*shard.source))
            padding = kind in ("embedding", "head")
            assert set(filled.values()) <= {1}, "no row is written twice"
            assert padding or len(filled) == parameter.shape[shard.dim], "and none is left out"
        for shard_id, times in read.items():
            cut = layers[0].shards(name)[shard_id]  # type: ignore[operator]
            assert sorted(times) == list(range(cut.shape[cut.dim])), "the ranks read all of the tensor"
            assert len(set(times.values())) == 1, "and all of it as often"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: QKVParallelLinear(8, 2, 9, 3), "9 query heads cannot be shared evenly by 2 ranks; start 1 or 3 ranks"),
        (lambda: QKVParallelLinear(8, 2, 6, 3), "3 kv heads and 2 ranks: one must be a multiple of the other; start fewer"),
        (lambda: MergedColumnParallelLinear(8, [6, 7]), "7 outputs of a merged projection cannot be shared evenly by 2 ranks"),
        (lambda: RowParallelLinear(5, 8), "5 inputs of a RowParallelLinear cannot be shared evenly by 2 ranks; start 1 or 5"),
        (lambda: ColumnParallelLinear(8, 3), "3 outputs of a ColumnParallelLinear cannot be shared evenly by 2 ranks"),
    ],
)
def test_what_two_ranks_cannot_share_is_refused(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ParallelError, match=sentence):
        of_each_rank(build, 2)
