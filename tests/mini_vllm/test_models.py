"""Every family of models/, plain and with kernels, against transformers on small random checkpoints in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from twenty_prompts import twenty_prompts

from mini_vllm import LLM, SamplingParams
from mini_vllm.loading.checkpoint import CheckpointError
from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM
from mini_vllm.models.mistral import MistralConfig
from mini_vllm.models.qwen2 import Qwen2Config
from mini_vllm.models.qwen3 import Qwen3Config
from mini_vllm.tokenizer import Tokenizer

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]

PROMPTS = [[5], [1, 2, 3], [7] * 20, list(range(40)), [100, 0, 100, 0, 50], list(range(90, 30, -1))]
LONG_PROMPTS = [list(range(40)), list(range(90, 30, -1)), [3, 1, 4, 1, 5] * 9]


def transformers_greedy(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    # Told that nothing is padding: left to itself, transformers takes every token 0 of a prompt for it.
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    return tokens[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def greedy(llm: LLM, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], SamplingParams(temperature=0, max_tokens=max_tokens))
    return [output.outputs[0].token_ids for output in outputs]


def assert_same_tokens(folder: Path, model: PreTrainedModel, prompts: list[list[int]]) -> None:
    expected = [transformers_greedy(model, prompt, 12) for prompt in prompts]
    for kernels in (True, False):
        assert greedy(LLM(folder, dtype="float32", kernels=kernels), prompts, 12) == expected, f"kernels={kernels}"
        chunked = LLM(folder, dtype="float32", kernels=kernels, max_num_batched_tokens=7, block_size=3, num_blocks=40)
        assert greedy(chunked, prompts, 12) == expected, f"chunks of 7, blocks of 3, too few for all, kernels={kernels}"


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, multi-head": ("llama", {"num_key_value_heads": 6}),
    "llama, multi-query": ("llama", {"num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, attention bias": ("llama", {"attention_bias": True}),
    "llama, mlp bias": ("llama", {"mlp_bias": True}),
    "llama, own head size": ("llama", {"head_dim": 16}),
    "llama, theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama, shards": ("llama", {"shard_size": "40KB"}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, shards": ("qwen2", {"tie_word_embeddings": True, "shard_size": "40KB"}),
    "qwen2, window from layer 1": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied, shards": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "shard_size": "40KB"}),
    "qwen3, attention bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3, layer types": (
        "qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, window 8": ("mistral", {"sliding_window": 8}),
    "mistral, window 2": ("mistral", {"sliding_window": 2, "head_dim": 16}),
    "mistral, window beyond all, tied, shards": (
        "mistral",
        {"sliding_window": 200, "tie_word_embeddings": True, "shard_size": "40KB"},
    ),
}


@pytest.mark.parametrize(("family", "changes"), CASES.values(), ids=CASES.keys())
def test_greedy_tokens_equal_transformers(tiny_model: TinyModel, family: str, changes: dict[str, Any]) -> None:
    folder, model = tiny_model(family, **changes)
    assert (folder / "model.safetensors.index.json").exists() == ("shard_size" in changes)
    assert_same_tokens(folder, model, PROMPTS)


# In 32 positions the 8 pairs of these heads turn 5.1, 2.9, 1.6, 0.9, 0.5, 0.3, 0.2 and 0.1 times: some are kept, some slowed,
# some between.
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.25,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32, "beta_fast": 4, "beta_slow": 0.5},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + i / 2 for i in range(8)],
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_tokens_equal_transformers_past_the_original_length(tiny_model: TinyModel, kind: str, family: str) -> None:
    folder, model = tiny_model(family, head_dim=16, rope_parameters=ROPES[kind] | {"rope_theta": 100.0})
    # transformers gives prompts within the original length longrope's short factors; one KV cache wants one of the two.
    prompts = LONG_PROMPTS if kind == "longrope" else PROMPTS + LONG_PROMPTS
    assert_same_tokens(folder, model, prompts)
    before = greedy(LLM(folder, dtype="float32"), prompts, 12)
    rewrite_config(folder, rope_parameters=None, rope_theta=100.0, rope_scaling=ROPES[kind])
    assert greedy(LLM(folder, dtype="float32"), prompts, 12) == before, "the older spelling"
    rewrite_config(folder, rope_scaling=None)
    plain = greedy(LLM(folder, dtype="float32"), prompts, 12)
    assert (plain == before) == (kind == "dynamic"), "dynamic begins to stretch beyond max_position_embeddings"


@pytest.mark.parametrize(
    ("family", "changes", "parameter", "value"),
    [
        ("qwen2", {}, "self_attn.qkv_proj.bias", 0.0),
        ("llama", {"mlp_bias": True}, "mlp.gate_up_proj.bias", 0.0),
        ("llama", {"mlp_bias": True}, "mlp.down_proj.bias", 0.0),
        ("llama", {"attention_bias": True}, "self_attn.o_proj.bias", 0.0),
        ("qwen3", {"head_dim": 16}, "self_attn.q_norm.weight", 1.0),
        ("qwen3", {"head_dim": 16}, "self_attn.k_norm.weight", 1.0),
    ],
)
def test_what_a_family_adds_is_heard_in_the_tokens(
    tiny_model: TinyModel, family: str, changes: dict[str, Any], parameter: str, value: float
) -> None:
    folder, _ = tiny_model(family, **changes)
    llm = LLM(folder, dtype="float32")
    before = greedy(llm, PROMPTS, 12)
    for name, tensor in llm.llm_engine.runner.model.named_parameters():  # type: ignore[attr-defined]
        if name.endswith(parameter):
            tensor.data.fill_(value)
    assert greedy(llm, PROMPTS, 12) != before


@pytest.mark.parametrize("window", [None, 7, 9])
def test_a_window_one_off_is_heard_in_the_tokens(tiny_model: TinyModel, window: int | None) -> None:
    folder, _ = tiny_model("mistral", sliding_window=8)
    before = greedy(LLM(folder, dtype="float32"), PROMPTS, 12)
    rewrite_config(folder, sliding_window=window)
    assert greedy(LLM(folder, dtype="float32"), PROMPTS, 12) != before


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": ROPES["llama3"] | {"rope_theta": 100.0}, "head_dim": 16}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"sliding_window": 8}),
    ],
)
@pytest.mark.parametrize("max_num_batched_tokens", [1, 16, 2048])
@pytest.mark.parametrize("kernels", [True, False])
def test_logits_equal_transformers_at_every_chunk_size(
    tiny_model: TinyModel,
    family: str,
    changes: dict[str, Any],
    max_num_batched_tokens: int,
    kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model = tiny_model(family, **changes)
    prompt = list(range(60))
    llm = LLM(folder, dtype="float32", kernels=kernels, max_num_batched_tokens=max_num_batched_tokens)
    seen: list[torch.Tensor] = []
    run = llm.llm_engine.runner.run
    monkeypatch.setattr(llm.llm_engine.runner, "run", lambda step: seen.append(run(step)) or seen[-1])
    greedy(llm, [prompt], 1)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(seen[-1][0], expected, rtol=1e-4, atol=1e-4)


SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 64, "vocab_size": 99}
FAMILIES: dict[str, type[DecoderConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": True}, {"num_attention_heads": 64}], ids=str)
def test_what_config_json_leaves_out_is_as_in_transformers(family: str, changes: dict[str, Any]) -> None:
    ours, theirs = FAMILIES[family].from_hf(SIZES | changes), AutoConfig.for_model(family, **(SIZES | changes))
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    with torch.device("meta"):
        attention = AutoModelForCausalLM.from_config(theirs).model.layers[0].self_attn
    assert (ours.qkv_bias, ours.o_bias) == (attention.q_proj.bias is not None, attention.o_proj.bias is not None)
    window = getattr(theirs, "sliding_window", None) if family != "llama" else None
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 32
    assert ours.sliding_windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)


def test_qwen2s_own_config_json_has_a_window_that_is_not_in_use() -> None:
    said = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}  # Qwen2.5-7B's
    assert Qwen2Config.from_hf(SIZES | said).sliding_windows == (None,) * 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'; this engine has silu only"),
        ({"num_key_value_heads": 5}, "32 query heads cannot share 5 kv heads evenly"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"num_attention_heads": "32"}, "gives num_attention_heads '32'; it must be a whole number, at least 1"),
        ({"num_hidden_layers": 0}, "gives num_hidden_layers 0; it must be"),
        ({"layer_types": ["full_attention"]}, "has 32 layers and layer_types for 1"),
        ({"layer_types": ["full_attention"] * 31 + ["linear_attention"]}, "makes layer 31 'linear_attention'"),
        (
            {"layer_types": ["sliding_attention"] * 32},
            "makes layer 0 'sliding_attention' and the sliding window in use is None",
        ),
    ],
)
def test_what_no_family_here_has_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        LlamaConfig.from_hf(SIZES | changes)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has no intermediate_size, which is required"):
        LlamaConfig.from_hf({key: value for key, value in SIZES.items() if key != "intermediate_size"})


def test_a_qwen3_served_as_a_llama_is_refused_by_name(tiny_model: TinyModel) -> None:
    folder, _ = tiny_model("qwen3", head_dim=16)
    rewrite_config(folder, architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"self_attn\.q_norm\.weight goes to .*, which the model does not have"):
        LLM(folder)


def test_rope_keeps_no_table_and_is_no_parameter() -> None:
    config = LlamaConfig.from_hf(SIZES | {"max_position_embeddings": 10**9, "num_hidden_layers": 1, "hidden_size": 64})
    model = LlamaForCausalLM(config)
    assert [(name, buffer.shape) for name, buffer in model.named_buffers()] == [("model.rotary_emb.inverse_frequency", (1,))]
    assert not any("rotary" in name for name in model.state_dict())


@pytest.fixture(scope="module")
def transformers_smollm2(smollm2: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Twenty prompts, and what transformers generates."""
    prompts = twenty_prompts(Tokenizer(smollm2))
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    return prompts, [transformers_greedy(model, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("kernels", [True, False])
def test_twenty_prompts_of_smollm2_equal_transformers_batched_and_alone(
    smollm2: Path, transformers_smollm2: tuple[list[list[int]], list[list[int]]], kernels: bool
) -> None:
    prompts, expected = transformers_smollm2
    llm = LLM(smollm2, dtype="float32", kernels=kernels, enable_prefix_caching=False)
    assert greedy(llm, prompts, 8) == expected
    for alone in range(0, 20, 1 if kernels else 5):  # plain torch takes seconds for each
        assert greedy(llm, [prompts[alone]], 8) == [expected[alone]]
