"""What several tests of labkit need."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit.cli import main as cli
from labkit.system.installer import uv_path
from labkit.system.labs import ROOT

Lab = Callable[..., tuple[int, str]]
"""Runs ``./lab WORDS...`` in this process; returns the exit status and the output."""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lab", *map(str, words)])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Sets how many bytes a file may have, in child processes too: the system refuses more, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def work_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a learner works in, with starters as they are given out; ``python -P -m labkit`` runs from it."""
    tree = tmp_path / "tree"
    for name in ("labkit", "labs", "mini_vllm"):
        # With what numba has compiled before, which takes it seconds.
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(".progress"))
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for pristine in (tree / "labkit" / "course" / "starters").glob("*.txt"):
        shutil.copy(pristine, tree / "labs" / pristine.stem / "starter.py")
    monkeypatch.setenv("PYTHONPATH", str(tree))
    return tree


@pytest.fixture
def make_wheel() -> Callable[..., str]:
    """Writes a small real wheel into a folder, and returns the line of a requirements file that pins it by hash.

    Called with the folder, the name, the version and the files; a file's path may start with ``NAME-VERSION.data/scripts/``.
    """

    def make(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        about = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in [*files, *about, f"{info}/RECORD"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for member, text in {**files, **about, f"{info}/RECORD": record}.items():
                entry = zipfile.ZipInfo(member)
                entry.external_attr = (0o100755 if "/scripts/" in member else 0o100644) << 16
                wheel.writestr(entry, text)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"

    return make


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An empty environment with uv."""
    prefix = tmp_path / "environment"
    venv.EnvBuilder(symlinks=True).create(prefix)
    (prefix / "bin" / "uv").symlink_to(uv_path(Path(sys.prefix)))
    return prefix


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where packages are looked for."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """A folder for pins, in a work tree with a project in it."""
    folder = tmp_path / "tree" / "requirements"
    folder.mkdir(parents=True)
    (folder.parent / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["uv_build>=0.13,<0.14"]\nbuild-backend = "uv_build"\n'
        '[project]\nname = "tiny"\nversion = "1"\n[tool.uv.build-backend]\nmodule-root = ""\n'
    )
    (folder.parent / "tiny").mkdir()
    (folder.parent / "tiny" / "__init__.py").write_text("WHERE = __file__\n")
    return folder


@pytest.fixture
def torch_pins(requirements: Path, make_wheel: Callable[..., str], tmp_path: Path) -> Path:
    """Pins of two tiny wheels that are named as torch's two builds are; the wheels are in ``tmp_path``/made."""
    for file, version in (("torch-cpu.txt", "2.13.0+cpu"), ("torch-cuda.txt", "2.13.0")):
        source = {"torch/__init__.py": f"__version__ = {version!r}\n"}
        (requirements / file).write_text(make_wheel(tmp_path / "made", "torch", version, source))
    return requirements
