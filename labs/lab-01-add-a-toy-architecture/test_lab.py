"""Lab 01, the spec: a model the engine has never heard of is served right, and the engine has touched nothing but forward."""

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

from labkit.course.assertions import expect, expect_refused, expect_tensor
from mini_vllm import LLM, LLMEngine, SamplingParams, register_model
from mini_vllm.config import EngineConfig
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.layers.linear import LinearBase
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.loading.loader import LoadError

ROOT = Path(__file__).resolve().parents[2]

BIGRAM, TINY_ATTENTION = "BigramForCausalLM", "TinyAttentionForCausalLM"
"""What config.json calls the two models: a checkpoint is there before the code that serves it."""

GREEDY = SamplingParams(temperature=0, max_tokens=6)

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


def random_table(vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))


def write_checkpoint(folder: Path, table: Tensor, architecture: str, vocab_size: int | None = None) -> Path:
    """A Hugging Face directory: config.json and safetensors, no tokenizer."""
    config = {"architectures": [architecture], "vocab_size": vocab_size or table.shape[0], "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"table": table}, folder / "model.safetensors")
    return folder


def prompts_of(*token_ids: list[int]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": ids} for ids in token_ids]


def tokens_of(llm: LLM, prompts: list[dict[str, list[int]]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


# --- task forward ------------------------------------------------------------------------------------------------------


def test_logits_are_rows_of_the_table(lab: ModuleType) -> None:
    logits = lab.BigramModel(TABLE.clone()).forward(torch.tensor([3, 0]), torch.tensor([0, 1]))
    expect_tensor(logits, TABLE[[3, 0]], "(T, V) logits, two tokens and a vocabulary of 5: row i answers tokens[i], here 3 and 0")


def test_positions_are_ignored(lab: ModuleType) -> None:
    model, tokens = lab.BigramModel(TABLE.clone()), torch.tensor([1, 4, 1])
    for positions in ([0, 1, 2], [60, 3, 17]):
        logits = model.forward(tokens, torch.tensor(positions))
        expect_tensor(logits, TABLE[tokens], f"tokens 1, 4, 1 at positions {positions}: a bigram's answer is the same anywhere")


def test_every_token_of_a_mixed_batch_has_its_own_row(lab: ModuleType) -> None:
    # One step may hold a chunk of request a, a decode of b and the start of c, end to end; neighbours must not mix.
    tokens = torch.tensor([2, 2, 4, 0, 1, 3])
    together = lab.BigramModel(TABLE.clone()).forward(tokens, torch.tensor([5, 6, 7, 9, 0, 1]))
    for row, (token, logits) in enumerate(zip(tokens.tolist(), together, strict=False)):
        expect_tensor(
            logits, TABLE[token], f"row {row} of the step is token {token}: answered by itself, whoever stands beside it"
        )
    expect_tensor(together, TABLE[tokens], "a row for each of the step's 6 tokens, or a request gets another's answer")


def test_nothing_is_kept_between_calls(lab: ModuleType) -> None:
    table, positions = TABLE.clone(), torch.arange(3)
    model = lab.BigramModel(table)
    for tokens in ([0, 1, 2], [4, 4, 4], [0, 1, 2]):
        logits = model.forward(torch.tensor(tokens), positions)
        expect_tensor(logits, TABLE[tokens], f"tokens {tokens}: what was asked before, maybe by somebody else, changes nothing")
    expect_tensor(table, TABLE, "serving changes no weight: the table of the last request is that of the first")


def test_a_row_has_the_tables_dtype(lab: ModuleType) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        logits = lab.BigramModel(TABLE.to(dtype)).forward(torch.tensor([2]), torch.tensor([0]))
        expect_tensor(logits, TABLE[[2]].to(dtype), "logits in the table's dtype: what is rounded here, the sampler cannot mend")


# --- task checkpoint ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_names_the_architecture_is_served(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, BIGRAM))
    expect(
        tokens_of(llm, prompts_of([0])),
        [[3, 1, 4, 2, 0, 3]],
        "LLM(directory) answers from the table in that directory's checkpoint",
    )
    other = tmp_path / "other"
    other.mkdir()
    moved = LLM(write_checkpoint(other, TABLE.roll(1, dims=1), BIGRAM))
    expect(
        tokens_of(moved, prompts_of([0]))[0][0],
        4,
        "after 0 comes 4 in another directory's table: a second model is not the first",
    )


def test_a_table_that_does_not_fit_the_config_is_loud(lab: ModuleType) -> None:
    for vocab_size, columns, meaning in [
        (9, 5, "a vocabulary of 9 and a table of 5: token 7 would end the engine for everybody in the step"),
        (5, 4, "a vocabulary of 5 and 4 columns: token 4 would never be said"),
        (3, 5, "a vocabulary of 3 and a table of 5: cut to fit, it is another model"),
    ]:
        with expect_refused(vocab_size, columns, meaning=meaning):
            lab.BigramModel.from_checkpoint({"vocab_size": vocab_size}, {"table": TABLE[:, :columns]})


# --- task generate -----------------------------------------------------------------------------------------------------


def test_greedy_generation_is_the_chain_worked_out_by_hand(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, BIGRAM))
    prompts = prompts_of([0], [4, 4, 0], [1], [0, 3, 2])
    chains = [
        [3, 1, 4, 2, 0, 3],  # 0 -> 3 -> 1 -> 4 -> 2 -> 0 -> 3
        [3, 1, 4, 2, 0, 3],  # only the last token of a prompt counts, and it is 0 again
        [4, 2, 0, 3, 1, 4],
        [0, 3, 1, 4, 2, 0],
    ]
    expect(
        tokens_of(llm, prompts),
        chains,
        "four requests in one batch: each follows the table from the last token of its own prompt",
    )


# --- task contract -----------------------------------------------------------------------------------------------------


class Tripwire:
    """Stands before a model, writes down every name that is touched, and fails on all but ``forward``.

    It documents the architecture and cannot go stale: when the engine reaches for more, this test says for what.
    """

    def __init__(self, model: Any, touched: set[str]) -> None:
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "touched", touched)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "touched").add(name)
        if name != "forward":
            raise AssertionError(
                f"expected: model.forward alone\ngot: model.{name}\nthe engine may touch forward and nothing else"
            )
        return object.__getattribute__(self, "model").forward

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"the engine wrote model.{name}; a model's state is its own")

    def __call__(self, *args: object) -> Any:
        raise AssertionError("the engine called model(...); the contract is model.forward(...)")


