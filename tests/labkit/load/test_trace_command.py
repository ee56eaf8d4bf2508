"""``./lab trace`` on the command line: exit status, written files, errors as sentences and, with --debug, as tracebacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from recordings import TINY, write_checkpoint
from typer.testing import CliRunner, Result

from labkit.checkpoints.faults import inject_fault
from labkit.checkpoints.known_models import implied_shapes
from labkit.cli import main as cli
from labkit.load.trace import Trace, trace_load
from labkit.load.trace.coverage import find_faults
from labkit.system.errors import UserError

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")


def lab(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    write_checkpoint(folder, TINY, implied_shapes(TINY))
    return folder


@pytest.fixture(autouse=True)
def nothing_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.system.environment.ensure", lambda name: None)


def test_a_whole_load_ends_well_and_a_faulty_one_does_not(good: Path, tmp_path: Path) -> None:
    """The fault is one that vLLM loads in silence: without --verify the exit status is 0."""
    assert lab("trace", good, "--tp", 2, "--verify").exit_code == 0
    inject_fault(good, "missing-k", tmp_path / "bad")
    assert lab("trace", tmp_path / "bad", "--tp", 2).exit_code == 0

    ended = lab("trace", tmp_path / "bad", "--tp", 2, "--verify", "--device", "cpu")
    assert ended.exit_code == 1


def test_shapes_alone_show_a_tensor_that_stands_in_two_files(good: Path, tmp_path: Path) -> None:
    """The headers of both are enough: no value is read."""
    inject_fault(good, "in-two-files", tmp_path / "bad")
    assert lab("trace", tmp_path / "bad", "--verify", "--device", "meta").exit_code == 1
    findings = find_faults(trace_load(tmp_path / "bad", device="meta"))
    assert [(finding.fault, finding.part[0]) for finding in findings] == [("twice", (128, 192))]


def test_everything_that_is_asked_for_is_written(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ended = lab("trace", good, "--tp", 2, "--verify", "--json", out / "a.json", "--html", out / "a.html", "--svg", out / "a.svg")
    assert ended.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.html", "a.json", "a.svg"]
    assert {record.tp_rank for record in Trace.read(out / "a.json").records} == {0, 1}
    assert "rank 1" in (out / "a.html").read_text()
    assert (out / "a.svg").read_text().startswith("<svg")


def test_a_fault_is_a_sentence_and_with_debug_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", "trace", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    monkeypatch.setattr(sys, "argv", ["lab", "--debug", "trace", str(tmp_path)])
    with pytest.raises(UserError, match=r"there is no config\.json in"):
        cli.main()
