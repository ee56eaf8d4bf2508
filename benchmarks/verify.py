"""Measures the time to verify Llama-3-8B at TP 1, 2, 4 and 8 (15 ranks of shapes), relative to the import of vLLM's Llama class.

    .venv/bin/python benchmarks/verify.py [ROUNDS]

Each run is a new process, alternating with the import. Prints medians of the rounds and spreads.
"""

from __future__ import annotations

import statistics
import sys
from trace import PROGRAMS, run

IMPORT = PROGRAMS["import of vLLM's Llama class"]
VERIFY = "from labkit.load.verify import verify_model; assert verify_model('llama-3-8b', (1, 2, 4, 8)).status == 0"


def main() -> None:
    """Measures, then prints medians, spreads, and the ratio with its limit."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    run(VERIFY)  # brings the files into the page cache
    pairs = [(run(IMPORT), run(VERIFY)) for _ in range(rounds)]
    for name, runs in zip(("import of vLLM's Llama class", "verify, TP 1, 2, 4, 8"), zip(*pairs, strict=True), strict=True):
        seconds = [each[0] for each in runs]
        most = max(each[1] for each in runs)
        print(f"{statistics.median(seconds):7.2f} s ({min(seconds):.2f}..{max(seconds):.2f})  {most:5.2f} GB  {name}")
    ratios = sorted(verify[0] / imported[0] for imported, verify in pairs)
    print(f"\nverify / import   {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})   (bar 1.30)")


if __name__ == "__main__":
    main()
