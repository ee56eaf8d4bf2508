"""Every line of vLLM that the engine and lab 01 point to is where they say: the beginning of a class or a function. Every line of
the engine that lab 01 quotes is in the function that it names."""

from __future__ import annotations

import inspect
import re
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = re.compile(r"\b(vllm/[\w/]+\.py):(\d+)")
BEGINS = re.compile(r"\s*(async def|def|class) \w+|\s*@")


def references() -> list[tuple[str, str, int]]:
    """(file of ours, file of vLLM, line)."""
    files = [*(ROOT / "mini_vllm").rglob("*.py"), ROOT / "mini_vllm" / "README.md", *(ROOT / "labs").glob("lab-01*/README.md")]
    return sorted(
        {
            (str(file.relative_to(ROOT)), path, int(line))
            for file in files
            for path, line in REFERENCE.findall(file.read_text(encoding="utf-8"))
        }
    )


@pytest.mark.parametrize(("file", "path", "line"), references())
def test_a_line_that_is_pointed_to_begins_something(file: str, path: str, line: int) -> None:
    spec = find_spec("vllm")
    assert spec
    assert spec.origin
    lines = (Path(spec.origin).parent.parent / path).read_text(encoding="utf-8").splitlines()
    assert BEGINS.match(lines[line - 1]), f"{file} points to {path}:{line}, which reads {lines[line - 1]!r}"


def test_there_is_something_to_check() -> None:
    assert len(references()) > 10
    assert len(QUOTE.findall(next(ROOT.glob("labs/lab-01*/README.md")).read_text("utf-8"))) == 9


QUOTE = re.compile(r"\| `([\w.]+)` \(`(mini_vllm/[\w/]+)\.py`\) \| `([^`]+)` \|")


@pytest.mark.parametrize(("name", "module", "line"), QUOTE.findall(next(ROOT.glob("labs/lab-01*/README.md")).read_text("utf-8")))
def test_a_line_of_the_engine_that_is_quoted_is_there(name: str, module: str, line: str) -> None:
    function = reduce(getattr, name.split("."), import_module(module.replace("/", ".")))
    assert line in inspect.getsource(function)  # type: ignore[arg-type]