def test_the_engine_touches_forward_and_nothing_else(lab: ModuleType, tmp_path: Path) -> None:
    touched: set[str] = set()
    register_model("TripwiredBigram", lambda config, ckpt: Tripwire(lab.BigramModel.from_checkpoint(config, ckpt), touched))
    llm = LLM(write_checkpoint(tmp_path, TABLE, "TripwiredBigram"), max_num_batched_tokens=4, block_size=2)
    outputs = tokens_of(llm, prompts_of([0], [4, 4, 0, 1, 1, 2], [1]))
    chains = [[3, 1, 4, 2, 0, 3], [0, 3, 1, 4, 2, 0], [4, 2, 0, 3, 1, 4]]
    expect(outputs, chains, "the same chains when a prompt of 6 comes in chunks of at most 4 tokens, beside decodes of others")
    expect(touched, {"forward"}, "this is the whole width of the contract between an engine and a model")


# --- task invariants ---------------------------------------------------------------------------------------------------

VOCAB = 11
prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
sampling = st.sampled_from([GREEDY, SamplingParams(max_tokens=9, seed=3), SamplingParams(max_tokens=4, seed=8, temperature=2)])
arrivals = st.lists(st.tuples(st.integers(0, 6), prompt, sampling), min_size=1, max_size=6)
LONGEST = 12 + 9
"""The most tokens a request above can have."""


