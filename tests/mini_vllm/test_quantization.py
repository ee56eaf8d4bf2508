"""Packed, int8 and int4 weights against plain float32 ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from labkit.course.tour import QUESTION
from mini_vllm import LLM, SamplingParams
from mini_vllm.build import build_engine
from mini_vllm.config import QuantizationConfig
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.kernels.install import install_kernels
from mini_vllm.kernels.packed_linear import PackedKernel
from mini_vllm.kernels.packed_matmul import pack, packed_shape, unpack
from mini_vllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from mini_vllm.layers.linear import ColumnParallelLinear, RowParallelLinear
from mini_vllm.layers.quantization import QuantizedWeight, process_weights_after_loading, weight_bytes
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.parallel import TPGroup, tp_group
from mini_vllm.tokenizer import Tokenizer

TinyLlama = Callable[..., tuple[Path, PreTrainedModel]]
ROOT = Path(__file__).resolve().parents[2]
INT8, INT4 = QuantizationConfig("int8"), QuantizationConfig("int4", 32)


def process(model: nn.Module, quantization: QuantizationConfig | None = None, kernels: bool = True) -> None:
    """What build_engine does with a loaded model."""
    if quantization:
        process_weights_after_loading(model, quantization)
    if kernels:
        install_kernels(model)


both_ways = pytest.mark.parametrize("kernels", [False, True])


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
    process(layer)
    assert layer.weight.numel() == 0, "the plain weight is no longer a parameter"
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


def dequantized(weight: QuantizedWeight) -> torch.Tensor:
    """In float64, one group at a time, as the formula says."""
    size = weight.q.shape[1] // len(weight.scale)
    plain = torch.empty(weight.q.shape, dtype=torch.float64)
    for group, scale in enumerate(weight.scale.double()):
        inputs = slice(group * size, (group + 1) * size)
        plain[:, inputs] = weight.q[:, inputs].double() * scale.unsqueeze(1)
        if len(weight.zero):
            plain[:, inputs] += weight.zero[group].double().unsqueeze(1)
    return plain


@pytest.mark.parametrize("group_size", [None, 16])
def test_no_int8_weight_is_off_by_more_than_half_a_scale(group_size: int | None) -> None:
    weight = torch.randn(40, 64) * torch.logspace(-6, 6, 40).unsqueeze(1)
    weight[3] = 0
    quantized = QuantizedWeight.int8(weight, group_size)
    assert quantized.q.abs().max() <= 127
    half = quantized.scale.t().repeat_interleave(group_size or 64, dim=1) * 0.5001
    assert ((dequantized(quantized) - weight).abs() <= half).all()


@pytest.mark.parametrize("group_size", [1, 16, 32, 64])
def test_no_int4_weight_is_off_by_more_than_half_a_scale_of_its_group(group_size: int) -> None:
    # Rows of all sizes that weights have, two of them far from zero, and one that is constant.
    weight = torch.randn(40, 64) * torch.logspace(-2, 2, 40).unsqueeze(1)
    weight[3:5] += weight[3:5].abs().max() * torch.tensor([[2], [-2]])
    weight[5] = 0.25
    quantized = QuantizedWeight.int4(weight, group_size)
    assert quantized.q.max() == 15
    scale, zero = (part.float().t().repeat_interleave(group_size, dim=1) for part in (quantized.scale, quantized.zero))
    # float16 keeps 11 bits: of zero, and of 15 times the scale.
    float16 = (zero.abs() + 15 * scale) * 2**-11
    assert ((dequantized(quantized) - weight).abs() <= scale / 2 + float16 + 1e-6).all()
    assert torch.equal(dequantized(quantized)[5], weight[5].double())


def test_int4_worked_by_hand() -> None:
    weight = torch.tensor([[-1.0, 0.5, 6.5, 2.2, 10.0, 10.0, 10.0, 10.0]])
    quantized = QuantizedWeight.int4(weight, 4)
    # From -1 to 6.5 in 15 steps of a half; 2.2 is 6.4 of them above -1.
    assert quantized.q.tolist() == [[0, 3, 15, 6, 0, 0, 0, 0]]
    assert (quantized.scale[0].item(), quantized.zero.tolist()) == (0.5, [[-1.0], [10.0]])
    assert dequantized(quantized)[0, :4].tolist() == [-1.0, 0.5, 6.5, 2.0]


def test_int4_is_packed_two_to_a_byte() -> None:
    weight = torch.arange(33 * 3).view(33, 3).remainder(16).to(torch.uint8)
    packed = torch.empty(packed_shape(weight), dtype=torch.uint8)
    pack(weight, packed)
    assert packed.shape == (2, 3, 16)
    assert packed[0, 1, 5] == weight[5, 1] + 16 * weight[21, 1], "outputs 5 and 21 of input 1"
    assert packed[1, 2].tolist() == [weight[32, 2], *[0] * 15]
    assert torch.equal(unpack(packed)[:, :33], weight.t())


@both_ways
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 32, 256, 257, 300])
@pytest.mark.parametrize(("size", "group_size"), [((64, 96), 32), ((96, 33), 32), ((40, 50), 8), ((128, 1), 64), ((30, 100), 10)])
def test_an_int4_product_is_that_of_the_rounded_weight(size: tuple[int, int], group_size: int, rows: int, kernels: bool) -> None:
    layer, x = filled(ColumnParallelLinear(*size, bias=True)), torch.randn(rows, size[0])
    rounded = dequantized(QuantizedWeight.int4(layer.weight, group_size))
    process(layer, QuantizationConfig("int4", group_size), kernels)
    torch.testing.assert_close(layer(x), (x.double() @ rounded.t() + layer.bias.double()).float(), rtol=1e-5, atol=1e-4)


@both_ways
@pytest.mark.parametrize("quantization", [INT8, INT4])
def test_the_lm_head_is_int8_in_groups_with_either_method(quantization: QuantizationConfig, kernels: bool) -> None:
    for hidden, group_size in ((64, 32), (48, None)):
        head, x = filled(ParallelLMHead(70, hidden)), torch.randn(5, hidden)
        rounded = dequantized(QuantizedWeight.int8(head.weight, group_size))
        process(head, quantization, kernels)
        assert head.kernel is not None
        torch.testing.assert_close(head.kernel(x), (x.double() @ rounded.t()).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 32, 256, 257])
@pytest.mark.parametrize("size", [(64, 96), (33, 100), (1, 31)])
def test_numbers_that_bfloat16_holds_take_two_bytes_and_multiply_as_they_are(size: tuple[int, int], rows: int) -> None:
    plain, wide = filled(ColumnParallelLinear(*size)), filled(ColumnParallelLinear(*size))
    plain.weight.data = plain.weight.bfloat16().float()
    wide.weight.data = plain.weight.clone()
    wide.weight.data[-1, -1] = 1 + 2**-12  # one number with more digits, in the last row that is looked at
    x, expected = torch.randn(rows, size[0]), plain.weight.double()
    for layer, width in ((plain, 2), (wide, 4)):
        process(layer)
        assert isinstance(layer.kernel, PackedKernel)
        assert layer.kernel.packed.itemsize == width
    torch.testing.assert_close(plain(x), (x.double() @ expected.t()).float(), rtol=1e-5, atol=1e-4)
    if size[1] > 32 and rows < PackedKernel.MIN_AMX_ROWS:
        assert torch.equal(plain(x)[:, :32], wide(x)[:, :32]), "the same products and the same sums, to the last bit"


@pytest.mark.parametrize("rows", [1, 32, 300])
def test_no_bit_of_a_float32_is_lost_beside_weights_in_two_bytes(rows: int) -> None:
    """Times one, and nothing else added, is the number itself: so for all 24 bits of its fraction, whoever multiplies."""
    layer = ColumnParallelLinear(64, 64)
    layer.weight.data.copy_(torch.eye(64))
    process(layer)
    x = torch.randn(rows, 64) * torch.logspace(-20, 20, 64)
    assert isinstance(layer.kernel, PackedKernel)
    assert layer.kernel.packed.itemsize == 2
    assert torch.equal(layer(x), x)


def test_memory_is_what_the_numbers_take() -> None:
    """96 and 192 outputs fill the lanes of every processor."""

    def held(quantization: QuantizationConfig | None, rounded: bool = False, kernels: bool = True) -> int:
        linear, table = filled(ColumnParallelLinear(64, 96, bias=True)), filled(VocabParallelEmbedding(192, 8))
        if rounded:
            linear.weight.data = linear.weight.bfloat16().float()
            table.weight.data = table.weight.bfloat16().float()
        model = nn.ModuleList([linear, table, ParallelLMHead(192, 8)])
        model[2].weight = table.weight
        assert weight_bytes(model) == 4 * (64 * 96 + 96 + 192 * 8), "a shared table counts once"
        process(model, quantization, kernels)
        return weight_bytes(model)

    # 4 bytes for a bias or a scale, 2 for a float16; the head, no longer shared, has a byte a weight.
    rest = 4 * (96 + 192 * 8)
    assert held(None) == rest + 4 * (64 * 96 + 96 + 192 * 8 + 192)
    assert held(None, rounded=True) == rest + 2 * (64 * 96 + 192 * 8) + 4 * (96 + 192), "two bytes a weight, four a scale"
    assert held(INT8) == rest + 64 * 96 + 4 * 96 + 192 * 8 + 4 * 192
    assert held(INT4) == rest + 64 * 96 // 2 + 2 * 2 * 2 * 96 + 192 * 8 + 4 * 192
    assert held(INT8, kernels=False) == held(INT8)
    assert held(INT4, kernels=False) == held(INT4) + 64 * 96 // 2, "a byte for each number that is not packed"


@both_ways
@pytest.mark.parametrize("rows", [1, 2, 256, 257])
def test_int8_products_stay_within_the_rounding_error(rows: int, kernels: bool) -> None:
    layer, x = filled(ColumnParallelLinear(96, 50, bias=True)), torch.randn(rows, 96)
    expected = layer(x)
    largest = layer.weight.abs().amax(1)
    process(layer, INT8, kernels)
    # Half a scale for each weight; x is not rounded.
    allowed = x.abs().sum(1, keepdim=True) * (largest / 127 / 2) + 1e-4
    assert ((layer(x) - expected).abs() <= allowed).all()
    assert not torch.allclose(layer(x), expected, rtol=1e-3), "it is quantized indeed"


@both_ways
@pytest.mark.parametrize("quantization", [None, INT8, QuantizationConfig("int4", 8)])
def test_a_shared_embedding_keeps_its_rows(quantization: QuantizationConfig | None, kernels: bool) -> None:
    model = nn.Module()
    model.embed, model.head = VocabParallelEmbedding(30, 8), ParallelLMHead(30, 8)
    model.head.weight = filled(model.embed).weight
    before = model.embed(torch.arange(30)).clone()
    process(model, quantization, kernels)
    process(model, quantization, kernels)
    assert torch.equal(model.embed(torch.arange(30)), before)
    assert (model.head.weight.numel() == 0) == (kernels or quantization is not None)


def test_inputs_that_are_no_whole_number_of_groups_are_refused_and_nothing_is_touched() -> None:
    with tp_group(TPGroup(1, 2)):
        model = nn.ModuleDict({"up": filled(ColumnParallelLinear(64, 96)), "down": filled(RowParallelLinear(96, 64))})
    with pytest.raises(ValueError, match=r"down has 48 inputs on each of 2 ranks, .* groups of 32; .*\"group_size\": 24}"):
        process_weights_after_loading(model, INT4)
    assert all(layer.kernel is None and layer.weight.numel() for layer in model.values())
    process_weights_after_loading(model, QuantizationConfig("int4", 24 // 3))
    assert not any(layer.weight.numel() for layer in model.values())


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may open a checkpoint."""

    def fail(self: Checkpoint, folder: Path) -> None:
        raise AssertionError(f"{folder} was opened")

    monkeypatch.setattr(Checkpoint, "__init__", fail)


