"""Each layer against its formula, worked out another way in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.request import Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context, set_forward_context
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention, PagedDecodes
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.paged_attention import paged_decode_attention
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
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_paged_attention_equals_attention_written_out(
    window: int | None, consecutive: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Requests of very different lengths, decoding and prefilling in the same steps, two of them behind a shared prefix.
    In float32 decodes read the blocks in place, in float64 they are gathered."""
    num_heads, kv_heads, head_dim, size = 6, 2, 8, 3
    generator = torch.Generator().manual_seed(0)
    attention, cache = Attention("layer", window), KVCache(64, size)
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
        assert in_place == (dtype == torch.float32 and 1 in counts)
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


@pytest.mark.parametrize("lengths", [[1], [4, 5, 8, 3, 1], [64, 1, 63, 17]])
@pytest.mark.parametrize("window", [None, 1, 4, 6])
def test_decodes_in_place_read_their_own_tokens_and_no_others(lengths: list[int], window: int | None) -> None:
    """Every slot that no query may see holds NaN, and so do those of the newest tokens, which the call is to fill; scores are far
    apart, so that most weights underflow."""
    size, generator = 4, torch.Generator().manual_seed(0)
    tables = torch.randperm(64 * len(lengths), generator=generator).view(len(lengths), -1)[:, :16].contiguous()
    keys, values = torch.full((2, 64 * len(lengths), size, 2, 8), float("nan"))
    q, expected = 20 * torch.randn(len(lengths), 8, 8, generator=generator)[:, 1:7], torch.empty(len(lengths), 6, 8)
    new_k, new_v = torch.empty(2, len(lengths), 2, 8)
    for request, length in enumerate(lengths):
        seen = torch.arange(max(0, length - window) if window else 0, length)
        k, v = torch.randn(2, len(seen), 2, 8, generator=generator)
        slots = tables[request, seen[:-1] // size], seen[:-1] % size
        keys[slots], values[slots], new_k[request], new_v[request] = k[:-1], v[:-1], k[-1], v[-1]
        k, v = (heads.double().repeat_interleave(3, dim=1) for heads in (k, v))
        weights = torch.softmax(torch.einsum("nd,lnd->nl", q[request].double(), k) / 8**0.5, dim=1)
        expected[request] = torch.einsum("nl,lnd->nd", weights, v)
    out = paged_decode_attention(q, new_k, new_v, keys, values, tables, torch.tensor(lengths), window)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    last = torch.tensor(lengths) - 1
    slots = tables[torch.arange(len(lengths)), last // size], last % size
    assert torch.equal(keys[slots], new_k)
    assert torch.equal(values[slots], new_v)


def test_rms_norm_worked_out_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # The mean of 3^2 and 4^2 is 12.5.
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 40.0]]) / 12.5**0.5)


def test_a_residual_is_added_before_the_norm_and_comes_back() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    for dtype in (torch.float32, torch.float64):
        x, residual = torch.tensor([[1.0, 5.0]], dtype=dtype), torch.tensor([[2.0, -1.0]], dtype=dtype)
        normalised, total = norm.to(dtype)(x, residual)
        assert total.tolist() == residual.tolist() == [[3.0, 4.0]]
        assert x.tolist() == [[1.0, 5.0]]
        torch.testing.assert_close(normalised, torch.tensor([[3.0, 40.0]], dtype=dtype) / 12.5**0.5)


THREADS = """
import torch
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.linear import ColumnParallelLinear
from mini_vllm.layers.quantization import process_weights_after_loading

torch.set_num_threads(1)
RMSNorm(64, 1e-6)(torch.ones(1024, 64))
layer = ColumnParallelLinear(4, 32)
process_weights_after_loading(layer)
layer(torch.ones(1, 4))
print(torch.get_num_threads())
"""


def test_loops_leave_torch_as_many_threads_as_it_was_given() -> None:
    """In a process of its own: what numba's pool does to OpenMP, it does once, when it starts."""
    two = os.environ | {"NUMBA_NUM_THREADS": "2"}
    ended = subprocess.run([sys.executable, "-c", THREADS], env=two, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


def test_silu_and_mul_worked_out_by_hand() -> None:
    # silu(0) = 0; silu(2) = 2 / (1 + e^-2) = 1.76159
    torch.testing.assert_close(SiluAndMul()(torch.tensor([[0.0, 2.0, 5.0, 3.0]])), torch.tensor([[0.0, 3 * 1.7615942]]))


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_silu_and_mul_is_torchs_near_and_far_from_zero(rows: int) -> None:
    x = torch.randn(rows, 2 * 50, generator=torch.Generator().manual_seed(0)) * 60
    gate, up = x.double().chunk(2, dim=-1)
    torch.testing.assert_close(SiluAndMul()(x), (torch.nn.functional.silu(gate) * up).float(), rtol=1e-6, atol=1e-6)
    assert SiluAndMul()(torch.tensor([[float("nan"), 1.0]])).isnan().all(), "what is no number stays none"


def test_one_step_at_a_time() -> None:
    context = context_of(KVCache(1, 1), [], [], [])
    with set_forward_context(context), pytest.raises(RuntimeError, match="already set"), set_forward_context(context):
        pass
    with pytest.raises(RuntimeError, match="no forward context"):
        get_forward_context()


def test_engine_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        EngineConfig(max_model_len=8, block_size=0)
