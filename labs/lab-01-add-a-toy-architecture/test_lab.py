"""Tests of lab 01: the engine serves a new model correctly, and it uses no attribute of the model but forward."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import Phase, Verbosity, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from labkit.course.assertions import expect, expect_refused, expect_tensor, unchanged
from mini_vllm import LLM, LLMEngine, SamplingParams, register_model
from mini_vllm.config import EngineConfig
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.layers.linear import LinearBase
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.loading.loader import LoadError

ROOT = Path(__file__).resolve().parents[2]

BIGRAM, TINY_ATTENTION = "BigramForCausalLM", "TinyAttentionForCausalLM"
"""The names of the two models in config.json."""

GREEDY = SamplingParams(temperature=0, max_tokens=6)

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


def random_table(vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))


def write_checkpoint(folder: Path, table: Tensor, architecture: str, vocab_size: int | None = None) -> Path:
    """Writes a Hugging Face directory with config.json and safetensors, without a tokenizer."""
    config = {"architectures": [architecture], "vocab_size": vocab_size or table.shape[0], "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"table": table}, folder / "model.safetensors")
    return folder


def prompts_of(*token_ids: list[int]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": ids} for ids in token_ids]


def tokens_of(llm: LLM, prompts: list[dict[str, list[int]]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


MAPPED = "a checkpoint tensor is mapped memory that other ranks read too: copy it before you change it"


def from_checkpoint(model_class: Any, config: dict[str, Any], checkpoint: Any) -> Any:
    """The learner's model, built from a dict of tensors or a Checkpoint. Building it must leave both inputs unchanged."""
    with unchanged(MAPPED, checkpoint=checkpoint), unchanged("the caller uses its config again", config=config):
        return model_class.from_checkpoint(config, checkpoint)


def forward(model: Any, tokens: Tensor, positions: Tensor) -> Any:
    """The learner's logits. The call must leave the step's tokens and positions unchanged."""
    with unchanged("the engine uses the tensors of the step again: work on a copy", tokens=tokens, positions=positions):
        return model.forward(tokens, positions)


# --- task forward ------------------------------------------------------------------------------------------------------


def test_logits_are_rows_of_the_table(lab: ModuleType) -> None:
    logits = forward(lab.BigramModel(TABLE.clone()), torch.tensor([3, 0]), torch.tensor([0, 1]))
    expect_tensor(
        logits, TABLE[[3, 0]], "logits of shape (T, V) = (2, 5): row i is the row of the table for tokens[i], here 3 and 0"
    )


def test_positions_are_ignored(lab: ModuleType) -> None:
    model, tokens = lab.BigramModel(TABLE.clone()), torch.tensor([1, 4, 1])
    for positions in ([0, 1, 2], [60, 3, 17]):
        logits = forward(model, tokens, torch.tensor(positions))
        expect_tensor(
            logits, TABLE[tokens], f"tokens 1, 4, 1 at positions {positions}: the logits of a bigram do not depend on positions"
        )


def test_every_token_of_a_mixed_batch_has_its_own_row(lab: ModuleType) -> None:
    # One step can hold a chunk of request a, a decode of b and the start of c. Their rows must not depend on each other.
    tokens = torch.tensor([2, 2, 4, 0, 1, 3])
    together = forward(lab.BigramModel(TABLE.clone()), tokens, torch.tensor([5, 6, 7, 9, 0, 1]))
    for row, (token, logits) in enumerate(zip(tokens.tolist(), together, strict=False)):
        expect_tensor(
            logits,
            TABLE[token],
            f"row {row} of the step is token {token}: its logits do not depend on the other tokens of the step",
        )
    expect_tensor(together, TABLE[tokens], "one row for each of the 6 tokens, or a request gets the logits of another request")


def test_nothing_is_kept_between_calls(lab: ModuleType) -> None:
    table, positions = TABLE.clone(), torch.arange(3)
    model = lab.BigramModel(table)
    for tokens in ([0, 1, 2], [4, 4, 4], [0, 1, 2]):
        logits = forward(model, torch.tensor(tokens), positions)
        expect_tensor(
            logits, TABLE[tokens], f"tokens {tokens}: the logits do not depend on earlier calls, which may be of other requests"
        )
    expect_tensor(table, TABLE, "forward must not change the weights: every later request reads the same table")


