"""What rounding the weights costs: perplexity of a text in fp32, int8 and int4, and the bytes that the weights take.

    .venv/bin/python benchmarks/perplexity.py [TEXT ...]

SmolLM2-135M-Instruct, one prefill for each window of the text; the text is LICENSE and the labs' READMEs unless files are named.
README.md has what was measured, and why this checkpoint flatters int4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from labkit.checkpoints.fetch import fetch_smollm2
from labkit.system.errors import UserError
from mini_vllm.build import build_engine
from mini_vllm.contract import Model
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
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
    engine, *_ = build_engine(folder, dtype="float32", quantization=quantization)
    model = engine.runner.model
    windows = [torch.tensor(tokens[start : start + WINDOW]) for start in range(0, len(tokens), WINDOW)]
    with torch.inference_mode():
        losses = [cross_entropy(logits(model, window), window[1:], reduction="sum").item() for window in windows]
    return Measured(math.exp(sum(losses) / (len(tokens) - len(windows))), weight_bytes(model))


def logits(model: Model, window: Tensor) -> Tensor:
    """(T,) to (T - 1, V): of every token but the last, in one prefill. Through prompt_logprobs the same takes several times
    as long, since each row is turned into a dictionary."""
    positions = torch.arange(len(window))
    context = ForwardContext(
        kv_cache=KVCache(num_blocks=1, block_size=WINDOW),
        query_start=(0, len(window)),
        lengths=(len(window),),
        block_tables=((0,),),
        write_slots=positions,
        logits_indices=positions[:-1],
    )
    with set_forward_context(context):
        return model.forward(window, positions)


def main() -> None:
    """Measures the three, one after the other, and prints a table."""
    texts = [Path(name) for name in sys.argv[1:]] or TEXTS
    try:
        folder = fetch_smollm2()
    except UserError as error:
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
