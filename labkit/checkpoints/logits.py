"""Compares the log-probabilities that two checkpoints compute for the same prompts; mini_vllm serves both in float32.

The comparison finds faults that change no shape: k swapped with v, permuted rows, a rounded tensor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.checkpoints.known_models import read_config
from labkit.system.errors import UserError

PROMPTS, LENGTH, ANSWER = 8, 32, 16
"""The number of prompts, the tokens of each, and the tokens generated after each."""

ROUNDING = 1e-4
"""The largest difference due to rounding, relative to the spread (standard deviation) of the reference's log-probabilities.

The bound is relative: float32 rounds in proportion, and if all tokens are about equally likely, a fault changes them less.
Measured with these prompts, the largest difference relative to the spread:

                                                                  SmolLM2-135M    lab 02's tiny Llama
    the same again, or with two threads                           0               0
    in chunks of 1 to 16 tokens: float32 adds in another order    1.5e-5          2e-5
    one tensor off by up to 2 ** -12, as float16 rounds           7e-4            9e-4
    one tensor off by up to 2 ** -9, as bfloat16 rounds           4e-3
    served in bfloat16                                            0.25

The bound is five times the largest effect of arithmetic, and a seventh of the smallest effect of changed weights. So a checkpoint
stored in a shorter element type counts as different; the size of the difference distinguishes it from a fault.
"""

Answer = list[tuple[int, float]]
"""Pairs of a token id and the natural logarithm of the probability that the model gave to it."""


@dataclass(frozen=True)
class Difference:
    """The difference between two checkpoints.

    Attributes:
        largest: the largest absolute difference between the two log-probabilities of a prompt token; NaN if either is NaN.
        prompt, position: the indices of the prompt and of the prompt's token that have the largest difference, from 0.
        spread: the standard deviation of the reference's log-probabilities.
        first_differing: for each prompt, the index of the first token at which the two greedy answers differ; None if they agree.
    """

    largest: float
    prompt: int
    position: int
    spread: float
    first_differing: tuple[int | None, ...]

    @property
    def rounding(self) -> float:
        """The largest difference that rounding in float32 explains: ROUNDING times ``spread``."""
        return ROUNDING * self.spread

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the largest difference."""
        return self.largest <= self.rounding


def compare(directory: Path, reference: Path) -> Difference:
    """Serves both checkpoints with the same prompts, random token ids from a fixed seed; returns the difference of outputs.

    Raises UserError if architectures or vocabulary sizes differ, or a checkpoint cannot be served (with mini_vllm's message).
    """
    mine, other = read_config(directory), read_config(reference)
    for folder, config in ((directory, mine), (reference, other)):
        if type(config.get("vocab_size")) is not int or config["vocab_size"] < 1:
            raise UserError(f"{folder / 'config.json'} does not say vocab_size, a whole number from 1 up; fetch it again")
    for key in ("architectures", "vocab_size"):
        if mine.get(key) != other.get(key):
            raise UserError(
                f"{key} is {mine.get(key)} in {directory} and {other.get(key)} in {reference}; "
                "their log-probabilities cannot be compared, give two copies of one model"
            )
    return _difference(_serve(directory, mine["vocab_size"]), _serve(reference, other["vocab_size"]))


def report_lines(found: Difference) -> Iterator[str]:
    """Yields lines that describe the difference and say whether rounding explains it."""
    yield f"{PROMPTS} prompts of {LENGTH} random token ids, both served by mini_vllm in float32"
    where = f", at token {found.position} of prompt {found.prompt}" if found.largest else ""
    yield f"largest difference of log-probabilities: {found.largest:.2g}{where}"
    differing = [(place, prompt) for prompt, place in enumerate(found.first_differing) if place is not None]
    first = f", first at token {min(differing)[0]} of prompt {min(differing)[1]}'s" if differing else ""
    yield f"greedy answers of {ANSWER} tokens that differ: {len(differing)} of {len(found.first_differing)}{first}"
    yield f"{'the same' if found.is_rounding else 'not the same'}: rounding in float32 accounts for {found.rounding:.1g}"


def _serve(directory: Path, vocabulary: int) -> list[tuple[Answer, Answer]]:
    """For each prompt, two Answers: the prompt's tokens except the first, and the tokens generated greedily."""
    from mini_vllm import LLM, RequestError, SamplingParams
    from mini_vllm.loading.checkpoint import CheckpointError

    generator = random.Random(0)
    prompts = [{"prompt_token_ids": [generator.randrange(vocabulary) for _ in range(LENGTH)]} for _ in range(PROMPTS)]
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
    differences = [
        (abs(a - b), prompt, position)
        for prompt, ((one, _), (two, _)) in enumerate(zip(mine, other, strict=True))
        for position, ((_, a), (_, b)) in enumerate(zip(one, two, strict=True), start=1)
    ]
    largest = next((each for each in differences if math.isnan(each[0])), None) or max(differences)
    first_differing = tuple(
        next((place for place, (a, b) in enumerate(zip(one, two, strict=True)) if a[0] != b[0]), None)
        for (_, one), (_, two) in zip(mine, other, strict=True)
    )
    logprobs = [logprob for prompt, _ in other for _, logprob in prompt]
    mean = sum(logprobs) / len(logprobs)
    spread = math.sqrt(sum((logprob - mean) ** 2 for logprob in logprobs) / len(logprobs))
    return Difference(*largest, spread, first_differing)