GROUP_64 = {"quant_method": "int4", "group_size": 64}


@pytest.mark.parametrize(
    ("argument", "in_file", "said"),
    [
        (8, None, "quantization is 8, and the engine has int8 and int4"),
        ("awq", None, r"quantization is 'awq', and the engine has int8 and int4; serve a checkpoint whose weights are not"),
        (None, {"quant_method": "gptq", "bits": 4, "group_size": 128}, "quantization is 'gptq', and the engine has"),
        (None, {"bits": 4}, "quantization is None, and the engine has"),
        ("int8", {"quant_method": "int4"}, r"is int8, and config.json's quantization_config says int4, group_size 32; leave one"),
        ("int4", GROUP_64, r"is int4, group_size 32, and config.json's quantization_config says int4, group_size 64; leave"),
        ({"quant_method": "int4", "group_size": 0}, None, "int4 has group_size 0; it must be a whole number from 1 on"),
        ({"quant_method": "int4", "group_size": True}, None, "int4 has group_size True; it must"),
        ({"quant_method": "int8", "group_size": 64}, None, "int8 comes with group_size; the engine takes quant_method alone"),
        ({"quant_method": "int4", "sym": True, "bits": 4}, None, "int4 comes with bits, sym; the engine takes quant_method and"),
    ],
)
@pytest.mark.usefixtures("unreadable")
def test_what_cannot_be_is_refused_before_a_weight_is_read(tmp_path: Path, argument: object, in_file: object, said: str) -> None:
    config = {"architectures": ["LlamaForCausalLM"]} | ({"quantization_config": in_file} if in_file else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) as error:
        LLM(tmp_path, quantization=argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("quantization", "groups"), [(GROUP_64 | {"group_size": 16}, 3), ("int8", 1)])
