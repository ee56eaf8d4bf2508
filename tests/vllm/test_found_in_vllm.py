"""docs/found-in-vllm.md: what each of its programs prints is what stands below it; the vLLM lines it names are checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "found-in-vllm.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"## ([^\n]+)\n.*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")


@pytest.mark.parametrize(("title", "program", "printed"), PROGRAMS, ids=[title for title, *_ in PROGRAMS])
def test_the_program_prints_what_the_page_says(title: str, program: str, printed: str) -> None:
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == printed


def test_the_lines_of_vllm_begin_what_is_named() -> None:
    spec = find_spec("vllm")
    assert spec
    assert spec.origin
    named = re.findall(r"`([\w.]+)`\s+\(`(vllm/[\w/]+\.py):(\d+)`\)|`([\w.]+)`, `(vllm/[\w/]+\.py):(\d+)`", PAGE)
    assert len(named) == len(PROGRAMS) == 3
    for one, path, line, other, other_path, other_line in named:
        lines = (Path(spec.origin).parent.parent / (path or other_path)).read_text(encoding="utf-8").splitlines()
        name = (one or other).rpartition(".")[2]
        assert re.search(rf"\b(def|class) {name}\b", lines[int(line or other_line) - 1]), (name, line or other_line)
