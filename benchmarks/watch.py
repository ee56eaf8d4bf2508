"""Times ./lab watch: from the end of a save to the line with the verdict, compared with a run of pytest.

    .venv/bin/python benchmarks/watch.py        # labs 01 and 03; or name one, and how many rounds

Each task that asks for code has one wrong answer, with which the tasks before it still pass. In each round the wrong answer is
saved again with another comment (verdict: failing), then the right one (verdict: passed). The verdict is the one on the task in
hand, whose tests run first; the other tests run after it. The baseline is ``pytest -x`` on the same wrong file, up to the first
failure. The board is timed too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.system.labs import ROOT, Lab, find_lab

ROUNDS = 5
BAR, BOARD_BAR = 0.4, 0.3

WRONG = {
    "01": {
        "forward": ("return self.table[tokens]", "return self.table[tokens - 1]"),
        "checkpoint": ("if table.shape != wanted:", "if False:"),
        "invariants": ("return self.table[tokens]", "return self.table[tokens if len(tokens) < 9 else tokens.roll(1)]"),
        "attention": ("apply_rotary(k, cos, sin), v", "k, v"),
        "free": ("self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads", "6, 2"),
    },
    "03": {
        "names": ('("gate_up_proj", "up_proj", 1)', '("gate_up_proj", "up_proj", 0)'),
        "slices": ("(heads + kv_heads, kv_heads, tp_rank // replicas)", "(heads + kv_heads, kv_heads, tp_rank)"),
        "loud": ("if loaded.shape != wanted:", "if False:"),
        "load": ("missing.remove(target)", "pass"),
    },
}
"""task -> (text of the solution, its replacement). generate and contract of lab 01 and theorem of lab 03 ask for no code."""


class Watched:
    """./lab watch on a file, in a pipe."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self.file = file
        command = [sys.executable, "-P", "-m", "labkit", "watch", lab.number, "--impl", str(file)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines: Iterator[str] = iter(self.process.stdout)
        self.wait_for("points;")

    def wait_for(self, *words: str) -> str:
        """The next line with one of the words."""
        return next(line for line in self.lines if any(word in line for word in words))

    def choose_task(self, text: str) -> None:
        """Saves without measuring: after this run, the task that fails is the one in hand."""
        self.file.write_text(text, encoding="utf-8")
        self.wait_for("points;")

    def save(self, text: str, *words: str) -> float:
        """Seconds from the end of the save to the line with one of the words; returns after the whole run."""
        self.file.write_text(text, encoding="utf-8")
        saved = time.perf_counter()
        self.wait_for(*words)
        took = time.perf_counter() - saved
        self.wait_for("points;")
        return took


def measure(lab: Lab, rounds: int) -> None:
    """Prints a line for each task and kind of verdict, and the medians of the lab."""
    right = (lab.folder / "solution.py").read_text(encoding="utf-8")
    watched_all, ratios = [], []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "mine.py"
        file.write_text(right, encoding="utf-8")
        watched = Watched(lab, file)
        for task, (old, new) in WRONG[lab.number].items():
            assert old in right
            wrong = right.replace(old, new)
            failing, passing, cold = [], [], []
            for round_ in range(rounds):
                watched.choose_task(f"{wrong}# {round_}\n")
                failing.append(watched.save(f"{wrong}# {round_} again\n", f"{task}: failing"))
                cold.append(cold_pytest(lab, file))
                passing.append(watched.save(right, f"{task}: passed"))
            watched_all += failing + passing
            ratios += [one / other for one, other in zip(failing, cold, strict=True)]
            line = f"failing {spread(failing)}  passed {spread(passing)}  pytest -x {spread(cold)}"
            print(f"{lab.number} {task:11} {line}", flush=True)
        watched.process.terminate()
        watched.process.wait()
    median = statistics.median(watched_all)
    kept = "kept" if median < BAR else "missed"
    print(f"{lab.number} from save to verdict, all saves: {spread(watched_all)}, bar {BAR} s: {kept}")
    print(f"{lab.number} watch / pytest -x: {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})", flush=True)


def cold_pytest(lab: Lab, file: Path) -> float:
    """Seconds of a run of pytest that stops at the first failure."""
    command = [sys.executable, "-P", "-m", "pytest", str(lab.tests), "-x", "-q", "-p", "no:cacheprovider"]
    started = time.perf_counter()
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"LAB_IMPL": str(file)}, capture_output=True, check=False)
    if ran.returncode != 1:
        sys.exit(f"{file} should fail:\n{ran.stdout.decode()[-2000:]}")
    return time.perf_counter() - started


def board() -> None:
    """Prints the time of ./lab."""
    took = []
    for _ in range(11):
        started = time.perf_counter()
        subprocess.run([ROOT / "lab"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        took.append(time.perf_counter() - started)
    print(
        f"the board: {spread(took)}, bar {BOARD_BAR} s: {'kept' if statistics.median(took) < BOARD_BAR else 'missed'}", flush=True
    )


def spread(seconds: list[float]) -> str:
    """``"0.21 s (0.20..0.25)"``: the median, the least and the most."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f})"


if __name__ == "__main__":
    board()
    for number in [sys.argv[1]] if len(sys.argv) > 1 else ["01", "03"]:
        measure(find_lab(number), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)