def test_the_argument_and_config_json_choose_the_same(
    tiny_llama: TinyLlama, quantization: str | dict[str, object], groups: int, in_file: bool
) -> None:
    folder, _ = tiny_llama()
    plain = LLM(folder).weight_bytes
    if in_file:
        path = folder / "config.json"
        own = {"quant_method": quantization} if isinstance(quantization, str) else quantization
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": own}))
    llm = LLM(folder, quantization=None if in_file else quantization)
    model = llm.llm_engine.runner.model
    kernel = model.model.layers[1].mlp.gate_up_proj.kernel
    assert kernel.packed.dtype == (torch.int8 if quantization == "int8" else torch.uint8)
    assert len(kernel.scale) == groups
    assert model.lm_head.kernel.packed.dtype == torch.int8
    assert llm.weight_bytes < plain / 2


def test_an_object_that_is_no_module_is_not_touched() -> None:
    touched: list[str] = []

    class Untouched:
        def __getattribute__(self, name: str) -> object:
            touched.append(name)
            return object.__getattribute__(self, name)

    process(Untouched(), INT8)  # type: ignore[arg-type]
    assert weight_bytes(Untouched()) == 0
    assert touched == []


# In bfloat16 two first tokens are near a tie: without quantization, as with int4, the answer begins with "L'Étoile".
@both_ways
@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [("int8", "float32"), ("int8", "bfloat16"), ("int8", "float16"), ("int4", "float32"), ("int4", "float16")],
)
def test_smollm2_answers_paris(smollm2: Path, quantization: str, dtype: str, kernels: bool) -> None:
    llm = LLM(smollm2, dtype=dtype, quantization=quantization, kernels=kernels)
    answer = llm.chat([{"role": "user", "content": QUESTION}], SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text
    assert "Paris" in answer


def test_perplexity_stays_within_the_bars(smollm2: Path) -> None:
    """int8 within 0.5 % of fp32, int4 within 5 %, on the beginnings of the texts that benchmarks/perplexity.py has whole."""
    tokenizer = Tokenizer.find(smollm2)
    assert tokenizer is not None
    texts = [ROOT / "LICENSE", *sorted((ROOT / "labs").glob("*/README.md"))]
    windows = torch.tensor([tokenizer.encode(text.read_text(encoding="utf-8"))[:512] for text in texts])
    positions = torch.arange(512)
    context = ForwardContext(KVCache(1, 512), (0, 512), (512,), ((0,),), positions, positions)

    def perplexity(quantization: str | None) -> float:
        model = build_engine(smollm2, dtype="float32", quantization=quantization)[0].runner.model
        with torch.inference_mode(), set_forward_context(context):
            losses = [cross_entropy(model.forward(tokens, positions)[:-1], tokens[1:]).item() for tokens in windows]
        return math.exp(sum(losses) / len(losses))

    plain, int8, int4 = map(perplexity, (None, "int8", "int4"))
    assert 20 < plain < 50
    assert plain != int8 != int4
    assert int8 / plain <= 1.005
    assert int4 / plain <= 1.05


def test_quantized_weights_on_a_gpu_are_refused(tiny_model: Callable[..., tuple[Path, Any]]) -> None:
    """They would be served as they are, and nobody told."""
    folder, _ = tiny_model("llama")
    with pytest.raises(ValueError, match="quantization is int8 and device is 'cuda'; only 'cpu' can quantize"):
        LLM(folder, device="cuda", quantization="int8")
