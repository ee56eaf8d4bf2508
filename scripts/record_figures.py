"""Draws the figures of the labs' READMEs from runs of the engine and loads of the real vLLM.

python scripts/record_figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))

from figures.blocks import draw_blocks  # noqa: E402  # found only with the line above
from figures.chunked_prefill import draw_chunked_prefill  # noqa: E402
from figures.engine_run import record_run  # noqa: E402
from figures.load_path import draw_load_path, record_load_path  # noqa: E402
from figures.qkv_slices import draw_qkv_slices  # noqa: E402

from labkit.load.trace import Trace  # noqa: E402

LABS = ROOT / "labs"
CAPTURED = LABS / "lab-02-trace-weight-loading" / "captured"
SHOWN = ("llama-3-8b-tp1", "llama-3-8b-tp2", "llama-3-8b-one-layer-tp16")

FIGURES: dict[str, Callable[[], str]] = {
    "lab-01-add-a-toy-architecture/blocks.svg": lambda: draw_blocks(record_run()),
    "lab-01-add-a-toy-architecture/chunked-prefill.svg": lambda: draw_chunked_prefill(record_run()),
    "lab-03-weight-mapping/qkv-slices.svg": lambda: draw_qkv_slices([Trace.read(CAPTURED / f"{name}.json") for name in SHOWN]),
    "lab-02-trace-weight-loading/load-path.svg": lambda: draw_load_path(*record_load_path()),
}
"""Path under labs/ -> the function that draws the figure. The slices are drawn from lab 02's recordings."""


def main() -> None:
    """Draws every figure."""
    for place, draw in FIGURES.items():
        (LABS / place).write_text(draw(), encoding="utf-8")
        print(f"written: labs/{place}", flush=True)


if __name__ == "__main__":
    main()
