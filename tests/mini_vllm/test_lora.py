"""LoRA adapters, made and merged by peft: alone, together, beside the prefix cache, on two ranks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from history_model import HistoryModel
from integrity import check_integrity
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_models import transformers_greedy
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from mini_vllm import LLM, AsyncLLM, LoRARequest, SamplingParams
from mini_vllm.__main__ import app
from mini_vllm.config import EngineConfig
from mini_vllm.engine.request import Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.layers.embedding import ParallelLMHead
from mini_vllm.layers.linear import ColumnParallelLinear, LinearBase
from mini_vllm.layers.quantization import QuantizedWeight
from mini_vllm.loading.checkpoint import Checkpoint, read_json
from mini_vllm.loading.lora import AdapterError, load_lora
from mini_vllm.models.llama import LlamaForCausalLM
from mini_vllm.parallel import TPGroup, tp_group

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]
Tensors = dict[str, Tensor]

ROOT = Path(__file__).resolve().parents[2]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GREEDY = SamplingParams(temperature=0, max_tokens=10)
PROMPTS = [[5], [7] * 20, list(range(40)), [100, 0, 100, 0, 50]]


def write_adapter(folder: Path, model: PreTrainedModel, seed: int = 1, **config: Any) -> LoRARequest:
    """An adapter of random numbers, large enough to change what the model says; its number is the seed."""
    torch.manual_seed(seed)
    peft_model = get_peft_model(deepcopy(model), LoraConfig(**({"r": 4, "lora_alpha": 7, "target_modules": SEVEN} | config)))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.25)
    peft_model.save_pretrained(folder)
    return LoRARequest(folder.name, seed, str(folder))


def change(folder: Path, config: dict[str, Any], tensors: Callable[[Tensors], Tensors]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({key: value for key, value in (json.loads(path.read_text()) | config).items() if value != "gone"}))
    save_file(tensors(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")


def merged(model: PreTrainedModel, adapter: LoRARequest) -> PreTrainedModel:
    """peft's own reading of the directory, added to the weights."""
    return PeftModel.from_pretrained(deepcopy(model), adapter.lora_path).merge_and_unload().eval()  # type: ignore[no-any-return, operator]


def ids(prompts: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def greedy(llm: LLM, prompts: Sequence[list[int]], lora: Any = None) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(ids(prompts), GREEDY, lora)]


def logits_of(llm: LLM, prompt: list[int], lora: LoRARequest | None) -> Tensor:
    """(tokens of the prompt, V)."""
    seen: list[Tensor] = []
    runner = llm.llm_engine.runner
    run = runner.run
    runner.run = lambda step: seen.append(run(step)) or seen[-1]  # type: ignore[func-returns-value, method-assign]
    llm.generate(ids([prompt]), SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0), lora)
    runner.run = run  # type: ignore[method-assign]
    return torch.cat(seen)


def logits_of_transformers(model: PreTrainedModel, prompt: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]  # type: ignore[no-any-return]


def greedy_of_transformers(model: PreTrainedModel) -> list[list[int]]:
    return [transformers_greedy(model, prompt, GREEDY.max_tokens) for prompt in PROMPTS]


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rank 4": ("llama", {}, {}),
    "rank 8": ("llama", {"num_key_value_heads": 1}, {"r": 8, "lora_alpha": 3.5}),
    "rslora": ("llama", {"tie_word_embeddings": True}, {"r": 8, "use_rslora": True, "lora_alpha": 2}),
    "qwen2": ("qwen2", {}, {"r": 8}),
    "qwen3": ("qwen3", {"head_dim": 16}, {}),
    "mistral": ("mistral", {"sliding_window": 8}, {}),
    "with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "q and v only": ("llama", {}, {"target_modules": ["q_proj", "v_proj"]}),
    "k only": ("llama", {}, {"target_modules": ["k_proj"]}),
    "up only": ("qwen2", {}, {"target_modules": ["up_proj"]}),
    "down only": ("llama", {}, {"target_modules": ["down_proj"]}),
    "a pattern": ("llama", {}, {"target_modules": r".*\.1\..*(k_proj|gate_proj)"}),
    "second layer only": ("llama", {}, {"layers_to_transform": [1]}),
    "ranks by name": (
        "llama",
        {},
        {"rank_pattern": {"k_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"k_proj": 5, "up_proj": 1}},
    ),
    "ranks by name, rslora": (
        "llama",
        {},
        {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"q_proj": 1}},
    ),
}


