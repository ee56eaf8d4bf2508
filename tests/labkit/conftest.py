"""What several tests of labkit need."""

from __future__ import annotations

import hashlib
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit.labs import ROOT


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
    for pristine in (tree / "labkit" / "starters").glob("*.txt"):
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
