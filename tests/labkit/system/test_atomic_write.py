"""Files that are written whole or not at all: what is there stays, and why nothing was written is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError


def test_it_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "old")
    atomic_write(tmp_path / "a.json", "new \N{SNOWMAN}")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new \N{SNOWMAN}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["nowhere/a.json", "file/a.json", "folder", "a" * 300])
def test_a_place_that_cannot_be_written_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*; name "):
        atomic_write(tmp_path / name, "text")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
