"""Judges that are forked: each is what a new process would be."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.check.check import Child, Start, start_pytest
from labkit.grading import judge_server
from labkit.grading.judge_server import judge_servers
from labkit.grading.verdict import judge_environment
from labkit.system.fork_server import ForkServer
from labkit.system.labs import ROOT

FILE = """
import os, subprocess, sys, time
from pathlib import Path
from typing import Any

def test_it(tmp_path):
    print("seen", os.environ["LAB_IMPL"], os.getcwd(), "torch" in sys.modules)
    child = subprocess.Popen(["sleep", "100"])
    Path("PLACE").write_text(f"{os.getpid()} {os.getpgrp()} {child.pid}")
    assert os.environ["LAB_IMPL"] != "wrong"
    while os.environ["LAB_IMPL"] == "endless":
        time.sleep(0.1)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Start, str], tuple[Child, Callable[[], str]]]]:
    """Starts a judge on FILE; returns it, and what reads the JUnit XML and what it has printed."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as report:
        file = tmp_path / "test_file.py"
        file.write_text(FILE.replace("PLACE", str(tmp_path / "place")))

        def start_one(start: Start, implementation: str) -> tuple[Child, Callable[[], str]]:
            arguments = [str(file), "-q", "-rP", "-p", "no:cacheprovider", f"--junitxml=/dev/fd/{report.fileno()}"]
            arguments += [f"--rootdir={tmp_path}", "-c", os.devnull, f"--basetemp={tmp_path / 'base'}"]
            for each in (output, report):
                each.seek(0)
                each.truncate()
            child = start(arguments, judge_environment() | {"LAB_IMPL": implementation}, output, report)

            def said() -> str:
                report.seek(0)
                output.seek(0)
                return (report.read() + output.read()).decode()

            return child, said

        yield start_one


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("not within 30 seconds")


def place(tmp_path: Path) -> tuple[int, int, int]:
    """The process of the test, its group, and the process that the test has started."""
    file = tmp_path / "place"
    wait_until(lambda: file.is_file() and len(file.read_text().split()) == 3)
    pid, group, child = map(int, file.read_text().split())
    file.unlink()
    return pid, group, child


@pytest.mark.parametrize("implementation", ["right", "wrong"])
def test_it_says_what_a_new_process_says(
    run: Callable[..., tuple[Child, Callable[[], str]]], implementation: str, tmp_path: Path
) -> None:
    statuses = []
    with judge_servers() as start:
        for each in (start_pytest, start):
            child, said = run(each, implementation)
            statuses.append(child.wait(60))
            assert place(tmp_path)[:2] == (child.pid, child.pid)
            os.killpg(child.pid, signal.SIGKILL)  # the process that the test has left behind
            assert f"seen {implementation} {ROOT} {each is start}\n" in said()
            assert f'failures="{int(implementation == "wrong")}"' in said()
    assert statuses == [int(implementation == "wrong")] * 2


def test_one_that_is_killed_makes_room_for_the_next(run: Callable[..., tuple[Child, Callable[[], str]]], tmp_path: Path) -> None:
    with judge_servers() as start:
        endless, _ = run(start, "endless")
        left_behind = place(tmp_path)[2]
        with pytest.raises(TimeoutError):
            endless.wait(0.1)
        os.killpg(endless.pid, signal.SIGKILL)
        assert endless.wait() == endless.wait() == -signal.SIGKILL
        wait_until(lambda: not Path(f"/proc/{left_behind}/exe").exists())
        assert run(start, "right")[0].wait(60) == 0


def test_without_its_server_a_judge_ends_and_the_next_is_a_new_process(
    run: Callable[..., tuple[Child, Callable[[], str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[ForkServer] = []

    def start_server(*arguments: Any) -> ForkServer:
        servers.append(ForkServer(*arguments))
        return servers[0]

    monkeypatch.setattr(judge_server, "ForkServer", start_server)
    with judge_servers() as start:
        orphan, _ = run(start, "endless")
        place(tmp_path)
        servers[0].process.kill()
        for _ in range(2):
            with pytest.raises(OSError, match="try again"):
                orphan.wait(60)
        wait_until(lambda: not Path(f"/proc/{orphan.pid}/exe").exists())
        servers[0].process.wait()
        child, said = run(start, "right")
        assert child.wait(60) == 0
        assert "False" in said(), "torch is not imported before it is asked for"
