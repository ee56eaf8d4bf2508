"""Times ./lab check, ./lab trace and ./lab tour, each as a ratio to a baseline.

    .venv/bin/python benchmarks/commands.py                  all of them
    .venv/bin/python benchmarks/commands.py check [ROUNDS]   ./lab check on labs 01 and 03 against plain pytest on the same file

Tracing and the tour need the vLLM part and the SmolLM2 checkpoint: run ``./lab tour`` once before. Check and pytest alternate,
and the median counts. Of the other commands the fastest of three runs counts: other work on the machine has disturbed it least.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.system.labs import ROOT, Lab, find_lab

RUNS = 3
ROUNDS = 7
CHECK_BAR = 1.3


@dataclass(frozen=True)
class Run:
    """The cost of one command.

    Attributes:
        seconds: wall-clock time.
        gigabytes: its peak resident memory (the largest of its processes), in 10^9 bytes.
    """

    seconds: float
    gigabytes: float


def run(command: list[str], **environment: str) -> Run:
    """Runs a command and measures it.

    Raises:
        SystemExit: the command failed; its last lines are shown.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}, so there is nothing to compare:\n{output[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.perf_counter() - start, usage.ru_maxrss * unit / 1e9)


def compare_check(lab: Lab, rounds: int) -> None:
    """Prints the times of ./lab check and of pytest on the same file, and the median of their ratios."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "mine.py"
        shutil.copy(lab.implementation("solution"), file)
        check = [str(ROOT / "lab"), "check", lab.number, "--impl", str(file)]
        pytest = [sys.executable, "-P", "-m", "pytest", str(lab.tests), "-q", "-p", "no:cacheprovider"]
        run(check)  # compiles what is not compiled yet
        times = [(run(check).seconds, run(pytest, LAB_IMPL=str(file)).seconds) for _ in range(rounds)]
    checks, pytests = map(list, zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    kept = "kept" if ratio <= CHECK_BAR else "missed"
    print(f"lab {lab.number}: ./lab check {spread(checks)}, pytest {spread(pytests)}")
    print(f"lab {lab.number}: ./lab check / pytest {ratio:.2f}, bar {CHECK_BAR}: {kept}", flush=True)


def spread(seconds: list[float]) -> str:
    """``"0.21 s (0.20..0.25)"``: the median, the least and the most."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f})"


def fastest(name: str, arguments: list[str]) -> Run:
    """The fastest of ``RUNS`` runs of this Python with these arguments, printed."""
    best = min((run([sys.executable, *arguments]) for _ in range(RUNS)), key=lambda one: one.seconds)
    print(f"{best.seconds:8.2f} s  {best.gigabytes:5.2f} GB  {name}", flush=True)
    return best


def compare_trace_and_tour() -> None:
    """Prints the times of ./lab trace and ./lab tour, and their ratios."""
    vllm = fastest("import vLLM's Llama class", ["-c", "from vllm.model_executor.models.llama import LlamaForCausalLM"])
    with TemporaryDirectory() as folder:
        arguments = ["-P", "-m", "labkit", "trace", "llama-3-8b", "--json", str(Path(folder, "trace.json"))]
        tracing = fastest("./lab trace llama-3-8b, 291 tensors", arguments)
    tour = fastest("./lab tour", ["-P", "-m", "labkit", "tour"])
    print()
    print(f"tracing / import of vLLM    {tracing.seconds / vllm.seconds:5.2f}  (bar 1.30)")
    print(f"tracing, memory             {tracing.gigabytes:5.2f}  (bar 1.00 GB)")
    print(f"tour / two minutes          {tour.seconds / 120:5.2f}  (bar 1.00)")


if __name__ == "__main__":
    for number in ("01", "03"):
        compare_check(find_lab(number), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)
    if sys.argv[1:2] != ["check"]:
        compare_trace_and_tour()
