"""How long the three ways in take, each beside what nobody can do without, as ratios.

    .venv/bin/python benchmarks/spine.py

It needs the vLLM part and the SmolLM2 checkpoint, so run ``./lab tour`` once before. Each command is run three times in a process
of its own and its fastest run counts: on a machine that does other things as well, that is the one least disturbed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
RUNS = 3


@dataclass(frozen=True)
class Run:
    """What one command took.

    Attributes:
        seconds: wall-clock time.
        gigabytes: its peak resident memory (the largest of its processes), in 10^9 bytes.
    """

    seconds: float
    gigabytes: float


def run(arguments: list[str]) -> Run:
    """Runs this Python with ``arguments`` and measures it.

    Raises:
        SystemExit: the command failed; its last lines are shown.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} exited with {process.returncode}, so there is nothing to compare:\n{said[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.perf_counter() - start, usage.ru_maxrss * unit / 1e9)


def fastest(name: str, arguments: list[str]) -> Run:
    """The fastest of ``RUNS`` runs, printed."""
    best = min((run(arguments) for _ in range(RUNS)), key=lambda one: one.seconds)
    print(f"{best.seconds:8.2f} s  {best.gigabytes:5.2f} GB  {name}", flush=True)
    return best


def main() -> None:
    """Measures, then prints each ratio beside its bar."""
    torch = fastest("import torch", ["-c", "import torch"])
    grading = fastest("./lab check 01", ["-P", "-m", "labkit", "check", "01"])
    vllm = fastest("import vLLM's Llama class", ["-c", "from vllm.model_executor.models.llama import LlamaForCausalLM"])
    with TemporaryDirectory() as folder:
        arguments = ["-P", "-m", "labkit", "trace", "llama-3-8b", "--json", str(Path(folder, "trace.json"))]
        tracing = fastest("./lab trace llama-3-8b, 291 tensors", arguments)
    tour = fastest("./lab tour", ["-P", "-m", "labkit", "tour"])
    print()
    print(f"grading / import of torch   {(grading.seconds - 1) / torch.seconds:5.2f}  (bar 1.50, after one second is taken off)")
    print(f"tracing / import of vLLM    {tracing.seconds / vllm.seconds:5.2f}  (bar 1.30)")
    print(f"tracing, memory             {tracing.gigabytes:5.2f}  (bar 1.00 GB)")
    print(f"tour / two minutes          {tour.seconds / 120:5.2f}  (bar 1.00)")


if __name__ == "__main__":
    main()
