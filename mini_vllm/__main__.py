"""Command line of the engine; torchrun may start it (README.md, "Tensor parallelism")."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mini_vllm.llm import LLM, RequestError
from mini_vllm.loading.checkpoint import CheckpointError
from mini_vllm.lora import LoRARequest
from mini_vllm.parallel import RankLostError
from mini_vllm.sampling_params import SamplingParams

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """A small real LLM engine. Started by torchrun, several processes share the model (tensor parallelism)."""


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A directory with config.json, safetensors and tokenizer.json.")],
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue; - reads them from standard input, one a line.")],
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="auto (config.json's), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU.")] = "cpu",
    quantization: Annotated[str | None, typer.Option(help="int8 or int4: weights in 8 or 4 bits.")] = None,
    lora: Annotated[Path | None, typer.Option(help="A LoRA adapter for all prompts, a directory that peft wrote.")] = None,
) -> None:
    """Answers prompts in one batch; prints each prompt with its answer."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        if not rank:
            print(f"loading {model}{f' on {size} ranks' if size > 1 else ''} ...", file=sys.stderr)
        llm = LLM(model, dtype=dtype, device=device, quantization=quantization)
        print(f"weights: {llm.weight_bytes / 1e6:.0f} MB{' on rank 0' if size > 1 else ''}", file=sys.stderr)
        texts = [line.rstrip("\n") for line in sys.stdin] if prompts == ["-"] else prompts
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
        lora_request = LoRARequest(lora.name, 1, str(lora)) if lora else None
        for text, output in zip(texts, llm.generate(texts, params, lora_request), strict=True):
            print(f"{text}{output.outputs[0].text}")
    except (CheckpointError, RequestError, RankLostError, ValueError) as problem:
        sys.exit(f"mini_vllm{f', rank {rank}' if size > 1 else ''}: {problem}")


if __name__ == "__main__":
    app()
