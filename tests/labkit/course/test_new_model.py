"""A package written by ``./lab new-model`` installs, serves in vLLM, passes its tests, and fails them without a mapping row."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from warm_pytest import passes

from labkit.cli.main import main
from labkit.course.new_model import TEMPLATES, Like, check_name, write_new_model
from labkit.system.errors import UserError
from labkit.system.labs import ROOT

LIKE = get_args(Like)
UV = Path(sys.executable).with_name("uv")
ROW = re.compile(r'^ {12}"[.\w]+": .+,\n', re.MULTILINE)
"""A mapping row in model.py, a line of its own."""


def install(package: Path) -> None:
    """As its README says, into its own folder ``site`` and not into this environment."""
    command = [UV, "pip", "install", "--python", sys.executable, "--offline", "--no-deps", "--target", package / "site", package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[Like, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {like: write_new_model(f"my_{like}", like, folder) for like in LIKE}


@pytest.mark.parametrize("like", LIKE)
def test_nothing_of_the_template_is_left(packages: dict[Like, Path], like: Like) -> None:
    files = [path for path in packages[like].rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert "new_model" not in str(path.relative_to(packages[like]))
        assert not re.search(r"new.?model|NewModel", path.read_text()), path
    camel = f"My{like.capitalize()}ForCausalLM"
    assert f"class {camel}(" in (packages[like] / f"my_{like}" / "model.py").read_text()


def test_a_package_installs_and_passes_its_tests(packages: dict[Like, Path]) -> None:
    """Once with uv, a new Python process and the installed entry point."""
    package = packages["llama"]
    install(package)
    environment = os.environ | {"PYTHONPATH": str(package / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", str(package / "tests"), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout


def test_the_bigram_passes_its_tests(packages: dict[Like, Path], tmp_path: Path) -> None:
    install(packages["bigram"])
    site = packages["bigram"] / "site"
    copy_tests(packages["bigram"], site)
    assert passes(site, tmp_path / "said"), (tmp_path / "said").read_text()[-3000:]


def copy_tests(package: Path, site: Path) -> None:
    for path in (package / "pyproject.toml", *(package / "tests").iterdir()):
        target = site / path.relative_to(package)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())


ROWS = [(like, row) for like in LIKE for row in ROW.findall((TEMPLATES / like / "new_model" / "model.py").read_text())]


def test_there_are_rows_to_take_out() -> None:
    assert [like for like, _ in ROWS].count("llama") == 5
    assert [like for like, _ in ROWS].count("bigram") == 1


@pytest.mark.parametrize(("like", "row"), ROWS, ids=[re.findall(r"\w+", row)[0] for _, row in ROWS])
def test_without_a_mapping_row_the_tests_fail(like: Like, row: str, tmp_path: Path) -> None:
    package = write_new_model("mine", like, tmp_path)
    model = package / "mine" / "model.py"
    model.write_text(model.read_text().replace(row, ""))
    install(package)
    copy_tests(package, package / "site")
    assert not passes(package / "site", tmp_path / "said")
    assert "There is no module or parameter named" in (tmp_path / "said").read_text()
    assert "1 error" in (tmp_path / "said").read_text() or "1 failed" in (tmp_path / "said").read_text()


# --- Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Tiny-Llama", "lower-case letters, digits and _, .*for instance tiny_llama"),
        ("../elsewhere", "cannot be the name.*for instance elsewhere"),
        ("3d", "a letter first"),
        ("class", "no keyword of Python$"),
        ("", "cannot be the name"),
        ("json", "a Python package json already exists; .*my_json"),
        ("torch", "package torch already exists"),
        ("tests", "package tests already exists"),
        ("llama", "vllm already has a model called llama; choose another name, for instance my_llama"),
        ("albert", "transformers already has a model called albert"),
    ],
)
def test_a_name_that_will_not_do(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_name(name)
    with pytest.raises(UserError, match=said):
        write_new_model(name, "llama", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.py").write_text("years of work")
    monkeypatch.setattr(sys, "argv", ["lab", "new-model", "mine"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().out == ("lab: mine already exists and was not changed; choose another name, or move it away\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "model.py"]
    assert (tmp_path / "mine" / "model.py").read_text() == "years of work"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create .*mine: .*; run the command in a folder where you can write"):
        write_new_model("mine", "bigram", tmp_path / "file")


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lab", "new-model", "mine", "--like", "bigram"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "written: mine/mine/model.py\n" in said
    assert re.search(r"Next: \S+/uv pip install --python \S+ --no-deps --editable mine, then \S+ -m pytest mine", said)
    assert ROOT not in (tmp_path / "mine").parents
