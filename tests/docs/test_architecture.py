"""docs/architecture.md agrees with the tree: its paths, symbols, rooms, packages and import rules."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from labkit.system.labs import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
FOLDERS = "labkit|mini_vllm|labs|tests|docs|scripts|benchmarks|requirements|docker"
REFERENCE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+|[\w.-]+\.(?:md|toml|ini))(?:::([\w.]+))?`")
"""A path from the root, with the symbol that is defined in it."""

ADDITIONS = ("command", "fault", "lab", "model", "kernel", "figure", "export format")


def section(title: str) -> str:
    """The text below a heading, up to the next heading of the same level or a higher one."""
    level = title.index(" ")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md has no heading {title!r}"
    return found[1]


def table(title: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading: the first cell, without backticks and slash, -> the other cells."""
    rows = re.findall(r"^\| (.+) \|$", section(title), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows if not row.startswith(("---", "--"))]
    return {row[0].strip("`/ "): row[1:] for row in cells[1:]}


def packages(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/__init__.py")}


@cache
def definitions(file: Path) -> frozenset[str]:
    """The functions, classes and constants of a module; a method as ``Class.method``."""

    def names(body: list[ast.stmt], prefix: str) -> list[str]:
        found = []
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found += names(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            found += [prefix + target.id for target in targets if isinstance(target, ast.Name)]
        return found

    return frozenset(names(ast.parse(file.read_text(encoding="utf-8")).body, ""))


@pytest.mark.parametrize(("path", "symbol"), sorted(set(REFERENCE.findall(TEXT))))
def test_every_path_exists_and_defines_its_symbol(path: str, symbol: str) -> None:
    assert (ROOT / path).exists(), f"docs/architecture.md names {path}, which does not exist"
    if symbol:
        assert symbol in definitions(ROOT / path), f"docs/architecture.md names {path}::{symbol}, which is not defined there"


def test_the_tables_have_every_room_and_every_package() -> None:
    assert set(table("## The rooms of labkit")) == packages(ROOT / "labkit")
    assert set(table("## The packages of mini_vllm")) == packages(ROOT / "mini_vllm")


def test_a_room_may_import_what_the_contracts_allow() -> None:
    layers = next(each["layers"] for each in CONTRACTS if each["type"] == "layers" and "labkit.cli" in each["layers"])
    floors = [[room.removeprefix("labkit.") for room in layer.replace(":", " ").split()] for layer in layers]
    forbidden = [
        (each["source_modules"], module.removeprefix("labkit."))
        for each in CONTRACTS
        if each["type"] == "forbidden"
        for module in each["forbidden_modules"]
    ]
    for room, (_, allowed) in table("## The rooms of labkit").items():
        floor = next(number for number, rooms in enumerate(floors) if room in rooms)
        below = {each for rooms in floors[floor + 1 :] for each in rooms}
        below -= {module for sources, module in forbidden if f"labkit.{room}" in sources}
        assert set(re.findall(r"`(\w+)`", allowed)) == below, f"docs/architecture.md, room {room}: what it may import"


@pytest.mark.parametrize("way", ["A prompt", "A checkpoint tensor", "A learner's file"])
def test_each_way_has_eight_steps_and_each_step_a_symbol(way: str) -> None:
    steps = re.findall(r"^(\d)\. (.+(?:\n   .+)*)", section(f"### {way}"), re.MULTILINE)
    assert [number for number, _ in steps] == list("12345678")
    for number, text in steps:
        assert any(symbol for _, symbol in REFERENCE.findall(text)), f"{way}, step {number} names no path/file.py::Symbol"


def test_there_is_a_row_for_each_kind_of_addition() -> None:
    rows = table("## I want to add something")
    assert all(any(row == kind or row.endswith(f" {kind}") for row in rows) for kind in ADDITIONS), list(rows)
