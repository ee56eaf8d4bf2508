"""Records every load that lab 02's tests are held against where vLLM is not installed, through the real vLLM.

Run it in an environment that has the pinned vLLM, and look at what git says has changed:

    python scripts/record_captured.py
    git diff --stat labs/lab-02-trace-weight-loading/captured
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAPTURED = ROOT / "labs" / "lab-02-trace-weight-loading" / "captured"

sys.path.insert(0, str(ROOT))

from labkit.trace import TraceError  # noqa: E402  # found only with the line above
from labkit.trace.recordings import RECORDINGS  # noqa: E402


def main() -> int:
    """Writes one file for each recording and takes away those that are none any more; 1 if a load cannot be traced."""
    CAPTURED.mkdir(exist_ok=True)
    for name, load in RECORDINGS.items():
        try:
            trace = load.run(device="cpu")
        except TraceError as error:
            print(f"{name}: {error}")
            return 1
        trace.write(CAPTURED / f"{name}.json")
        print(f"{name}: {len(trace.records)} records, {load.title}", flush=True)
    for stale in {path for path in CAPTURED.glob("*.json") if path.stem not in RECORDINGS}:
        stale.unlink()
        print(f"{stale.name}: removed, no recording has this name")
    return 0


if __name__ == "__main__":
    sys.exit(main())
