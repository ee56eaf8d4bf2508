"""Each layer, plain and with its kernel, against its formula computed another way in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch import nn

from mini_vllm.config import EngineConfig
from mini_vllm.engine.request import Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context, set_forward_context
from mini_vllm.kernels.install import install_kernels
from mini_vllm.kernels.paged_decode import PagedDecodes
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.sampling_params import SamplingParams


def request(num_tokens: int) -> Request:
    return Request("r", [0] * num_tokens, SamplingParams(), EngineConfig(max_model_len=64, block_size=4))


def context_of(
    cache: KVCache, tables: Sequence[tuple[int, ...]], lengths: Sequence[int], num_queries: Sequence[int]
) -> ForwardContext:
    """The step in which each request's newest ``num_queries`` of ``lengths`` tokens run."""
    size = cache.block_size
    return ForwardContext(
        kv_cache=cache,
        query_start=(0, *accumulate(num_queries)),
        lengths=tuple(lengths),
        block_tables=tuple(tables),
        write_slots=torch.tensor(
            [
                table[position // size] * size + position % size
                for table, length, count in zip(tables, lengths, num_queries, strict=True)
                for position in range(length - count, length)
            ]
        ),
        logits_indices=torch.tensor(list(accumulate(num_queries))) - 1,
    )


def with_kernels(layer: nn.Module, kernels: bool) -> nn.Module:
    """The layer, plain or with its kernel."""
    if kernels:
        install_kernels(layer)
    return layer


both_ways = pytest.mark.parametrize("kernels", [False, True])


def test_slots_follow_the_drawing() -> None:
    runner = Runner(model=None, num_blocks=16, block_size=4)  # type: ignore[arg-type]
    chunk = Chunk(request(9), start=0, num_tokens=9, blocks=(7, 2, 9))
    assert runner._slots(chunk) == [28, 29, 30, 31, 8, 9, 10, 11, 36]


def test_a_chunk_writes_behind_what_is_there() -> None:
    contexts: list[ForwardContext] = []

    class Watching:
        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            contexts.append(get_forward_context())
            assert positions.tolist() == [3, 4, 5, 6, 0, 1]
            return torch.zeros(len(tokens), 2)

    runner = Runner(Watching(), num_blocks=16, block_size=4)
    first = Chunk(request(9), start=3, num_tokens=4, blocks=(7, 2))
    second = Chunk(request(2), start=0, num_tokens=2, blocks=(5,))
    runner.run(Step((first, second), ()))
    context = contexts[0]
    assert context.write_slots.tolist() == [31, 8, 9, 10, 20, 21]
    assert context.block_tables == ((7, 2), (5,))
    assert context.lengths == (7, 2)
    assert context.query_start == (0, 4, 6)
    assert context.logits_indices.tolist() == [3, 5]


@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("consecutive", [True, False])
@pytest.mark.parametrize(
    ("kernels", "dtype", "tolerance"), [(False, torch.float64, 1e-12), (False, torch.float32, 2e-6), (True, torch.float32, 2e-6)]
)
def test_attention_over_blocks_equals_attention_written_out(
    window: int | None, consecutive: bool, kernels: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Requests of very different lengths decode and prefill in the same steps; two of them share a prefix. With kernels, decodes
    read the blocks in place, else they are gathered."""
    num_heads, kv_heads, head_dim, size = 6, 2, 8, 3
    generator = torch.Generator().manual_seed(0)
    attention, cache = with_kernels(Attention("layer", window), kernels), KVCache(64, size)
    order = torch.arange(64) if consecutive else torch.randperm(64, generator=generator)
    tables = [tuple(blocks) for blocks in order[:60].view(6, 10).tolist()]
    tables[1] = tables[0][:2] + tables[1][2:]
    qkv = torch.randn(6, 30, num_heads + 2 * kv_heads, head_dim, dtype=torch.float64, generator=generator)
    qkv[1, :6] = qkv[0, :6]
    done, outputs = [0, 6, 0, 0, 0, 0], [[] for _ in tables]
    for counts in ([7, 0, 1, 20, 4, 0], [5, 9, 1, 1, 4, 0], [1, 1, 1, 1, 6, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0]):
        who = [request for request, count in enumerate(counts) if count]
        rows = torch.cat([qkv[r, done[r] : done[r] + counts[r]] for r in who])
        done = [before + count for before, count in zip(done, counts, strict=True)]
        context = context_of(cache, [tables[r] for r in who], [done[r] for r in who], [counts[r] for r in who])
        with set_forward_context(context):
            out = attention(*rows.to(dtype).split([num_heads, kv_heads, kv_heads], dim=1))
        in_place = any(isinstance(group, PagedDecodes) for group in context.attention_metadata[window])
        assert in_place == (kernels and 1 in counts)
        for r, part in zip(who, out.split([counts[r] for r in who]), strict=True):
            outputs[r].append(part)
    for r, parts in enumerate(outputs):
        first, q, k, v = done[r] - sum(map(len, parts)), *qkv[r].split([num_heads, kv_heads, kv_heads], dim=1)
        expected = torch.zeros(done[r], num_heads, head_dim, dtype=torch.float64)
        for position in range(done[r]):
            seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
            for head in range(num_heads):
                weights = torch.softmax(k[seen, head // 3] @ q[position, head] / head_dim**0.5, dim=0)
                expected[position, head] = weights @ v[seen, head // 3]
        torch.testing.assert_close(torch.cat(parts).double(), expected.flatten(1)[first:], rtol=tolerance, atol=tolerance)


@both_ways
def test_rms_norm_worked_out_by_hand(kernels: bool) -> None:
    norm = with_kernels(RMSNorm(2, eps=0.0), kernels)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # The mean of 3^2 and 4^2 is 12.5.
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 40.0]]) / 12.5**0.5)


@both_ways
def test_a_residual_is_added_before_the_norm_and_returned(kernels: bool) -> None:
    norm = with_kernels(RMSNorm(2, eps=0.0), kernels)
    norm.weight.data = torch.tensor([1.0, 10.0])
    for dtype in (torch.float32, torch.float64):
        x, residual = torch.tensor([[1.0, 5.0]], dtype=dtype), torch.tensor([[2.0, -1.0]], dtype=dtype)
        normalised, total = norm.to(dtype)(x, residual)
        assert total.tolist() == residual.tolist() == [[3.0, 4.0]]
        assert x.tolist() == [[1.0, 5.0]]
        torch.testing.assert_close(normalised, torch.tensor([[3.0, 40.0]], dtype=dtype) / 12.5**0.5)


@both_ways
def test_silu_and_mul_worked_out_by_hand(kernels: bool) -> None:
    act_fn = with_kernels(SiluAndMul(), kernels)
    # silu(0) = 0; silu(2) = 2 / (1 + e^-2) = 1.76159
    torch.testing.assert_close(act_fn(torch.tensor([[0.0, 2.0, 5.0, 3.0]])), torch.tensor([[0.0, 3 * 1.7615942]]))


@both_ways
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_silu_and_mul_near_and_far_from_zero(rows: int, kernels: bool) -> None:
    act_fn = with_kernels(SiluAndMul(), kernels)
    x = torch.randn(rows, 2 * 50, generator=torch.Generator().manual_seed(0)) * 60
    gate, up = x.double().chunk(2, dim=-1)
    torch.testing.assert_close(act_fn(x), (nn.functional.silu(gate) * up).float(), rtol=1e-6, atol=1e-6)
    assert act_fn(torch.tensor([[float("nan"), 1.0]])).isnan().all(), "NaN stays NaN"


def test_one_step_at_a_time() -> None:
    context = context_of(KVCache(1, 1), [], [], [])
    with set_forward_context(context), pytest.raises(RuntimeError, match="already set"), set_forward_context(context):
        pass
    with pytest.raises(RuntimeError, match="no forward context"):
        get_forward_context()


def test_engine_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        EngineConfig(max_model_len=8, block_size=0)
