"""Records the loads that lab 02's tests use where vLLM is not installed, through the real vLLM.

Prints the tables of the lab's README from these recordings, and draws its figure from one. Run it in an environment that has the
pinned vLLM, and check the changes:

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

from recordings import RECORDINGS  # noqa: E402

from labkit.load.trace import EXAMPLE_TENSORS, Trace, print_trace, select, select_parameters_of  # noqa: E402
from labkit.load.trace.coverage import find_faults  # noqa: E402
from labkit.load.trace.picture import draw_svg  # noqa: E402
from labkit.system.errors import UserError  # noqa: E402


def main() -> int:
    """Writes one file for each recording, and removes files of other names; returns 1 if a load cannot be traced."""
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
        print(f"{stale.name}: removed, because no recording has this name")
    readme = LAB / "README.md"
    readme.write_text(with_tables(readme.read_text()))
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


def picture() -> str:
    """Draws the figure of the README: the parameters of the five example tensors on both ranks of TP 2."""
    trace = Trace.read(CAPTURED / "llama-3-8b-tp2.json")
    return draw_svg(select_parameters_of(trace, EXAMPLE_TENSORS), find_faults(trace))


def with_tables(text: str) -> str:
    """Replaces each block below a marker ``<!-- captured: NAME rank R -->`` by the table of that recording."""
    block = r"(<!-- captured: (\S+) rank (\d+) -->\n```text\n).*?(```)"
    return re.sub(block, lambda found: f"{found[1]}{_table(found[2], int(found[3]))}{found[4]}", text, flags=re.DOTALL)


def _table(name: str, rank: int) -> str:
    """The output of ``./lab trace`` for this recording and rank in 80 columns, without blanks at the ends of lines."""
    trace = select(Trace.read(CAPTURED / f"{name}.json"), EXAMPLE_TENSORS)
    printed = io.StringIO()
    print_trace(trace.of_rank(rank), Console(file=printed, width=80))
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


if __name__ == "__main__":
    sys.exit(main())
