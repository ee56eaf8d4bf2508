"""``lab``, the front door, as a person runs it: in work trees of its own, with the real pip and uv, and small packages."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.system.environment import ROOT
from labkit.system.installer import uv_path

PYTHON = str(getattr(sys, "_base_executable", sys.executable))
"""A Python without the packages of this environment."""

STUB = """
import json, os, sys
import small
print(json.dumps([sys.argv[1:], os.getcwd(), sys.stdin.read(), small.VERSION]))
sys.exit(7)
"""


@pytest.fixture
def tree(tmp_path: Path, make_wheel: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree whose labkit says how it was called and exits with 7; its uv and torch are wheels made by hand."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "PYTHON"))]:
        monkeypatch.delenv(name)
    wheels, tree = tmp_path / "wheels", tmp_path / "tree"
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)

    (tree / "requirements").mkdir(parents=True)
    (tree / "labkit" / "system").mkdir(parents=True)
    shutil.copy(ROOT / "lab", tree)
    for name in ("__init__", "system/__init__", "system/environment", "system/errors", "system/installer"):
        shutil.copy(ROOT / "labkit" / f"{name}.py", tree / "labkit" / f"{name}.py")
    (tree / "labkit" / "__main__.py").write_text(STUB)
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["uv_build>=0.13,<0.14"]\nbuild-backend = "uv_build"\n'
        '[project]\nname = "labkit"\nversion = "1"\n[tool.uv.build-backend]\nmodule-root = ""\n'
    )
    uv = f'#!/bin/sh\nexec {uv_path(Path(sys.prefix))} "$@"\n'
    for file, name, version, files in (
        ("uv.txt", "uv", "1", {"uv-1.data/scripts/uv": uv}),
        ("base.txt", "small", "1", {"small.py": "VERSION = 1\n"}),
        ("torch-cpu.txt", "torch", "2.13.0+cpu", {"torch.py": ""}),
        ("torch-cuda.txt", "torch", "2.13.0", {"torch.py": ""}),
    ):
        (tree / "requirements" / file).write_text(make_wheel(wheels, name, version, files))
    return tree


def lab(
    tree: Path, *arguments: str, cwd: Path | None = None, python: tuple[str, ...] = (PYTHON,)
) -> subprocess.CompletedProcess[str]:
    """What a run of ``lab`` comes to; it reads ``typed`` from its standard input."""
    command = [*python, str(tree / "lab"), *arguments]
    return subprocess.run(command, input="typed", capture_output=True, text=True, check=False, cwd=cwd or tree)


def stamps(tree: Path) -> dict[str, tuple[int, int]]:
    """Each stamp's identity: its inode and when it was written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tree / ".venv").glob(".pins-*")}


def test_it_sets_up_once_and_hands_over_arguments_folder_input_and_exit_status(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "small.py").write_text("raise SystemExit('a file of the learner was taken for a package')\n")
    (elsewhere / "lab").symlink_to(tree / "lab")

    first = lab(elsewhere, "check", "01", "--impl", "a b", cwd=elsewhere)
    assert first.stdout == f'[["check", "01", "--impl", "a b"], "{elsewhere}", "typed", 1]\n', first.stderr
    assert first.returncode == 7
    assert {"uv", "base", "torch", "project"} == {name.removeprefix(".pins-") for name in stamps(tree)}
    assert sorted(path.name for path in elsewhere.iterdir()) == ["lab", "small.py"]

    before = stamps(tree)
    second = lab(tree)
    assert (second.returncode, second.stderr) == (7, ""), "nothing is set up, so nothing is said"
    assert stamps(tree) == before
    assert {path.name for path in tree.iterdir()} == {".venv", "lab", "labkit", "pyproject.toml", "requirements"}


def test_when_pins_change_only_what_they_name_is_done_again(tree: Path, tmp_path: Path, make_wheel: Callable[..., str]) -> None:
    assert lab(tree).returncode == 7
    before = stamps(tree)
    (tree / "requirements" / "base.txt").write_text(
        make_wheel(tmp_path / "wheels", "small", "2", {"small.py": "VERSION = 1 + 1\n"})
    )
    assert lab(tree).stdout.endswith('"typed", 2]\n')
    changed = {name for name, stamp in stamps(tree).items() if stamp != before[name]}
    assert changed == {".pins-base"}


