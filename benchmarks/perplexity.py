"""What rounding the weights costs: perplexity of a text in fp32, int8 and int4, and the bytes that the weights take.

    .venv/bin/python benchmarks/perplexity.py [TEXT ...]

SmolLM2-135M-Instruct, through the engine's own prompt_logprobs; the text is LICENSE and the labs' READMEs unless files are named.
README.md has what was measured, and why this checkpoint flatters int4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.fetch import FetchError, fetch_smollm2
from mini_vllm import LLM, SamplingParams
from mini_vllm.layers.quantization import weight_bytes
from mini_vllm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (ROOT / "LICENSE", *sorted((ROOT / "labs").glob("*/README.md")))

WINDOW = 512
"""Tokens that the model sees at once; each window starts anew, and its first token is not predicted."""

BARS = {"fp32": 1.0, "int8": 1.005, "int4": 1.05}
"""The most that the perplexity may be, in that of fp32."""


@dataclass(frozen=True)
class Measured:
    """One way to keep the weights.

    Attributes:
        perplexity: exp of the mean negative log probability of a token.
        weights: bytes held for them.
    """

    perplexity: float
    weights: int


def tokenized(folder: Path, texts: Sequence[Path]) -> list[int]:
    """The texts' tokens, end to end."""
    tokenizer = Tokenizer.find(folder)
    if tokenizer is None:
        sys.exit(f"{folder} has no tokenizer.json; fetch the checkpoint again")
    return [token for text in texts for token in tokenizer.encode(text.read_text(encoding="utf-8"))]


def measure(folder: Path, tokens: Sequence[int], quantization: str | dict[str, Any] | None) -> Measured:
    """The perplexity of a text of at least two tokens, in windows of WINDOW."""
    llm = LLM(folder, dtype="float32", quantization=quantization, max_model_len=WINDOW + 1)
    windows = [list(tokens[start : start + WINDOW]) for start in range(0, len(tokens), WINDOW)]
    prompts = [{"prompt_token_ids": window} for window in windows if len(window) > 1]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    logprobs = [
        at[token].logprob
        for output in outputs
        for at, token in zip(output.prompt_logprobs or (), output.prompt_token_ids, strict=True)
        if at is not None
    ]
    return Measured(math.exp(-sum(logprobs) / len(logprobs)), weight_bytes(llm.llm_engine.runner.model))


def main() -> None:
    """Measures the three, one after the other, and prints a table."""
    texts = [Path(name) for name in sys.argv[1:]] or TEXTS
    try:
        folder = fetch_smollm2()
    except FetchError as error:
        sys.exit(f"nothing to measure: {error}")
    tokens = tokenized(folder, texts)
    names = ", ".join(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in texts)
    print(f"{len(tokens)} tokens of {names}; windows of {WINDOW}\n")
    print(f"{'weights':10}{'perplexity':>12}{'to fp32':>10}{'at most':>10}{'held, MB':>12}")
    reference = None
    for name, bar in BARS.items():
        found = measure(folder, tokens, None if name == "fp32" else name)
        reference = reference or found
        ratio = found.perplexity / reference.perplexity
        verdict = "kept" if ratio <= bar else "MISSED"
        print(f"{name:10}{found.perplexity:12.3f}{ratio:10.4f}{bar:10.3f}{found.weights / 1e6:12.1f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
