"""Where packages are looked for, and which build of torch is taken: indexes on loopback that answer, stall or are not there."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_environment import CPU, PLAIN, MakeWheel, run_in

from labkit.system.environment import choose_torch, install, pending_steps
from labkit.system.errors import UserError
from labkit.system.installer import index_has, uv_variables


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
        assert not index_has(prefix, torch_pins / "torch-cpu.txt", ["--default-index", url], timeout=1)
        assert len(held) == 1, "it was asked once, and not tried again"


@pytest.mark.usefixtures("online")
def test_an_index_that_is_not_there_is_given_up(prefix: Path, torch_pins: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not index_has(prefix, torch_pins / "torch-cpu.txt", ["--default-index", f"http://127.0.0.1:{port}"], timeout=1)


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
    assert pending_steps(prefix, ["base"], torch_pins) == []
    assert pending_steps(prefix, ["base", "vllm-cuda"], make_set(torch_pins, "vllm-cuda")) == ["vllm-cuda", "torch"]


def make_set(requirements: Path, name: str) -> Path:
    (requirements / f"{name}.txt").write_text("nothing==1\n")
    return requirements


def test_no_torch_anywhere_is_a_sentence(
    prefix: Path, wheels: Path, torch_pins: Path, make_wheel: MakeWheel, capfd: pytest.CaptureFixture[str]
) -> None:
    (torch_pins / "base.txt").write_text(make_wheel(wheels, "small", "1", {"small.py": ""}))
    with pytest.raises(UserError, match=r"could not install the packages of torch-cuda.txt; its error is above.*PIP_FIND_LINKS"):
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
    with pytest.raises(UserError) as problem:
        install(["dev"], prefix, requirements)
    said = capfd.readouterr().err
    assert "127.0.0.1" in said, "uv is to name the index that it could not reach"
    assert "Secret123" not in said + str(problem.value)