def test_a_row_has_the_tables_dtype(lab: ModuleType) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        logits = forward(lab.BigramModel(TABLE.to(dtype)), torch.tensor([2]), torch.tensor([0]))
        expect_tensor(
            logits, TABLE[[2]].to(dtype), "logits have the dtype of the table: rounding them here changes the sampled tokens"
        )


# --- task checkpoint ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_names_the_architecture_is_served(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, BIGRAM))
    expect(
        tokens_of(llm, prompts_of([0])),
        [[3, 1, 4, 2, 0, 3]],
        "LLM(directory) uses the table in the checkpoint of that directory",
    )
    other = tmp_path / "other"
    other.mkdir()
    moved = LLM(write_checkpoint(other, TABLE.roll(1, dims=1), BIGRAM))
    expect(
        tokens_of(moved, prompts_of([0]))[0][0],
        4,
        "in the table of the second directory, 4 comes after 0: the second model must use its own table",
    )


def test_building_a_model_leaves_the_checkpoint_unchanged(lab: ModuleType) -> None:
    model = from_checkpoint(lab.BigramModel, {"vocab_size": 5}, {"table": TABLE.clone()})
    logits = forward(model, torch.tensor([3, 0]), torch.tensor([0, 1]))
    expect_tensor(logits, TABLE[[3, 0]], "the model uses the table of the checkpoint")


def test_a_table_that_does_not_fit_the_config_is_loud(lab: ModuleType) -> None:
    for vocab_size, columns, meaning in [
        (9, 5, "vocab_size 9 with 5 rows: token 7 would raise an IndexError in the step of every other request"),
        (5, 4, "vocab_size 5 with 4 columns: token 4 would never be generated"),
        (3, 5, "vocab_size 3 with 5 rows: if the table is cut to fit, it is another model"),
    ]:
        with expect_refused(vocab_size, columns, meaning=meaning):
            from_checkpoint(lab.BigramModel, {"vocab_size": vocab_size}, {"table": TABLE[:, :columns]})


# --- task generate -----------------------------------------------------------------------------------------------------


def test_greedy_generation_is_the_chain_worked_out_by_hand(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, BIGRAM))
    prompts = prompts_of([0], [4, 4, 0], [1], [0, 3, 2])
    chains = [
        [3, 1, 4, 2, 0, 3],  # 0 -> 3 -> 1 -> 4 -> 2 -> 0 -> 3
        [3, 1, 4, 2, 0, 3],  # only the last token of a prompt counts; here it is 0 again
        [4, 2, 0, 3, 1, 4],
        [0, 3, 1, 4, 2, 0],
    ]
    expect(
        tokens_of(llm, prompts),
        chains,
        "four requests in one batch: each chain starts from the last token of its own prompt",
    )


# --- task contract -----------------------------------------------------------------------------------------------------


class Tripwire:
    """Wraps a model, records the name of every attribute that is read, and fails for any name but ``forward``.

    If the engine ever reads another attribute of the model, this test fails with the name of that attribute.
    """

    def __init__(self, model: Any, touched: set[str]) -> None:
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "touched", touched)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "touched").add(name)
        if name != "forward":
            raise AssertionError(
                f"expected: only model.forward\ngot: model.{name}\nthe engine may read no other attribute of a model"
            )
        return object.__getattribute__(self, "model").forward

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"the engine assigned model.{name}; it must not change a model")

    def __call__(self, *args: object) -> Any:
        raise AssertionError("the engine called model(...); the contract is model.forward(...)")


def test_the_engine_touches_forward_and_nothing_else(lab: ModuleType, tmp_path: Path) -> None:
    touched: set[str] = set()
    register_model("TripwiredBigram", lambda config, ckpt: Tripwire(lab.BigramModel.from_checkpoint(config, ckpt), touched))
    llm = LLM(write_checkpoint(tmp_path, TABLE, "TripwiredBigram"), max_num_batched_tokens=4, block_size=2)
    outputs = tokens_of(llm, prompts_of([0], [4, 4, 0, 1, 1, 2], [1]))
    chains = [[3, 1, 4, 2, 0, 3], [0, 3, 1, 4, 2, 0], [4, 2, 0, 3, 1, 4]]
    expect(outputs, chains, "the same chains when a prompt of 6 tokens runs in chunks of at most 4, in one step with decodes")
    expect(touched, {"forward"}, "the contract between the engine and a model is this one method")


