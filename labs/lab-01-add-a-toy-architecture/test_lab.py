"""Lab 01, the spec: a model the engine has never heard of is served right, and the engine has touched nothing but forward."""

from __future__ import annotations

import inspect
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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mini_vllm import LLM, LLMEngine, SamplingParams, register_model
from mini_vllm.config import EngineConfig
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.layers.linear import LinearBase
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.loading.loader import LoadError

ROOT = Path(__file__).resolve().parents[2]

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
    logits = lab.BigramModel(TABLE).forward(torch.tensor([3, 0]), torch.tensor([0, 1]))
    assert tuple(logits.shape) == (2, 5), "two tokens and a vocabulary of 5 make logits of shape (T, V) = (2, 5)"
    assert logits.tolist() == [TABLE[3].tolist(), TABLE[0].tolist()], "row i answers tokens[i]: row 3 of the table, then row 0"


def test_positions_are_ignored(lab: ModuleType) -> None:
    model, tokens = lab.BigramModel(TABLE), torch.tensor([1, 4, 1])
    near = model.forward(tokens, torch.tensor([0, 1, 2]))
    far = model.forward(tokens, torch.tensor([60, 3, 17]))
    assert torch.equal(near, TABLE[tokens]), "row i answers tokens[i]"
    assert torch.equal(near, far), "a bigram model gives the same answer wherever the token stands"


def test_every_token_of_a_mixed_batch_has_its_own_row(lab: ModuleType) -> None:
    # One step may hold a chunk of request a, a decode of b and the start of c, end to end; neighbours must not mix.
    chunks = [torch.tensor([2, 2, 4]), torch.tensor([0]), torch.tensor([1, 3])]
    positions = torch.tensor([5, 6, 7, 9, 0, 1])
    together = lab.BigramModel(TABLE).forward(torch.cat(chunks), positions)
    alone = torch.cat([TABLE[chunk] for chunk in chunks])
    assert torch.equal(together, alone), "the step's tokens are answered one by one, whoever stands beside them"


def test_nothing_is_kept_between_calls(lab: ModuleType) -> None:
    model, positions = lab.BigramModel(TABLE.clone()), torch.arange(3)
    first = model.forward(torch.tensor([0, 1, 2]), positions).clone()
    model.forward(torch.tensor([4, 4, 4]), positions)
    again = model.forward(torch.tensor([0, 1, 2]), positions)
    assert torch.equal(first, TABLE[:3]), "row i answers tokens[i]"
    assert torch.equal(first, again), "the same tokens get the same logits, whatever was asked in between"


# --- task checkpoint ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_names_the_architecture_is_served(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, lab.ARCHITECTURE))
    assert tokens_of(llm, prompts_of([0])) == [[3, 1, 4, 2, 0, 3]], "LLM(directory) answers from the checkpoint's own table"
    other = tmp_path / "other"
    other.mkdir()
    moved = LLM(write_checkpoint(other, TABLE.roll(1, dims=1), lab.ARCHITECTURE))
    assert tokens_of(moved, prompts_of([0]))[0][0] == 4, "another directory has another table: read it from the checkpoint"


