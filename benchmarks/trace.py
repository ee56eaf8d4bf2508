"""Measures the time to trace a load of Llama-3-8B, compared with the import of vLLM's Llama class (the baseline).

    .venv/bin/python benchmarks/trace.py [ROUNDS]

All 32 layers on the meta device. Each run is a new process, alternating with the import. Prints medians and spreads.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRACE = "from labkit.load.trace import trace_load; trace_load('llama-3-8b', {tp}, range({ranks}))"
PROGRAMS = {
    "import of vLLM's Llama class": "from vllm.model_executor.models.llama import LlamaForCausalLM",
    "trace, TP 8, rank 0": TRACE.format(tp=8, ranks=1),
    "trace, TP 8, all 8 ranks": TRACE.format(tp=8, ranks=8),
    "trace, TP 1": TRACE.format(tp=1, ranks=1),
}


def run(program: str) -> tuple[float, float]:
    """Seconds and peak gigabytes (10^9 bytes) of one process."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{program!r} exited with {process.returncode}, so there is nothing to compare")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Measures, then prints medians, spreads, and each ratio with its limit."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    run(PROGRAMS["trace, TP 1"])  # brings the files into the page cache
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            taken[name].append(run(program))
    seconds = {name: [one[0] for one in runs] for name, runs in taken.items()}
    for name, runs in taken.items():
        least, median, most = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
        print(f"{median:7.2f} s ({least:.2f}..{most:.2f})  {max(one[1] for one in runs):5.2f} GB  {name}")
    imported, one, eight, alone = (statistics.median(runs) for runs in seconds.values())
    ratios = sorted(
        trace / base for trace, base in zip(seconds["trace, TP 1"], seconds["import of vLLM's Llama class"], strict=True)
    )
    print()
    print(f"one rank / import     {alone / imported:5.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})   (bar 1.15)")
    print(f"8 ranks less 1 rank   {eight - one:5.2f} s              (bar 1.00)")
    print(f"memory, all ranks     {max(each[1] for each in taken['trace, TP 8, all 8 ranks']):5.2f} GB             (bar 0.70)")


if __name__ == "__main__":
    main()
