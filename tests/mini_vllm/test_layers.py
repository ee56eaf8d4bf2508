"""Each layer against its formula, worked out another way in float64."""

from __future__ import annotations

import pytest
import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.request import Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context, set_forward_context
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention
from mini_vllm.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.sampling_params import SamplingParams


def request(num_tokens: int) -> Request:
    return Request("r", [0] * num_tokens, SamplingParams(), EngineConfig(max_model_len=64, block_size=4))


def test_slots_follow_the_drawing() -> None:
    runner = Runner(model=None, num_blocks=16, block_size=4)  # type: ignore[arg-type]
    chunk = Chunk(request(9), start=0, num_tokens=9, blocks=(7, 2, 9))
    assert runner._slots(chunk).tolist() == [28, 29, 30, 31, 8, 9, 10, 11, 36]


def test_a_chunk_writes_behind_what_is_there() -> None:
    contexts: list[ForwardContext] = []

    class Watching:
        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            contexts.append(get_forward_context())
            return torch.zeros(len(tokens), 2)

    runner = Runner(Watching(), num_blocks=16, block_size=4)
    first = Chunk(request(9), start=3, num_tokens=4, blocks=(7, 2))
    second = Chunk(request(2), start=0, num_tokens=2, blocks=(5,))
    runner.run(Step((first, second), ()))
    context = contexts[0]
    assert context.write_slots.tolist() == [31, 8, 9, 10, 20, 21]
    assert [slots.tolist() for slots in context.read_slots] == [[28, 29, 30, 31, 8, 9, 10], [20, 21]]
    assert context.query_start == (0, 4, 6)
    assert context.logits_indices.tolist() == [3, 5]


@pytest.mark.parametrize("window", [None, 1, 4, 11, 50])
def test_paged_attention_equals_attention_written_out(window: int | None) -> None:
    num_heads, kv_heads, head_dim, length = 6, 2, 8, 11
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(length, heads, head_dim, dtype=torch.float64, generator=generator)
        for heads in (num_heads, kv_heads, kv_heads)
    )
    attention, cache = Attention(num_heads, head_dim, kv_heads, "layer", window), KVCache(64)
    slots = torch.randperm(64, generator=generator)[:length]
    outputs = []
    for start, stop in ((0, 4), (4, 10), (10, 11)):  # two chunks and a decode
        context = ForwardContext(cache, (0, stop - start), slots[start:stop], (slots[:stop],), torch.tensor([stop - start - 1]))
        with set_forward_context(context):
            outputs.append(attention(q[start:stop], k[start:stop], v[start:stop]))
    expected = torch.zeros(length, num_heads, head_dim, dtype=torch.float64)
    for head in range(num_heads):
        for position in range(length):
            seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
            keys, values = k[seen, head // 3], v[seen, head // 3]
            weights = torch.softmax(keys @ q[position, head] / head_dim**0.5, dim=0)
            expected[position, head] = weights @ values
    torch.testing.assert_close(torch.cat(outputs), expected.flatten(1), rtol=1e-12, atol=1e-12)


def test_two_requests_in_a_step_do_not_see_each_other() -> None:
    attention = Attention(2, 4, 1, "layer")
    q, k, v = torch.randn(5, 2, 4), torch.randn(5, 1, 4), torch.randn(5, 1, 4)

    def run(rows: slice, slots: list[list[int]], starts: tuple[int, ...]) -> torch.Tensor:
        write = torch.tensor([slot for each in slots for slot in each])
        context = ForwardContext(KVCache(16), starts, write, tuple(map(torch.tensor, slots)), torch.tensor(starts[1:]) - 1)
        with set_forward_context(context):
            return attention(q[rows], k[rows], v[rows])

    together = run(slice(0, 5), [[3, 1], [9, 8, 2]], (0, 2, 5))
    torch.testing.assert_close(together[:2], run(slice(0, 2), [[3, 1]], (0, 2)))
    torch.testing.assert_close(together[2:], run(slice(2, 5), [[9, 8, 2]], (0, 3)))


def test_rms_norm_worked_out_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # The mean of 3^2 and 4^2 is 12.5.
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 40.0]]) / 12.5**0.5)


def test_silu_and_mul_worked_out_by_hand() -> None:
    # silu(0) = 0; silu(2) = 2 / (1 + e^-2) = 1.76159
    torch.testing.assert_close(SiluAndMul()(torch.tensor([[0.0, 2.0, 5.0, 3.0]])), torch.tensor([[0.0, 3 * 1.7615942]]))


def test_shards_tile_the_fused_parameters() -> None:
    qkv = QKVParallelLinear(hidden_size=4096, head_dim=128, num_heads=32, num_kv_heads=8)
    assert qkv.shards == {"q": (0, 4096), "k": (4096, 5120), "v": (5120, 6144)}
    assert qkv.weight.shape == (6144, 4096)
    assert MergedColumnParallelLinear(8, [5, 5]).shards == {0: (0, 5), 1: (5, 10)}


def test_one_step_at_a_time() -> None:
    context = ForwardContext(KVCache(1), (0,), torch.tensor([]), (), torch.tensor([]))
    with set_forward_context(context), pytest.raises(RuntimeError, match="already set"), set_forward_context(context):
        pass
    with pytest.raises(RuntimeError, match="no forward context"):
        get_forward_context()


def test_engine_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        EngineConfig(max_model_len=8, block_size=0)