def test_a_table_that_does_not_fit_the_config_is_loud(lab: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5.*9"):
        lab.BigramModel.from_checkpoint({"vocab_size": 9}, {"table": TABLE})
    with pytest.raises(ValueError, match=r"4.*5"):
        lab.BigramModel.from_checkpoint({"vocab_size": 5}, {"table": TABLE[:, :4]})


# --- task generate -----------------------------------------------------------------------------------------------------


def test_greedy_generation_is_the_chain_worked_out_by_hand(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    llm = LLM(write_checkpoint(tmp_path, TABLE, lab.ARCHITECTURE))
    prompts = prompts_of([0], [4, 4, 0], [1], [0, 3, 2])
    assert tokens_of(llm, prompts) == [
        [3, 1, 4, 2, 0, 3],  # 0 -> 3 -> 1 -> 4 -> 2 -> 0 -> 3
        [3, 1, 4, 2, 0, 3],  # only the last token of a prompt counts, and it is 0 again
        [4, 2, 0, 3, 1, 4],
        [0, 3, 1, 4, 2, 0],
    ]


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
            raise AssertionError(f"the engine touched model.{name}; the contract is forward(tokens, positions) and nothing else")
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
    assert outputs == [[3, 1, 4, 2, 0, 3], [0, 3, 1, 4, 2, 0], [4, 2, 0, 3, 1, 4]], (
        "prefill in chunks, decodes, a full generate()"
    )
    assert touched == {"forward"}, "this is the whole width of the contract between an engine and a model"


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


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
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
    assert together == alone, (
        f"a request's tokens changed with chunks of up to {budget} tokens, blocks of {block_size}, {num_blocks} blocks, "
        f"{seats} at a time and its neighbours; the engine promises that they do not, for any model that keeps the contract"
    )


def test_tokens_survive_preemption(lab: ModuleType) -> None:
    model = lab.BigramModel(random_table(VOCAB))
    params = SamplingParams(max_tokens=9, seed=5)
    requests = [(0, [token] * 4, params) for token in range(4)]
    roomy, calm = serve(model, requests, block_size=2, num_blocks=64)
    cramped, preemptions = serve(model, requests, block_size=2, num_blocks=11)
    assert calm == 0
    assert preemptions > 0, "with 11 blocks of 2 tokens and four requests of up to 13, somebody has to give blocks up"
    assert cramped == roomy, "a request that lost its blocks and started over still says the same"


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
        assert best - second > 1e-3, "the test's own weights leave two tokens level; give random_weights another seed"
        tokens.append(int(plain_logits(weights, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    """A model's logits for every token of one request: (L,) to (L, V)."""
    length = len(tokens)
    context = ForwardContext(
        kv_cache=KVCache(length, 1),
        query_start=(0, length),
        lengths=(length,),
        block_tables=(tuple(range(length)),),
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
        assert tuple(found.shape) == tuple(expected.shape), "lm_head(hidden) is the answer: (R, V), here a row for every token"
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_is_served_in_chunks_blocks_and_company(lab: ModuleType, tmp_path: Path) -> None:
    lab.register()
    weights = random_weights()
    folder = write_tiny(tmp_path, weights, lab.TINY_ARCHITECTURE)
    llm = LLM(folder, block_size=BLOCK_SIZE, max_num_batched_tokens=6, num_blocks=32)
    assert tokens_of(llm, prompts_of(*PROMPTS), EIGHT) == [plain_tokens(weights, prompt) for prompt in PROMPTS], (
        "prompts that arrive in pieces, beside decodes of others, with a beginning that two of them share"
    )


def test_attention_takes_every_tensor_of_the_checkpoint_or_none(lab: ModuleType, tmp_path: Path) -> None:
    weights = random_weights()
    del weights["k_proj"]
    weights["up_proj"] = torch.zeros(64, 32)
    weights["v_proj.bias"] = torch.zeros(16)
    checkpoint = Checkpoint(write_tiny(tmp_path, weights, "WatchedTinyAttention"))
    with pytest.raises(LoadError) as refused:
        lab.TinyAttentionModel.from_checkpoint(TINY, checkpoint)
    assert sorted(fault.kind for fault in refused.value.faults) == ["partly covered", "truncated", "unexpected"], (
        "load_weights of mini_vllm/loading/loader.py reports all three faults: no k_proj, an up_proj too tall, a bias too many"
    )


# --- task free ---------------------------------------------------------------------------------------------------------

ABOUT_THEM = r"(?i)\b(tp|tp_\w+|\w*ranks?|world_size|distributed|all_reduce|all_gather|\w*shards?|int8|quant\w*|kernel|lora\w*)\b"


def test_the_model_has_no_line_about_them(lab: ModuleType, tmp_path: Path) -> None:
    """Whatever the file defines counts, so that nothing can hide in a helper."""
    lab.TinyAttentionModel.from_checkpoint(TINY, Checkpoint(write_tiny(tmp_path, random_weights(), "WatchedTinyAttention")))
    own = [thing for thing in vars(lab).values() if getattr(thing, "__module__", None) == lab.__name__]
    lines = [line for thing in own if hasattr(thing, "__qualname__") for line in inspect.getsource(thing).splitlines()]
    about = [line.strip() for line in lines if re.search(ABOUT_THEM, line)]
    assert "class TinyAttentionModel" in "\n".join(lines)
    assert not about, "the layers do all of it; take these lines out, and what they say with them"


def test_int8_is_the_model_with_rounded_weights(lab: ModuleType, tmp_path: Path) -> None:
    """127 steps to the largest weight of a row; nothing else may differ, and nothing may be left as it was."""
    weights = random_weights()
    rounded = dict(weights)
    for name in set(SHAPES) - {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}:
        scale = weights[name].abs().amax(dim=1, keepdim=True) / 127
        rounded[name] = (weights[name] / scale).round() * scale
    llm, model = serve_tiny(lab, write_tiny(tmp_path, weights, "WatchedTinyAttention"), quantization="int8")

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}
    assert len(linear) == 5, f"qkv_proj, o_proj, gate_up_proj, down_proj and lm_head are linear layers; yours are {list(linear)}"
    for name, layer in linear.items():
        assert layer.kernel is not None, f"{name} has no int8 kernel"
        assert layer.weight.numel() == 0, f"{name} still holds the weight that it was loaded into"
    found = logits_of(model, PROMPTS[0])
    torch.testing.assert_close(found, plain_logits(rounded, PROMPTS[0]), rtol=1e-4, atol=1e-4)
    assert float((found - plain_logits(weights, PROMPTS[0])).abs().max()) > 1e-3, "rounding must be seen, or nothing was rounded"
    assert tokens_of(llm, prompts_of(*PROMPTS), EIGHT) == [plain_tokens(rounded, prompt) for prompt in PROMPTS]


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
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert expected[0] != expected[1] != expected[2], "the adapters of this test change what is said"


SERVE = """
import json, sys
from pathlib import Path
from labkit.labs import load_implementation
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
    folder = write_tiny(tmp_path / "model", weights, lab.TINY_ARCHITECTURE)
    alone = tokens_of(LLM(folder, block_size=BLOCK_SIZE), prompts_of(*PROMPTS), EIGHT)
    (tmp_path / "serve.py").write_text(SERVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "serve.py"]
    command += [lab.__file__, folder, answers, json.dumps(prompts_of(*PROMPTS))]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = ranks.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        ranks.terminate()  # torchrun then ends the ranks that it has started
        ranks.communicate()
        pytest.fail("two ranks did not come to an end in 60 seconds: does one wait for a sum that the other never joins?")
    errors = [line for line in said.splitlines() if re.search(r"^\[rank\d\]: \w[\w.]*(Error|Exception): ", line)]
    assert ranks.returncode == 0, (
        f"{errors[0] if errors else said[-600:]}\nso two ranks cannot run the model; LLM(folder) under torchrun makes each "
        "rank's layers with its own share of heads, rows and columns, and forward has to take the counts from them"
    )
    together = json.loads(answers.read_text())
    assert together == alone, (
        "two ranks say something else than one; is a head count config.json's where it should be qkv_proj.num_heads, "
        "or a product not summed over the ranks, as RowParallelLinear does?"
    )
    assert together == [plain_tokens(weights, prompt) for prompt in PROMPTS]