def test_a_tree_that_was_moved_is_set_up_again_where_it_is(tree: Path) -> None:
    assert lab(tree).returncode == 7
    moved = tree.rename(tree.with_name("moved"))
    shutil.copytree(moved, tree, ignore=shutil.ignore_patterns(".venv"))
    (tree / "labkit" / "__main__.py").write_text("raise SystemExit('labkit of the old place')\n")
    run = lab(moved)
    assert run.returncode == 7, run.stderr


@pytest.fixture
def stalled(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], subprocess.Popen[str]]:
    """Starts ``lab`` where the package index accepts and never answers; returns it once pip is waiting there."""
    server = socket.create_server(("127.0.0.1", 0))

    def start() -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name not in {"PIP_NO_INDEX", "PIP_FIND_LINKS"}}
        environ |= {"PIP_INDEX_URL": f"http://127.0.0.1:{server.getsockname()[1]}/simple", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(
            [PYTHON, str(tree / "lab")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background has had it ignored
            env=environ,
        )
        held.append(server.accept()[0])
        return process

    held: list[socket.socket] = []
    return start


def test_killed_while_it_sets_up_it_starts_from_nothing(tree: Path, stalled: Callable[[], subprocess.Popen[str]]) -> None:
    process = stalled()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (tree / ".venv").is_dir()
    (tree / ".venv" / "left-over").mkdir()
    assert lab(tree).returncode == 7
    assert not (tree / ".venv" / "left-over").exists()


def test_ctrl_c_while_it_sets_up_is_one_line_and_130(stalled: Callable[[], subprocess.Popen[str]]) -> None:
    process = stalled()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("lab: interrupted")
    assert "Traceback" not in said


def test_an_index_without_uv_is_a_sentence_and_nothing_counts_as_set_up(tree: Path, tmp_path: Path) -> None:
    for wheel in (tmp_path / "wheels").glob("uv-*"):
        wheel.unlink()
    run = lab(tree)
    assert run.returncode == 1
    assert "lab: pip could not fetch uv; its error is above" in run.stderr.splitlines()[-1]
    assert {stamp: (tree / ".venv" / stamp).read_text() for stamp in stamps(tree)} == {".pins-uv": "installing"}


def test_a_tree_that_cannot_be_written_is_a_sentence(tree: Path) -> None:
    # root may write anywhere, unless it gives that up
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    tree.chmod(0o555)
    try:
        run = lab(tree, python=(*powerless, PYTHON))
    finally:
        tree.chmod(0o755)
    assert run.returncode == 1
    assert f"lab: {tree}/.venv cannot be set up (Permission denied" in run.stderr
    assert "copy the work tree to a folder of yours" in run.stderr
    assert "Traceback" not in run.stderr


def as_python_39(tree: Path) -> tuple[str, ...]:
    """A Python that takes itself for 3.9."""
    disguise = tree.parent / "disguise"
    disguise.mkdir()
    (disguise / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 18, 'final', 0)\n")
    return ("env", f"PYTHONPATH={disguise}", PYTHON)


def test_another_python_finds_a_python311_that_works(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, works = tmp_path / "broken", tmp_path / "works"
    for folder, script in ((broken, "exit 127"), (works, f'unset PYTHONPATH; exec {PYTHON} "$@"')):
        folder.mkdir()
        (folder / "python3.11").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python3.11").chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{works}:{os.environ['PATH']}")
    assert lab(tree, python=as_python_39(tree)).returncode == 7


def test_another_python_alone_is_a_sentence(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "env").symlink_to(str(shutil.which("env")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = lab(tree, python=as_python_39(tree))
    assert run.returncode == 1
    assert "this is Python 3.9, and torch and vLLM are pinned for Python 3.11. Install that" in run.stderr
    assert not (tree / ".venv").exists()


def test_any_python_can_read_it() -> None:
    """No syntax that is younger than Python 2.7 and 3.0: else a wrong Python would answer with a SyntaxError."""
    text = (ROOT / "lab").read_text(encoding="ascii")
    young = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Match, ast.Starred, ast.Nonlocal)
    for node in ast.walk(ast.parse(text, feature_version=(3, 4))):
        assert not isinstance(node, young)
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None
            assert not node.args.kwonlyargs
        if isinstance(node, ast.arg):
            assert node.annotation is None
        if isinstance(node, ast.Raise):
            assert node.cause is None


def test_it_can_be_run_by_its_name() -> None:
    assert os.access(ROOT / "lab", os.X_OK)
    assert (ROOT / "lab").read_bytes().startswith(b"#!/usr/bin/env python3\n")
