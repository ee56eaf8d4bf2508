"""Two ranks with one core each against one rank with both cores, on the same prompts; reported, and no bar: see README.md.

    .venv/bin/python benchmarks/tensor_parallel.py [--rounds 3]

A Llama of 0.3 billion random weights in float32, written to a temporary directory for the run; greedy, prompts of 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from labkit.system.console import working

MODEL = {
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 4096,
    "vocab_size": 32000,
    "max_position_embeddings": 512,
}
WORKS = ((1, 64), (8, 64))
"""Requests, and tokens out of each."""

RANKS = {"1 rank, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}


def serve(folder: str, result: str) -> None:
    """One rank: tokens per second of each work, and the answers; rank 0 writes them."""
    from mini_vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="float32")
    choose = random.Random(0)
    found = []
    for requests, out in ((1, 4), *WORKS):
        prompts = [{"prompt_token_ids": [choose.randrange(MODEL["vocab_size"]) for _ in range(128)]} for _ in range(requests)]
        start = time.perf_counter()
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=out, ignore_eos=True))
        rate = requests * out / (time.perf_counter() - start)
        found.append((rate, [output.outputs[0].token_ids for output in outputs]))
    Path(result).write_text(json.dumps(found[1:]))


def run(ranks: int, threads: int, folder: Path) -> list[tuple[float, list[list[int]]]]:
    """What :func:`serve` wrote, of as many ranks with as many threads each."""
    with TemporaryDirectory() as own:
        result = Path(own, "result.json")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*torchrun, __file__, "--serve", str(folder), str(result)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{ranks} ranks failed, so there is nothing to compare:\n{done.stderr[-2000:]}")
        return json.loads(result.read_text())  # type: ignore[no-any-return]


def main() -> None:
    """Both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with TemporaryDirectory() as folder:
        with working("writing a random Llama"):
            from transformers import AutoConfig, AutoModelForCausalLM

            AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **MODEL)).save_pretrained(folder)
        found: dict[str, list[list[tuple[float, list[list[int]]]]]] = {name: [] for name in RANKS}
        for number in range(1, options.rounds + 1):
            for name, (ranks, threads) in RANKS.items():
                with working(f"round {number} of {options.rounds}: {name}"):
                    found[name].append(run(ranks, threads, Path(folder)))
    print()
    one, two = RANKS
    for work, (requests, out) in enumerate(WORKS):
        rates = {name: [round_[work][0] for round_ in rounds] for name, rounds in found.items()}
        same = all(a[work][1] == b[work][1] for a, b in zip(found[one], found[two], strict=True))
        for name, each in rates.items():
            print(f"{requests} x {out} out, {name:24}{median(each):8.1f} tokens/s ({min(each):.1f}..{max(each):.1f})")
        print(f"  ratio {median(rates[two]) / median(rates[one]):.2f}; the answers are {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
