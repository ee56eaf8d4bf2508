"""Whether two checkpoints compute the same: both served by mini_vllm in float32, their log-probabilities compared.

What no shape and no trace can show, values show: k swapped with v, rows permuted, a tensor rounded.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from labkit.system.errors import UserError

PROMPTS, LENGTH, ANSWER = 8, 32, 16
"""How many prompts, how many tokens in each, and how many are generated after it."""

ROUNDING = 1e-4
"""The largest difference that is rounding, as a share of the spread (standard deviation) of the reference's log-probabilities.

A share, because float32 rounds in proportion: a model whose answers hardly differ in likelihood differs less when it is wrong,
too. Measured with these prompts, the largest difference as a share of the spread:

                                                                  SmolLM2-135M    lab 02's tiny Llama
    the same again, or with two threads                           0               0
    in chunks of 1 to 16 tokens: float32 adds in another order    1.5e-5          2e-5
    one tensor off by up to 2 ** -12, as float16 rounds           7e-4            9e-4
    one tensor off by up to 2 ** -9, as bfloat16 rounds           4e-3
    served in bfloat16                                            0.25

The bound lies five times above what arithmetic does, and seven times below the least that a change of the weights does. So a
checkpoint that was stored anew in a shorter element type is *not* the same; the size of the difference tells it from a fault.
"""

Answer = list[tuple[int, float]]
"""Token ids with the logarithm of the probability that the model gave to each."""


@dataclass(frozen=True)
class Difference:
    """How far two checkpoints are from each other.

    Attributes:
        largest: the largest difference of the log-probabilities of one prompt token, natural logarithm; NaN if one is.
        prompt, position: the token it was found at; ``position`` counts within the prompt, from 0.
        spread: the standard deviation of the reference's log-probabilities, by which the difference is measured.
        parted: of each prompt, the place in the greedy answer where the two first choose another token; None where they agree.
    """

    largest: float
    prompt: int
    position: int
    spread: float
    parted: tuple[int | None, ...]

    @property
    def rounding(self) -> float:
        """The largest difference that float32 accounts for."""
        return ROUNDING * self.spread

    @property
    def is_rounding(self) -> bool:
        """Whether the two compute the same, but for rounding."""
        return self.largest <= self.rounding


def compare(directory: Path, reference: Path) -> Difference:
    """Serves both on the same prompts, one after the other: random token ids from a fixed seed.

    Raises:
        UserError: two architectures or vocabularies, or one of them cannot be served; in mini_vllm's words.
    """
    mine, other = _config(directory), _config(reference)
    for key in ("architectures", "vocab_size"):
        if mine.get(key) != other.get(key):
            raise UserError(
                f"{key} is {mine.get(key)} in {directory} and {other.get(key)} in {reference}; "
                "their log-probabilities do not belong together, compare two copies of one model"
            )
    return _difference(_served(directory, mine), _served(reference, other))


def show(difference: Difference, console: Console) -> None:
    """Prints what was found, and what it means."""
    found, words = difference, []
    words.append(f"{PROMPTS} prompts of {LENGTH} random token ids, both served by mini_vllm in float32")
    words.append(
        f"largest difference of log-probabilities: {found.largest:.2g}, at token {found.position} of prompt {found.prompt}"
        if found.largest
        else "largest difference of log-probabilities: 0"
    )
    parted = [(place, prompt) for prompt, place in enumerate(found.parted) if place is not None]
    first = f", first at token {min(parted)[0]} of prompt {min(parted)[1]}'s" if parted else ""
    words.append(f"greedy answers of {ANSWER} tokens that part: {len(parted)} of {len(found.parted)}{first}")
    words.append(
        f"the same: rounding in float32 accounts for {found.rounding:.1g}"
        if found.is_rounding
        else f"not the same: rounding in float32 accounts for {found.rounding:.1g}"
    )
    for line in words:
        console.print(line, markup=False, soft_wrap=True)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a directory with config.json and safetensors") from error
    if not isinstance(config, dict) or type(config.get("vocab_size")) is not int or config["vocab_size"] < 1:
        raise UserError(f"{path} does not say vocab_size, a whole number from 1 up; fetch it again")
    return config


def _served(directory: Path, config: dict[str, Any]) -> list[tuple[Answer, Answer]]:
    """Of every prompt its own tokens but the first, and the greedy answer."""
    from mini_vllm import LLM, RequestError, SamplingParams
    from mini_vllm.loading.checkpoint import CheckpointError

    draw = random.Random(0)
    prompts = [{"prompt_token_ids": [draw.randrange(config["vocab_size"]) for _ in range(LENGTH)]} for _ in range(PROMPTS)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, logprobs=0, prompt_logprobs=0, detokenize=False)
    try:
        llm = LLM(directory, dtype="float32", max_model_len=LENGTH + ANSWER, num_blocks=64)
        outputs = llm.generate(prompts, params)
    except (CheckpointError, RequestError, ValueError) as error:
        raise UserError(f"{directory} cannot be served: {error}") from error
    answers = []
    for output in outputs:
        prompt = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)  # type: ignore[index]
        greedy = zip(output.outputs[0].token_ids, output.outputs[0].logprobs or [], strict=True)
        pair = [[(token, held[token].logprob) for token, held in part if held] for part in (prompt, greedy)]
        answers.append((pair[0], pair[1]))
    return answers


def _difference(mine: list[tuple[Answer, Answer]], other: list[tuple[Answer, Answer]]) -> Difference:
    apart = [
        (abs(a - b), prompt, position)
        for prompt, ((one, _), (two, _)) in enumerate(zip(mine, other, strict=True))
        for position, ((_, a), (_, b)) in enumerate(zip(one, two, strict=True), start=1)
    ]
    largest = next((each for each in apart if math.isnan(each[0])), None) or max(apart)
    parted = tuple(
        next((place for place, (a, b) in enumerate(zip(one, two, strict=True)) if a[0] != b[0]), None)
        for (_, one), (_, two) in zip(mine, other, strict=True)
    )
    logprobs = [logprob for prompt, _ in other for _, logprob in prompt]
    mean = sum(logprobs) / len(logprobs)
    spread = math.sqrt(sum((logprob - mean) ** 2 for logprob in logprobs) / len(logprobs))
    return Difference(*largest, spread, parted)