@pytest.mark.parametrize(("family", "changes", "config"), CASES.values(), ids=CASES.keys())
def test_an_adapter_equals_its_merged_weights(
    tiny_model: TinyModel, tmp_path: Path, family: str, changes: dict[str, Any], config: dict[str, Any]
) -> None:
    folder, model = tiny_model(family, **changes)
    adapter = write_adapter(tmp_path / "adapter", model, **config)
    expected = merged(model, adapter)
    llm, prompt = LLM(folder, dtype="float32"), list(range(60))
    logits, base = logits_of(llm, prompt, adapter), logits_of(llm, prompt, None)
    torch.testing.assert_close(logits, logits_of_transformers(expected, prompt), rtol=0, atol=1e-5)
    torch.testing.assert_close(base, logits_of_transformers(model, prompt), rtol=0, atol=1e-5)
    assert (logits - base).abs().max() > 0.01, "the adapter is heard"
    assert greedy(llm, PROMPTS, adapter) == greedy_of_transformers(expected)


@pytest.mark.parametrize("sizes", [{}, {"max_num_batched_tokens": 7, "block_size": 3, "num_blocks": 24}], ids=str)
def test_adapters_in_one_batch_each_say_what_they_say_alone(tiny_model: TinyModel, tmp_path: Path, sizes: dict[str, int]) -> None:
    folder, model = tiny_model("llama")
    one = write_adapter(tmp_path / "one", model)
    two = write_adapter(tmp_path / "two", model, seed=2, r=8, target_modules=["v_proj", "o_proj", "gate_proj"])
    said = {adapter: greedy_of_transformers(merged(model, adapter) if adapter else model) for adapter in (one, two, None)}
    llm = LLM(folder, dtype="float32", **sizes)
    orders: list[list[LoRARequest | None]] = [[one, two, None], [None, two, one, one], [two], [None, one]]
    for order in orders:
        asked = [(adapter, index) for index in range(len(PROMPTS)) for adapter in order]
        answers = greedy(llm, [PROMPTS[index] for _, index in asked], [adapter for adapter, _ in asked])
        assert answers == [said[adapter][index] for adapter, index in asked]
    assert bool(llm.llm_engine.stats.preemptions) == bool(sizes)
    check_integrity(llm.llm_engine.scheduler)


