"""Lab 01, the spec: a model the engine has never heard of is served right, and the engine has touched nothing but forward."""

from __future__ import annotations

import json
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
