"""Submissions that attack the grader: none gets a point, none harms what comes after it."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.check.check import start_pytest
from labkit.check.report import Report
from labkit.grading.judge_server import judge_servers
from labkit.grading.verdict import judge, sha256_of, trusted_files
from labkit.isolation.sandbox import layers
from labkit.system.labs import ROOT, Lab, find_lab

ATTACKS = sorted((Path(__file__).parent / "attacks").glob("*.py"))

WRONG = """

# What it defends: every answer is wrong.
STACKED_PARAMS_MAPPING = ()
ModelShape = dict
translate = shard_slices = load_shard = load_weights = lambda *args, **kwargs: None
"""
"""Lab 03, in a form that deserves nothing."""

Reports = dict[str, "Future[Report]"]


@pytest.fixture(scope="module")
def before() -> str:
    return sha256_of(trusted_files())


@pytest.fixture(scope="module", params=["new processes", "forks"])
def reports(request: pytest.FixtureRequest, before: str, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """All of them are graded, two at a time: an attack must not reach the neighbour either. By judges that are new processes, as
    for one file, and by forks, as for a class."""
    if not {"write (Landlock)", "processes (PID namespace)"} <= set(layers()):
        pytest.skip(
            f"NOT RUN: of the box only {layers()} hold here, so these files would change the work tree or end other processes"
        )
    folder = tmp_path_factory.mktemp("submissions")
    starting = judge_servers() if request.param == "forks" else nullcontext(start_pytest)
    with starting as start, ThreadPoolExecutor(2) as pool:
        reports = {}
        for attack in ATTACKS:
            (folder / attack.stem).mkdir()
            file = folder / attack.stem / "starter.py"
            own = any(word in attack.read_text() for word in ("def __getattr__", "class ModelShape"))
            file.write_text(attack.read_text() + ("" if own else WRONG))
            reports[attack.stem] = pool.submit(judge, replace(find_lab("03"), time_limit=3), str(file), start)
        reports["the solution"] = pool.submit(judge, find_lab("03"), "solution", start)
    return reports


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("attack", [attack.stem for attack in ATTACKS])
def test_an_attack_earns_nothing(reports: Reports, attack: str) -> None:
    report = reports[attack].result()
    assert not report.passed
    assert report.points == 0
    # A skipped test earns nothing itself, but the task that it belongs to passes without it.
    spared = {test.name for task in report.tasks for test in task.tests if test.status in ("passed", "skipped")}
    assert not spared


TASK = '[[tasks]]\nname = "one"\ntitle = "one"\npoints = 100\ntests = ["test_one"]\nhints = ["", "", ""]\n'
LAB = 'number = "09"\ntitle = "A process"\norder = 9\ntags = []\n'

STARTS_A_PROCESS = """
import subprocess, sys

def test_one(lab, tmp_path):
    code = "open('inside', 'w').close(); open(sys.argv[1], 'w').close()"
    command = [sys.executable, "-c", f"import sys, os; os.chdir(sys.argv[2]); {code}", lab.__file__ + ".txt", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / "inside").is_file()
    assert "Permission denied" in ended.stderr
"""


def test_a_process_that_a_test_starts_is_in_the_sandbox_too(tmp_path: Path) -> None:
    """A test of lab 01 hands the file to torchrun."""
    if "write (Landlock)" not in layers():
        pytest.skip("NOT RUN: Landlock does not hold here")
    folder = tmp_path / "lab-09"
    folder.mkdir()
    (folder / "lab.toml").write_text(LAB + TASK)
    (folder / "test_lab.py").write_text(STARTS_A_PROCESS)
    (tmp_path / "mine.py").write_text("")
    report = judge(Lab.read(folder), str(tmp_path / "mine.py"))
    assert report.passed, report
    assert report.sandbox == layers()


def test_nothing_is_left_of_them(reports: Reports, before: str) -> None:
    assert sha256_of(trusted_files()) == before
    planted = subprocess.run(["git", "status", "--porcelain", "labs"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "planted" not in planted
    assert list((ROOT / "labs").glob("**/conftest.py")) == [ROOT / "labs" / "conftest.py"]
    running = [Path(f"/proc/{number}/cmdline") for number in filter(str.isdigit, os.listdir("/proc"))]  # noqa: PTH208
    words = b"".join(line.read_bytes() for line in running if line.exists())
    assert b"31415" not in words, "the sleep of leaves_processes.py is still there"
    assert b"submissions" not in words, "a learner's process is still there"


def test_the_next_submission_is_graded_as_if_nothing_had_been(reports: Reports) -> None:
    assert reports["the solution"].result().points == 100


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("exits", "ended the whole Python process (with exit status 0)"),
        ("exits_politely", "SystemExit"),
        ("exits_at_the_first_call", "ended the whole Python process (with exit status 0)"),
        ("loops", "did not end within 3 seconds"),
    ],
)
def test_what_stopped_it_is_said(reports: Reports, attack: str, said: str) -> None:
    report = reports[attack].result()
    assert said in report.broken or said in report.tasks[0].tests[0].message
