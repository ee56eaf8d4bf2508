"""How a directory changes from one content to another: at no moment does it look like either while it is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.checkpoints.fetch.checkpoint_directory import MANIFEST, Manifest, build, entry_of, fault_of, read_manifest


def put(folder: Path, *names: str) -> None:
    """Makes ``folder`` hold files of these names, all of the same size, each with its last name in it."""

    def fill(shop: Path, made: Path) -> Manifest:
        for name in names:
            (made / name).write_text(f"{names[-1]:<10}")
        return Manifest(names[-1], "real", "", "", "", "", {name: entry_of(made / name) for name in names})

    build(folder, 0, lambda manifest: False, fill)


def test_it_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "checkpoint"
    put(folder, "a", "b")
    assert fault_of(folder, verify=True) is None
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("moves", range(4))
def test_whoever_is_killed_while_one_takes_the_other_s_place_leaves_it_unfinished(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are all alike, so that nothing but the manifest can tell; the last move of all is that of the new manifest."""
    folder, done = tmp_path / "checkpoint", 0
    put(folder, "a", "b", "old")
    (folder / "notes").write_text("mine")
    real = Path.replace

    def killed_after_some(self: Path, target: Path) -> Path:
        nonlocal done
        if target.parent == folder and not self.name.startswith("."):
            if done == moves:
                raise KeyboardInterrupt
            done += 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed_after_some)
    with pytest.raises(KeyboardInterrupt):
        put(folder, "a", "b", "new")
    monkeypatch.undo()
    assert fault_of(folder) == "it was not finished"
    put(folder, "a", "b", "new")
    assert fault_of(folder, verify=True) is None
    assert {path.name for path in folder.iterdir()} == {"a", "b", "new", "notes", MANIFEST}
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.model == "new"
    assert (folder / "notes").read_text() == "mine"


def test_only_what_a_killed_run_left_of_this_directory_is_removed(tmp_path: Path) -> None:
    """Names of models begin alike, and the folder in which another run makes Llama-3.2-1B is none of Llama-3's."""
    stale = tmp_path / ".Llama-3.x1y2z3w4.making"
    others = [tmp_path / name for name in (".Llama-3.2-1B.x1y2z3w4.making", ".Llama-3.d", ".Llama-3.mine", ".Llama-3")]
    for folder in (stale, *others):
        folder.mkdir()
    put(tmp_path / "Llama-3", "a")
    assert not stale.exists()
    assert all(folder.exists() for folder in others)


@pytest.mark.parametrize("name", ["*", "[ab]", "?"])
def test_a_name_is_no_pattern(name: str, tmp_path: Path) -> None:
    other = tmp_path / ".a.x1y2z3w4.making"
    other.mkdir()
    put(tmp_path / name, "a")
    assert other.exists()


def test_a_manifest_that_names_files_elsewhere_removes_none_there(tmp_path: Path) -> None:
    folder, other = tmp_path / "checkpoint", tmp_path / "other"
    other.write_text("mine")
    put(folder, "a")
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"a": {', '"../other": {'))
    put(folder, "b")
    assert other.read_text() == "mine"