def serve(model: Any, requests: list[tuple[int, list[int], SamplingParams]], **sizes: int) -> tuple[list[list[int]], int]:
    """Each request's tokens when it arrives before the step it names, and how often anyone was preempted."""
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
    verbosity=Verbosity.quiet,  # the message below has all that was drawn
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
        f"{len(requests)} requests' tokens, {seats} at a time, in chunks of up to {budget} tokens and {num_blocks} blocks of "
        f"{block_size}: each must say what it says alone, or an answer depends on who else is served",
    )


def test_tokens_survive_preemption(lab: ModuleType) -> None:
    model = lab.BigramModel(random_table(VOCAB))
    params = SamplingParams(max_tokens=9, seed=5)
    requests = [(0, [token] * 4, params) for token in range(4)]
    roomy, calm = serve(model, requests, block_size=2, num_blocks=64)
    cramped, preemptions = serve(model, requests, block_size=2, num_blocks=11)
    expect(calm, 0, "preemptions with 64 blocks of 2 tokens, which is room for all")
    expect(
        "preempted" if preemptions else "not once",
        "preempted",
        "with 11 blocks of 2 tokens and four requests of up to 13, somebody has to give blocks up",
    )
    expect(
        cramped, roomy, "a request that lost its blocks and started over says the same: forward keeps nothing of its first try"
    )


