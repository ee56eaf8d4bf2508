"""Records the loads that lab 02's tests compare with if vLLM is not installed, from the real vLLM.

The tables in the lab's README and its figure are made from these recordings. Run it in an environment with the pinned vLLM, then
look at the changes:

    python scripts/record_captured.py
    git diff --stat labs/lab-02-trace-weight-loading
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / "labs" / "lab-02-trace-weight-loading"
CAPTURED = LAB / "captured"
PICTURE = LAB / "load-tp2.svg"

sys.path.insert(0, str(ROOT))

from labkit.load.trace import FIVE, Trace, around, select, show  # noqa: E402
from labkit.load.trace.coverage import verify  # noqa: E402
from labkit.load.trace.page import svg  # noqa: E402
from labkit.load.trace.recordings import RECORDINGS  # noqa: E402
from labkit.system.errors import UserError  # noqa: E402


def main() -> int:
    """Writes one file for each recording and deletes obsolete ones; returns 1 if a load cannot be traced."""
    CAPTURED.mkdir(exist_ok=True)
    for name, load in RECORDINGS.items():
        try:
            trace = load.run(device="cpu")
        except UserError as error:
            print(f"{name}: {error}")
            return 1
        trace.write(CAPTURED / f"{name}.json")
        print(f"{name}: {len(trace.records)} records, {load.title}", flush=True)
    for stale in {path for path in CAPTURED.glob("*.json") if path.stem not in RECORDINGS}:
        stale.unlink()
        print(f"{stale.name}: removed, no recording has this name")
    readme = LAB / "README.md"
    readme.write_text(with_tables(readme.read_text()))
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


def picture() -> str:
    """Draws the figure of the README: the parameters of the five tensors on both ranks of TP 2."""
    trace = Trace.read(CAPTURED / "llama-3-8b-tp2.json")
    return svg(around(trace, FIVE), verify(trace))


def with_tables(text: str) -> str:
    """Replaces each block below a marker ``<!-- captured: NAME rank R -->`` by the table of that recording."""
    block = r"(<!-- captured: (\S+) rank (\d+) -->\n```text\n).*?(```)"
    return re.sub(block, lambda found: f"{found[1]}{_table(found[2], int(found[3]))}{found[4]}", text, flags=re.DOTALL)


def _table(name: str, rank: int) -> str:
    """Returns the output of ``./lab trace`` for a recording and rank in 80 columns, without trailing spaces."""
    trace = select(Trace.read(CAPTURED / f"{name}.json"), FIVE)
    printed = io.StringIO()
    show(trace.of_rank(rank), Console(file=printed, width=80))
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


if __name__ == "__main__":
    sys.exit(main())