def test_no_block_is_shared_between_adapters(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama")
    one, two = write_adapter(tmp_path / "one", model), write_adapter(tmp_path / "two", model, seed=2)
    llm, prompt = LLM(folder, dtype="float32", block_size=4), list(range(70))
    said: dict[LoRARequest | None, list[int]] = {}
    for adapter in (one, two, None):
        output = llm.generate(ids([prompt]), GREEDY, adapter)[0]
        assert output.num_cached_tokens == 0, "the others' blocks are not its own"
        said[adapter] = output.outputs[0].token_ids
        assert said[adapter] == transformers_greedy(merged(model, adapter) if adapter else model, prompt, 10)
    assert llm.llm_engine.stats.prefix_cache_hits == 0
    for adapter in (None, two, one):
        output = llm.generate(ids([prompt]), GREEDY, adapter)[0]
        assert (output.num_cached_tokens, output.outputs[0].token_ids) == (68, said[adapter]), "its own are"
    salted = {"prompt_token_ids": prompt, "cache_salt": "a tenant"}
    assert [llm.generate(salted, GREEDY, one)[0].num_cached_tokens for _ in "ab"] == [0, 68], "within a salt too"
    assert llm.generate(salted, GREEDY, two)[0].num_cached_tokens == 0


def test_streams_and_several_answers_have_their_adapters(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama")
    one, two = write_adapter(tmp_path / "one", model), write_adapter(tmp_path / "two", model, seed=2)
    llm = LLM(folder, dtype="float32")
    expected = [greedy(llm, [PROMPTS[2]], adapter)[0] for adapter in (one, two, None)]
    assert len({tuple(tokens) for tokens in expected}) == 3
    both = llm.generate(ids([PROMPTS[2]]), SamplingParams(n=2, temperature=1, top_k=1, max_tokens=10), one)[0]
    assert [answer.token_ids for answer in both.outputs] == [expected[0]] * 2

    async def last(engine: AsyncLLM, adapter: LoRARequest | None) -> list[int]:
        stream = engine.generate({"prompt_token_ids": PROMPTS[2]}, GREEDY, lora_request=adapter)
        return [output.outputs[0].token_ids async for output in stream][-1]

    async def together() -> list[list[int]]:
        engine = AsyncLLM(folder, dtype="float32")
        return await asyncio.gather(*(last(engine, adapter) for adapter in (one, two, None)))

    assert asyncio.run(together()) == expected


def test_int8_weights_take_an_adapter(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama")
    adapter = write_adapter(tmp_path / "adapter", model)
    llm, prompt = LLM(folder, dtype="float32", quantization="int8"), list(range(60))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = QuantizedWeight.int8(module.weight.data)
            module.weight.data = weight.q * weight.scale.t()
    expected = logits_of_transformers(merged(model, adapter), prompt)
    torch.testing.assert_close(logits_of(llm, prompt, adapter), expected, rtol=0, atol=1e-5)


def test_a_bfloat16_model_has_bfloat16_adapters(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama")
    adapter = write_adapter(tmp_path / "adapter", model)
    prompt, llm = list(range(60)), LLM(folder, dtype="bfloat16")
    difference = logits_of(llm, prompt, adapter).float() - logits_of_transformers(merged(model, adapter), prompt)
    without = logits_of(llm, prompt, None).float() - logits_of_transformers(model, prompt)
    assert difference.abs().mean() < 2 * without.abs().mean(), "no further off than bfloat16 is without"
    weights = layers_of(llm)["model.layers.0.mlp.down_proj"].lora[1]
    assert {weights.lora_a.dtype, weights.lora_b.dtype} == {torch.bfloat16}


def layers_of(llm: LLM) -> dict[str, LinearBase]:
    model = llm.llm_engine.runner.model
    assert isinstance(model, nn.Module)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_rank_has_the_part_that_it_would_have_of_the_merged_tensors(
    tiny_model: TinyModel, tmp_path: Path, size: int
) -> None:
    """With 2 kv heads, ranks beyond the second share one. The checkpoint here is zero but for the adapter merged into it."""
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "vocab_size": 512}
    _, model = tiny_model("llama", **sizes)
    for parameter in model.parameters():
        parameter.data.zero_()
    adapter = write_adapter(tmp_path / "adapter", model, rank_pattern={"v_proj": 3})
    folder = tmp_path / "merged"
    merged(model, adapter).save_pretrained(folder)
    for rank in range(size):
        with tp_group(TPGroup(rank, size)):
            part = LlamaForCausalLM.from_checkpoint(read_json(folder / "config.json"), Checkpoint(folder))
        load_lora(part, 5, Path(adapter.lora_path))
        layers = [m for m in part.modules() if isinstance(m, LinearBase) and not isinstance(m, ParallelLMHead)]
        assert len(layers) == 8
        for layer in layers:
            assert layer.weight.abs().max() > 0.1
            torch.testing.assert_close(layer.lora[5].lora_b @ layer.lora[5].lora_a, layer.weight.data, rtol=0, atol=1e-6)


SERVE = """
import json, sys
from pathlib import Path
from mini_vllm import LLM, LoRARequest, SamplingParams
from mini_vllm.loading.lora import AdapterError

folder = Path(sys.argv[1])
llm = LLM(folder / "tiny", dtype="float32")
one, two, bad = (LoRARequest(name, n, str(folder / name)) for n, name in enumerate(("one", "two", "bad"), 1))
prompts = [{"prompt_token_ids": prompt} for prompt in json.loads(sys.argv[2])]
params = SamplingParams(temperature=0, max_tokens=10)
try:
    llm.generate(prompts, params, bad)
except AdapterError as error:
    print(error)
for adapter in (one, [two, None, one, two]):
    print(json.dumps([output.outputs[0].token_ids for output in llm.generate(prompts, params, adapter)]))
"""


def test_two_ranks_say_what_one_says(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama", vocab_size=128)
    one = write_adapter(tmp_path / "one", model)
    two = write_adapter(tmp_path / "two", model, seed=2, r=8, use_rslora=True)
    write_adapter(tmp_path / "bad", model)
    change(tmp_path / "bad", {"r": 3}, lambda tensors: tensors)
    (tmp_path / "serve.py").write_text(SERVE)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        tmp_path / "serve.py",
    ]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [tmp_path, json.dumps(PROMPTS)]
    ended = subprocess.run([*command, *arguments], env=settings, timeout=120, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    refused, *answers = ended.stdout.splitlines()
    assert "does not fit the model" in refused
    llm = LLM(folder, dtype="float32")
    assert [json.loads(line) for line in answers] == [greedy(llm, PROMPTS, one), greedy(llm, PROMPTS, [two, None, one, two])]


def test_the_command_line_takes_an_adapter(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, model = tiny_model("llama")
    adapter = write_adapter(tmp_path / "adapter", model)
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(101)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    asked = [{"role": "user", "content": "5 6 7"}]
    said = LLM(folder).chat(asked, GREEDY, adapter)[0].outputs[0].text
    assert said == LLM(folder).generate("5 6 7", GREEDY, adapter)[0].outputs[0].text != LLM(folder).chat(asked, GREEDY)
    command = ["generate", str(folder), "5 6 7", "--max-tokens", "10"]
    assert CliRunner().invoke(app, [*command, "--lora", adapter.lora_path]).stdout == f"5 6 7{said}\n"
    refused = CliRunner().invoke(app, [*command, "--lora", str(tmp_path)])
    assert refused.exit_code == 1
    assert "there is no adapter_config.json" in str(refused.output)


def by_hand(folder: Path, module: str, a: Tensor, b: Tensor) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": len(a), "lora_alpha": len(a), "target_modules": [module]}))
    prefix = f"base_model.model.{module}"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    return folder


class OneLayer(nn.Module):
    """An architecture of one's own: no mapping rows; token t is the vector (t, 1), and logits are the layer's outputs."""

    def __init__(self, batched: bool = False) -> None:
        super().__init__()
        self.batched = batched
        self.mix = ColumnParallelLinear(2, 3)
        self.mix.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = torch.stack([tokens.float(), torch.ones(len(tokens))], dim=1)
        return self.mix(x.unsqueeze(0))[0] if self.batched else self.mix(x)  # type: ignore[no-any-return]


def run(model: nn.Module, *requests: tuple[list[int], int]) -> list[list[float]]:
    """Logits of the last token of each request, (tokens, lora id), in one step."""
    config = EngineConfig(max_model_len=8)
    made = [Request("r", tokens, SamplingParams(), config, lora_id=lora_id) for tokens, lora_id in requests]
    chunks = [Chunk(request, 0, request.num_tokens, (index,)) for index, request in enumerate(made)]
    return Runner(model, 8, 8).run(Step(tuple(chunks))).tolist()


def test_an_own_architecture_takes_adapters_under_its_own_names(tmp_path: Path) -> None:
    model = OneLayer()
    load_lora(model, 7, by_hand(tmp_path / "seven", "mix", torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [0.0], [2.0]])))
    load_lora(model, 9, by_hand(tmp_path / "nine", "mix", torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0], [0.0], [0.0]])))
    answers = run(model, ([9, 3], 7), ([4], 0), ([8], 9), ([2], 7), ([6], 8))
    assert answers == [[3, 1, 6], [4, 1, 0], [13, 1, 0], [2, 1, 4], [6, 1, 0]], "there is no adapter 8, and it adds nothing"
    model.batched = True
    assert run(model, ([4], 0)) == [[4, 1, 0]]
    with pytest.raises(ValueError, match=r"was given \(1, 2, 2\) in a step of 2 tokens; give it \(2, 2\), a row for each"):
        run(model, ([9, 3], 7))


def test_a_model_without_layers_takes_none(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the model, a HistoryModel, has no linear layers for the adapter"):
        load_lora(HistoryModel(), 1, tmp_path)
