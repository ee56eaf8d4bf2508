"""Packed and int8 weights against the plain ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from labkit.tour import QUESTION
from mini_vllm import LLM, SamplingParams
from mini_vllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from mini_vllm.layers.linear import ColumnParallelLinear
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.config import QuantizationConfig
from mini_vllm.layers.quantization import QuantizedWeight, process_weights_after_loading, weight_bytes


def filled(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 21, 256, 257, 300])
@pytest.mark.parametrize("size", [(64, 96), (70, 33), (3, 100), (1, 1)])
def test_a_packed_linear_gives_the_plain_product(size: tuple[int, int], rows: int, bias: bool) -> None:
    layer, x = filled(ColumnParallelLinear(*size, bias)), torch.randn(rows, size[0])
    expected = layer(x)
    process_weights_after_loading(layer)
    assert layer.weight.numel() == 0, "the plain weight is no longer a parameter"
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


def test_no_int8_weight_is_off_by_more_than_half_a_scale() -> None:
    weight = torch.randn(40, 64) * torch.logspace(-6, 6, 40).unsqueeze(1)
    weight[3] = 0
    quantized, scale = quantize_int8(weight)
    assert quantized.abs().max() <= 127
    assert ((quantized * scale.unsqueeze(1) - weight).abs() <= scale.unsqueeze(1) * 0.5001).all()


@pytest.mark.parametrize("rows", [1, 2, 256, 257])
def test_int8_products_stay_within_what_rounding_allows(rows: int) -> None:
    layer, x = filled(ColumnParallelLinear(96, 50, bias=True)), torch.randn(rows, 96)
    expected = layer(x)
    largest = layer.weight.abs().amax(1)
    process_weights_after_loading(layer, "int8")
    # Half a scale for each weight; x is not rounded.
    allowed = x.abs().sum(1, keepdim=True) * (largest / 127 / 2) + 1e-4
    assert ((layer(x) - expected).abs() <= allowed).all()
    assert not torch.allclose(layer(x), expected, rtol=1e-3), "it is quantized indeed"


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_shared_embedding_keeps_its_rows(quantization: str | None) -> None:
    model = nn.Module()
    model.embed, model.head = VocabParallelEmbedding(30, 8), ParallelLMHead(30, 8)
    model.head.weight = filled(model.embed).weight
    before = model.embed(torch.arange(30)).clone()
    process_weights_after_loading(model, quantization)
    process_weights_after_loading(model, quantization)
    assert torch.equal(model.embed(torch.arange(30)), before)
    assert model.head.weight.numel() == 0


def test_rms_norm_in_one_pass_is_torchs() -> None:
    for shape in ((1, 576), (7, 3, 16), (300, 64)):
        x, norm = torch.randn(shape) * 30, filled(RMSNorm(shape[-1], 1e-5))
        expected = torch.nn.functional.rms_norm(x.double(), shape[-1:], norm.weight.double(), 1e-5).float()
        torch.testing.assert_close(norm(x), expected)
        strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]
        torch.testing.assert_close(norm(strided), norm(strided.contiguous()))


def test_another_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization is 'fp3'; it must be None or 'int8'"):
        process_weights_after_loading(nn.Module(), "fp3")


def test_nothing_is_touched_of_what_is_no_module() -> None:
    touched: list[str] = []

    class Untouched:
        def __getattribute__(self, name: str) -> object:
            touched.append(name)
            return object.__getattribute__(self, name)

    process_weights_after_loading(Untouched(), "int8")
    assert touched == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_smollm2_in_int8_answers_paris(smollm2: Path, dtype: str) -> None:
    llm = LLM(smollm2, dtype=dtype, quantization="int8")
    answer = llm.chat([{"role": "user", "content": QUESTION}], SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text
    assert "Paris" in answer
