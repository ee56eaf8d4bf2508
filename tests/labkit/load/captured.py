"""Recorded loads of lab 02, for tests of the trace that need no vLLM."""

from __future__ import annotations

from pathlib import Path

from labkit.load.trace import Trace
from labkit.load.trace.coverage import find_faults
from labkit.load.trace.picture import draw_html
from labkit.system.labs import find_lab

CAPTURED = find_lab("02").folder / "captured"
CAPTURED_FILES: list[Path] = sorted(CAPTURED.glob("*.json"))


def captured(name: str) -> Trace:
    return Trace.read(CAPTURED / f"{name}.json")


def page(trace: Trace) -> str:
    return draw_html(trace, find_faults(trace))