# --- task attention ----------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 67,  # padded to 128, so that of two ranks the first has 64 tokens and the second 3
    "hidden_size": 32,
    "head_dim": 8,
    "num_attention_heads": 6,  # other than H / D, and three to a kv head
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
"""One for all, since attention's loop is compiled for each."""

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products as small as these are slower on several threads, by far where others work on the same machine."""
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
    """The whole model over one sequence in plain torch, one head after the other: (L,) to (L, V)."""
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
    """What the plain model says greedily; each winner must win clearly, so that no rounding decides."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        best, second = plain_logits(weights, tokens)[-1].topk(2).values.tolist()
        expect(best - second > 1e-3, True, "the test's own weights leave two tokens level; give random_weights another seed")
        tokens.append(int(plain_logits(weights, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    """A model's logits for every token of one request: (L,) to (L, V)."""
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
        return model.forward(torch.tensor(tokens), torch.arange(length))


def serve_tiny(lab: ModuleType, folder: Path, **options: Any) -> tuple[LLM, Any]:
    """An engine for the checkpoint, and the model that it was built around."""
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
    model = lab.TinyAttentionModel.from_checkpoint(TINY, Checkpoint(folder))
    for prompt in PROMPTS:
        found, expected = logits_of(model, prompt), plain_logits(weights, prompt)
        meaning = (
            f"(R, V), a row of logits for each token of {prompt}: norm, rope, heads or residual is not where plain_logits has it"
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
        "prompts in pieces of at most 6 tokens, beside decodes of others, two with one beginning, say what they say alone",
    )


def test_attention_takes_every_tensor_of_the_checkpoint_or_none(lab: ModuleType, tmp_path: Path) -> None:
    weights = random_weights()
    del weights["k_proj"]
    weights["up_proj"] = torch.zeros(64, 32)
    weights["v_proj.bias"] = torch.zeros(16)
    checkpoint = Checkpoint(write_tiny(tmp_path, weights, "WatchedTinyAttention"))
    all_at_once = "no k_proj, an up_proj too tall, a bias too many: load_weights of mini_vllm/loading/loader.py says all three"
    with expect_refused("partly covered", "truncated", "unexpected", error=LoadError, meaning=all_at_once):
        lab.TinyAttentionModel.from_checkpoint(TINY, checkpoint)


# --- task free ---------------------------------------------------------------------------------------------------------

ABOUT_THEM = r"(?i)\b(tp|tp_\w+|\w*ranks?|world_size|distributed|all_reduce|all_gather|\w*shards?|int8|quant\w*|kernel|lora\w*)\b"


def test_the_model_has_no_line_about_them(lab: ModuleType, tmp_path: Path) -> None:
    """Whatever the file defines counts, so that nothing can hide in a helper."""
    lab.TinyAttentionModel.from_checkpoint(TINY, Checkpoint(write_tiny(tmp_path, random_weights(), "WatchedTinyAttention")))
    text = Path(str(lab.__file__)).read_text(encoding="utf-8")
    own = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    lines = [line for node in own for line in (ast.get_source_segment(text, node) or "").splitlines()]
    about = [line.strip() for line in lines if re.search(ABOUT_THEM, line)]
    expect(
        "class TinyAttentionModel" in "\n".join(lines), True, "TinyAttentionModel is defined in your file, so that it can be read"
    )
    expect(
        set(about),
        set(),
        "the layers do ranks, int8 and adapters: a model that does them too does them twice; take these lines out",
    )


def test_int8_is_the_model_with_rounded_weights(lab: ModuleType, tmp_path: Path) -> None:
    """127 steps to the largest weight of a row; nothing else may differ, and nothing may be left as it was."""
    weights = random_weights()
    rounded = dict(weights)
    for name in set(SHAPES) - {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}:
        scale = weights[name].abs().amax(dim=1, keepdim=True) / 127
        rounded[name] = (weights[name] / scale).round() * scale
    llm, model = serve_tiny(lab, write_tiny(tmp_path, weights, "WatchedTinyAttention"), quantization="int8")

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}
    whole = "a weight outside mini_vllm/layers/linear.py is one that int8 cannot round, nor a rank cut, nor an adapter find"
    expect(
        len(linear),
        5,
        f"linear layers, of q, k and v, of o, of gate and up, of down, and lm_head; yours are {list(linear)}: {whole}",
    )
    for name, layer in linear.items():
        expect("no kernel" if layer.kernel is None else "int8 kernel", "int8 kernel", f"{name} must be multiplied in int8 too")
        expect(layer.weight.numel(), 0, f"weights that {name} still holds beside its int8 ones: nothing would be saved")
    found = logits_of(model, PROMPTS[0])
    expect_tensor(
        found, plain_logits(rounded, PROMPTS[0]), "logits of the model with rounded weights, and nothing else", within=1e-3
    )
    apart = float((found - plain_logits(weights, PROMPTS[0])).abs().max())
    expect(apart > 1e-3, True, "rounding must be seen in the logits, or nothing was rounded")
    said = [plain_tokens(rounded, prompt) for prompt in PROMPTS]
    expect(tokens_of(llm, prompts_of(*PROMPTS), EIGHT), said, "served in int8, it says what rounded weights say")


def write_adapter(folder: Path, weights: Weights, modules: tuple[str, ...], seed: int) -> Weights:
    """A directory as peft writes it, of rank 4; returns the weights that it makes of the model's."""
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
        expect(said, expected, f"{prompt} asked of one adapter, of none and of another in one batch: each as with weights merged")
        expect(expected[0] != expected[1] != expected[2], True, "the adapters of this test change what is said")


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
    # torchrun would tell the ranks this machine's name, which without a network leads nowhere.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command += [tmp_path / "serve.py", lab.__file__, folder, answers, json.dumps(prompts_of(*PROMPTS))]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w+") as output:
        ranks = subprocess.Popen(list(map(str, command)), env=settings, stdout=output, stderr=subprocess.STDOUT)
        try:
            ranks.wait(timeout=60)
        except subprocess.TimeoutExpired:
            ranks.terminate()  # torchrun then ends the ranks that it has started
            ranks.wait()
            pytest.fail("two ranks did not come to an end in 60 seconds: does one wait for a sum that the other never joins?")
        output.seek(max(output.tell() - 100_000, 0))
        said = output.read()
    errors = [line for line in said.splitlines() if re.search(r"^\[rank\d\]: \w[\w.]*(Error|Exception): ", line)]
    expect(
        "two ranks ended well" if ranks.returncode == 0 else errors[0] if errors else said[-240:],
        "two ranks ended well",
        "each rank's layers have their share of heads, rows and columns; forward takes the counts from them, not from the config",
    )
    together = json.loads(answers.read_text())
    meaning = "two ranks must say what one says; is a product not summed over the ranks, as RowParallelLinear does it?"
    expect(together, alone, meaning)
    expect(together, [plain_tokens(weights, prompt) for prompt in PROMPTS], "and what plain torch says")