# --- task invariants ---------------------------------------------------------------------------------------------------

VOCAB = 11
prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
sampling = st.sampled_from([GREEDY, SamplingParams(max_tokens=9, seed=3), SamplingParams(max_tokens=4, seed=8, temperature=2)])
arrivals = st.lists(st.tuples(st.integers(0, 6), prompt, sampling), min_size=1, max_size=6)
LONGEST = 12 + 9
"""The largest number of tokens that a request can have."""


def serve(model: Any, requests: list[tuple[int, list[int], SamplingParams]], **sizes: int) -> tuple[list[list[int]], int]:
    """The tokens of each request and the number of preemptions. A request is added before the step that it names."""
    engine = LLMEngine(model, EngineConfig(max_model_len=LONGEST, **sizes))
    outputs: dict[str, list[int]] = {}
    step = 0
    while len(outputs) < len(requests):
        for index, (arrival, token_ids, params) in enumerate(requests):
            if arrival == step:
                engine.add_request(str(index), token_ids, params)
        for output in engine.step():
            if output.outputs[0].error:
                raise output.outputs[0].error
            if output.finished:
                outputs[output.request_id] = output.outputs[0].token_ids
        step += 1
    return [outputs[str(index)] for index in range(len(requests))], engine.stats.preemptions


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    verbosity=Verbosity.quiet,  # the message below shows the example
    phases=(Phase.generate, Phase.shrink),
)
@given(
    requests=arrivals, block_size=st.integers(1, 8), budget=st.integers(1, 16), seats=st.integers(1, 6), spare=st.integers(0, 12)
)
def test_engine_invariants_hold_for_the_new_model(
    lab: ModuleType, requests: list[tuple[int, list[int], SamplingParams]], block_size: int, budget: int, seats: int, spare: int
) -> None:
    model = lab.BigramModel(random_table(VOCAB))
    alone = [serve(model, [(0, token_ids, params)], num_blocks=LONGEST)[0][0] for _, token_ids, params in requests]
    num_blocks = -(-LONGEST // block_size) + spare
    together, _ = serve(
        model, requests, block_size=block_size, max_num_batched_tokens=budget, max_num_seqs=seats, num_blocks=num_blocks
    )
    expect(
        together,
        alone,
        f"tokens of {len(requests)} requests, {seats} at a time, in chunks of up to {budget} tokens, with {num_blocks} blocks of "
        f"{block_size} tokens: each request must generate the tokens that it generates alone",
    )


def test_tokens_survive_preemption(lab: ModuleType) -> None:
    model = lab.BigramModel(random_table(VOCAB))
    params = SamplingParams(max_tokens=9, seed=5)
    requests = [(0, [token] * 4, params) for token in range(4)]
    roomy, calm = serve(model, requests, block_size=2, num_blocks=64)
    cramped, preemptions = serve(model, requests, block_size=2, num_blocks=11)
    expect(calm, 0, "preemptions with 64 blocks of 2 tokens, which are enough for all requests")
    expect(
        "preempted" if preemptions else "never preempted",
        "preempted",
        "11 blocks of 2 tokens are too few for four requests of up to 13 tokens, so the engine has to preempt one",
    )
    expect(
        cramped,
        roomy,
        "a preempted request starts over and generates the same tokens: forward must keep no state of the first run",
    )


# --- task attention ----------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 67,  # padded to 128: of two ranks, the first has 64 tokens and the second has 3
    "hidden_size": 32,
    "head_dim": 8,
    "num_attention_heads": 6,  # not H / D; three query heads for each kv head
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}
SHAPES = {
    "embed_tokens": (67, 32),
    "input_layernorm": (32,),
    "q_proj": (48, 32),
    "k_proj": (16, 32),
    "v_proj": (16, 32),
    "o_proj": (32, 48),
    "post_attention_layernorm": (32,),
    "gate_proj": (48, 32),
    "up_proj": (48, 32),
    "down_proj": (32, 48),
    "norm": (32,),
    "lm_head": (67, 32),
}
PROMPTS = [[3, 14, 15, 9, 26, 53, 58, 9, 7, 9, 32], [66], [5, 4, 3, 2, 1], [3, 14, 15, 9, 26, 53, 58, 9, 7, 9, 33]]
BLOCK_SIZE = 4
"""The same in all tests, because the attention loop is compiled for each block size."""

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrix products this small are slower on several threads, especially on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_weights() -> Weights:
    generator = torch.Generator().manual_seed(8)
    return {name: torch.randn(shape, generator=generator) * 0.6 for name, shape in SHAPES.items()}


def write_tiny(folder: Path, weights: Weights, architecture: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY | {"architectures": [architecture]}))
    save_file(
        {name if "." in name else f"{name}.weight": weight for name, weight in weights.items()}, folder / "model.safetensors"
    )
    return folder


def plain_logits(weights: Weights, tokens: list[int]) -> Tensor:
    """The logits of the whole model for one sequence in plain torch, one head after the other: (L,) to (L, V)."""
    length, dim = len(tokens), TINY["head_dim"]
    group = TINY["num_attention_heads"] // TINY["num_key_value_heads"]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + TINY["rms_norm_eps"]).sqrt() * weight

    angles = torch.arange(length)[:, None] / TINY["rope_theta"] ** (torch.arange(0, dim, 2) / dim)

    def turn(head: Tensor) -> Tensor:
        first, second = head.chunk(2, dim=-1)
        return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1)

    hidden = weights["embed_tokens"][tokens]
    x = norm(hidden, weights["input_layernorm"])
    q, k, v = (list((x @ weights[f"{name}_proj"].T).split(dim, dim=-1)) for name in "qkv")
    heads = []
    for number, query in enumerate(q):
        scores = turn(query) @ turn(k[number // group]).T / dim**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(dim=-1) @ v[number // group])
    hidden = hidden + torch.cat(heads, dim=-1) @ weights["o_proj"].T
    x = norm(hidden, weights["post_attention_layernorm"])
    gate, up = x @ weights["gate_proj"].T, x @ weights["up_proj"].T
    hidden = hidden + (gate * gate.sigmoid() * up) @ weights["down_proj"].T
    return norm(hidden, weights["norm"]) @ weights["lm_head"].T


def plain_tokens(weights: Weights, prompt: list[int], max_tokens: int = 8) -> list[int]:
    """Greedy tokens of the plain model. The best logit must be clearly above the second, so that rounding does not decide."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        best, second = plain_logits(weights, tokens)[-1].topk(2).values.tolist()
        expect(
            best - second > 1e-3,
            True,
            "the weights of this test give two tokens nearly the same logit; use another seed in random_weights",
        )
        tokens.append(int(plain_logits(weights, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    """The learner's logits for every token of one request: (L,) to (L, V)."""
    length, blocks = len(tokens), -(-len(tokens) // BLOCK_SIZE)
    context = ForwardContext(
        kv_cache=KVCache(blocks, BLOCK_SIZE),
        query_start=(0, length),
        lengths=(length,),
        block_tables=(tuple(range(blocks)),),
        write_slots=torch.arange(length),
        logits_indices=torch.arange(length),
    )
    with set_forward_context(context):
        return forward(model, torch.tensor(tokens), torch.arange(length))


def serve_tiny(lab: ModuleType, folder: Path, **options: Any) -> tuple[LLM, Any]:
    """An engine for the checkpoint, and its model."""
    built = []

    def factory(config: Any, checkpoint: Any) -> Any:
        built.append(lab.TinyAttentionModel.from_checkpoint(config, checkpoint))
        return built[0]

    register_model("WatchedTinyAttention", factory)
    return LLM(folder, block_size=BLOCK_SIZE, **options), built[0]


EIGHT = SamplingParams(temperature=0, max_tokens=8)


def test_attention_computes_what_plain_torch_computes(lab: ModuleType, tmp_path: Path) -> None:
    weights = random_weights()
    folder = write_tiny(tmp_path, weights, "WatchedTinyAttention")
    model = from_checkpoint(lab.TinyAttentionModel, TINY, Checkpoint(folder))
    for prompt in PROMPTS:
        found, expected = logits_of(model, prompt), plain_logits(weights, prompt)
        meaning = (
            f"logits of shape (R, V) for the tokens {prompt}: compare your norms, rope, heads and residuals with plain_logits"
        )
        expect_tensor(found, expected, meaning, within=1e-4)


def test_attention_is_served_in_chunks_blocks_and_company(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    weights = random_weights()
    folder = write_tiny(tmp_path, weights, TINY_ATTENTION)
    llm = LLM(folder, block_size=BLOCK_SIZE, max_num_batched_tokens=6, num_blocks=32)
    expect(
        tokens_of(llm, prompts_of(*PROMPTS), EIGHT),
        [plain_tokens(weights, prompt) for prompt in PROMPTS],
        "prompts run in chunks of at most 6 tokens, in one step with decodes; the tokens must be those of each prompt alone",
    )


def test_attention_takes_every_tensor_of_the_checkpoint_or_none(lab: ModuleType, tmp_path: Path) -> None:
    weights = random_weights()
    del weights["k_proj"]
    weights["up_proj"] = torch.zeros(64, 32)
    weights["v_proj.bias"] = torch.zeros(16)
    checkpoint = Checkpoint(write_tiny(tmp_path, weights, "WatchedTinyAttention"))
    all_at_once = "k_proj is missing, up_proj has too many rows, a bias is unknown: load_weights of the engine reports all three"
    with expect_refused("partly covered", "truncated", "unexpected", error=LoadError, meaning=all_at_once):
        from_checkpoint(lab.TinyAttentionModel, TINY, checkpoint)


# --- task free ---------------------------------------------------------------------------------------------------------

ABOUT_THEM = r"(?i)\b(tp|tp_\w+|\w*ranks?|world_size|distributed|all_reduce|all_gather|\w*shards?|int8|quant\w*|kernel|lora\w*)\b"


def test_the_model_has_no_line_about_them(lab: ModuleType, tmp_path: Path) -> None:
    """Reads every class and function that the file defines, helpers included."""
    lab.TinyAttentionModel.from_checkpoint(TINY, Checkpoint(write_tiny(tmp_path, random_weights(), "WatchedTinyAttention")))
    text = Path(str(lab.__file__)).read_text(encoding="utf-8")
    own = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    lines = [line for node in own for line in (ast.get_source_segment(text, node) or "").splitlines()]
    about = [line.strip() for line in lines if re.search(ABOUT_THEM, line)]
    expect(
        "class TinyAttentionModel" in "\n".join(lines),
        True,
        "define TinyAttentionModel in your file, so that the test can read it",
    )
    expect(
        set(about),
        set(),
        "the layers already handle ranks, int8 and adapters: remove these lines from the model",
    )


def test_int8_is_the_model_with_rounded_weights(lab: ModuleType, tmp_path: Path) -> None:
    """A row is rounded to 127 steps of its largest weight. All linear weights must be rounded, and nothing else may differ."""
    weights = random_weights()
    rounded = dict(weights)
    for name in set(SHAPES) - {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}:
        scale = weights[name].abs().amax(dim=1, keepdim=True) / 127
        rounded[name] = (weights[name] / scale).round() * scale
    llm, model = serve_tiny(lab, write_tiny(tmp_path, weights, "WatchedTinyAttention"), quantization="int8")

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}
    whole = "int8, tensor parallelism and LoRA only work for weights in the layers of mini_vllm/layers/linear.py"
    expect(
        len(linear),
        5,
        f"linear layers: qkv_proj, o_proj, gate_up_proj, down_proj and lm_head; yours are {list(linear)}: {whole}",
    )
    for name, layer in linear.items():
        expect("no kernel" if layer.kernel is None else "int8 kernel", "int8 kernel", f"{name} must be multiplied in int8 too")
        expect(layer.weight.numel(), 0, f"float weights that {name} keeps beside its int8 weights: they would save no memory")
    found = logits_of(model, PROMPTS[0])
    expect_tensor(
        found, plain_logits(rounded, PROMPTS[0]), "the logits must be those of the model with rounded weights", within=1e-3
    )
    apart = float((found - plain_logits(weights, PROMPTS[0])).abs().max())
    expect(apart > 1e-3, True, "the logits must differ from those without rounding, or nothing was rounded")
    said = [plain_tokens(rounded, prompt) for prompt in PROMPTS]
    expect(
        tokens_of(llm, prompts_of(*PROMPTS), EIGHT), said, "tokens served in int8 must be those of the model with rounded weights"
    )


def write_adapter(folder: Path, weights: Weights, modules: tuple[str, ...], seed: int) -> Weights:
    """Writes an adapter of rank 4 as peft does. Returns the model's weights with the adapter merged."""
    generator = torch.Generator().manual_seed(seed)
    r, alpha = 4, 8
    tensors, merged = {}, dict(weights)
    for module in modules:
        rows, columns = SHAPES[module]
        a, b = torch.randn(r, columns, generator=generator) * 0.3, torch.randn(rows, r, generator=generator) * 0.3
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        merged[module] = weights[module] + alpha / r * (b @ a)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return merged


def test_adapters_say_what_merged_weights_say(lab: ModuleType, tmp_path: Path) -> None:
    """Three requests of one batch: two adapters, and none."""
    weights = random_weights()
    llm, _ = serve_tiny(lab, write_tiny(tmp_path / "model", weights, "WatchedTinyAttention"))
    some = write_adapter(tmp_path / "some", weights, ("q_proj", "v_proj", "down_proj"), seed=1)
    others = write_adapter(tmp_path / "others", weights, ("k_proj", "o_proj", "gate_proj", "up_proj"), seed=2)

    from mini_vllm import LoRARequest

    requests = [
        LoRARequest("some", 1, str(tmp_path / "some")),
        None,
        LoRARequest("others", 2, str(tmp_path / "others")),
    ]
    for prompt in PROMPTS:
        outputs = llm.generate(prompts_of(prompt, prompt, prompt), EIGHT, lora_request=requests)
        expected = [plain_tokens(merged, prompt) for merged in (some, weights, others)]
        said = [output.outputs[0].token_ids for output in outputs]
        expect(
            said,
            expected,
            f"{prompt} with one adapter, with none and with another in one batch: the tokens are those of merged weights",
        )
        expect(expected[0] != expected[1] != expected[2], True, "the adapters of this test change the generated tokens")


SERVE = """
import json, sys
from pathlib import Path
from labkit.system.labs import load_implementation
from mini_vllm import LLM, SamplingParams

file, folder, answers, prompts = sys.argv[1:]
load_implementation(Path(file)).register()
llm = LLM(folder, block_size=4)
outputs = llm.generate(json.loads(prompts), SamplingParams(temperature=0, max_tokens=8))
Path(answers).write_text(json.dumps([output.outputs[0].token_ids for output in outputs]))
"""


@pytest.mark.timeout(90)
def test_two_ranks_say_what_one_says(lab: ModuleType, tmp_path: Path) -> None:
    """Two processes under torchrun, each with half of every large weight."""
    lab.register()
    weights, answers = random_weights(), tmp_path / "answers.json"
    folder = write_tiny(tmp_path / "model", weights, TINY_ATTENTION)
    alone = tokens_of(LLM(folder, block_size=BLOCK_SIZE), prompts_of(*PROMPTS), EIGHT)
    (tmp_path / "serve.py").write_text(SERVE)
    # Without --local-addr, torchrun gives the ranks the host name, which may not resolve without a network.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command += [tmp_path / "serve.py", lab.__file__, folder, answers, json.dumps(prompts_of(*PROMPTS))]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w+") as output:
        ranks = subprocess.Popen(list(map(str, command)), env=settings, stdout=output, stderr=subprocess.STDOUT)
        try:
            ranks.wait(timeout=60)
        except subprocess.TimeoutExpired:
            ranks.terminate()  # torchrun then ends its ranks
            ranks.wait()
            pytest.fail("two ranks did not end in 60 seconds: perhaps one waits in an all_reduce that the other never calls")
        output.seek(max(output.tell() - 100_000, 0))
        said = output.read()
    errors = [line for line in said.splitlines() if re.search(r"^\[rank\d\]: \w[\w.]*(Error|Exception): ", line)]
    expect(
        "two ranks ended without an error" if ranks.returncode == 0 else errors[0] if errors else said[-240:],
        "two ranks ended without an error",
        "the layers of a rank have only a share of the heads: take head counts from the layers, not from config.json",
    )
    together = json.loads(answers.read_text())
    meaning = "two ranks must generate the tokens of one; use RowParallelLinear, which sums its products over the ranks"
    expect(together, alone, meaning)
    expect(together, [plain_tokens(weights, prompt) for prompt in PROMPTS], "the tokens must be those of plain torch")
