"""Grades one implementation of a lab: runs pytest in a child process with time limits, and reads the results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import IO

from labkit.check.report import Report, TestResult
from labkit.check.results import Results
from labkit.system.errors import UserError
from labkit.system.fork_server import ForkServer
from labkit.system.labs import ROOT, Lab

GRACE = 2.0
"""Seconds after its time limit in which a test can still end by itself; then its process is killed."""

MAX_OUTPUT = 8 << 20
"""Bytes that a run may print before its output is deleted, so that an endless print does not fill the disk."""

PRELOAD = (
    "mini_vllm.kernels.install",
    "mini_vllm.models.llama",
    "torch.distributed.tensor",  # torch.testing.assert_close imports it, and with it sympy
)
"""Modules that a fork server imports before it forks, because the labs' tests would import them in every run."""


Child = subprocess.Popen[bytes] | ForkServer
"""The process that runs pytest and leads a process group."""

Start = Callable[[list[str], dict[str, str], IO[bytes], IO[bytes]], Child]
"""Starts pytest with arguments and an environment; the first file gets the output, the second is inherited for the results."""


def start_pytest(arguments: list[str], environment: dict[str, str], output: IO[bytes], report: IO[bytes]) -> Child:
    """Starts pytest as a new process in its own session, so that every process it starts can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=(report.fileno(),),
    )


def check(lab: Lab, choice: str) -> Report:
    """Grades one implementation without a sandbox, as plain pytest would run it; returns the report.

    ``choice`` is ``solution``, ``starter`` or the path of a .py file; UserError: there is no such file. A starter.py that has not
    been changed is not run: each of its tests is "not started".
    """
    graded = find_implementation(lab, choice)
    source = graded.read_bytes()
    if graded == lab.implementation("starter") and source == lab.pristine.read_bytes():
        results = {name: TestResult(name, "not started", "not started") for task in lab.tasks for name in task.tests}
        return replace(Report.of_results(lab, graded, results), sha256=sha256(source).hexdigest())
    with tempfile.TemporaryDirectory(prefix="lab-check-", ignore_cleanup_errors=True) as folder:
        return run_tests(lab, graded, [f"--basetemp={folder}/tests", f"--report-grace={GRACE}"], clean_environment())


def find_implementation(lab: Lab, choice: str) -> Path:
    """Returns the path of the file to grade; UserError: the file does not exist."""
    graded = lab.implementation(choice)
    if not graded.is_file():
        raise UserError(f"{graded} is missing; `git checkout -- {graded.relative_to(ROOT)}` brings it back")
    return graded


def clean_environment(*removed: str) -> dict[str, str]:
    """Returns the environment variables of this process without those that change how tests run, and without ``removed``.

    With PYTHONDONTWRITEBYTECODE pytest would compile every plugin in every run.
    """
    left_out = {"LAB_IMPL", "PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE", *removed}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def run_tests(lab: Lab, graded: Path, options: Sequence[str], environment: dict[str, str], start: Start = start_pytest) -> Report:
    """Runs the lab's tests on a file in a child process, and returns the report.

    A test that exceeds the lab's time limit fails. A child that does not end is killed, with every process that it started.
    """
    session = 2 * lab.time_limit + 20  # torch has to be imported too
    limit = session + 2 * lab.time_limit
    digest, started = sha256(graded.read_bytes()).hexdigest(), time.monotonic()
    results = Results(lab, graded)
    with _nameless_file() as report, tempfile.TemporaryFile() as output:
        arguments = [str(lab.tests), "-q", "-s", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        arguments += ["-p", "labkit.check.reporter", f"--report-fd={report.fileno()}"]
        arguments += [f"--timeout={lab.time_limit}", f"--session-timeout={session}", *options]
        status = _run(start(arguments, environment | {"LAB_IMPL": str(graded)}, output, report), limit, output)
        report.seek(0)
        results.feed(report.read())
        output.seek(max(output.seek(0, os.SEEK_END) - 4000, 0))
        printed = output.read().decode(errors="replace").strip("\0\n ")
    if status is None:
        results.broken = (
            f"{graded.name} did not come to an end in {limit} seconds and could not be interrupted; "
            "look for a loop that never ends, then check again"
        )
    elif status in (2, 3, 4) and printed:  # pytest was interrupted, had an internal error, or was called wrongly
        results.broken = f"pytest stopped with exit status {status}: {printed.splitlines()[-1]}; correct this, then check again"
    else:
        results.finished = results.finished and status in (0, 1)  # with another status pytest did not end by itself
        results.end(status)
    if results.broken:
        results.tests.clear()
    return replace(results.report, sha256=digest, seconds=time.monotonic() - started)


def _nameless_file() -> IO[bytes]:
    """A file that no other process can open by name; a child process inherits its descriptor."""
    return os.fdopen(os.memfd_create("report"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


def _run(child: Child, seconds: float, output: IO[bytes]) -> int | None:
    """Waits for the child process; returns its exit status, or None if it was killed after ``seconds``."""
    status: int | None = None
    deadline = time.monotonic() + seconds
    try:
        while status is None and (left := deadline - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired, TimeoutError):
                status = child.wait(timeout=min(left, 1))
            if os.fstat(output.fileno()).st_blocks * 512 > MAX_OUTPUT:
                output.truncate(0)
    finally:
        with suppress(ProcessLookupError):  # no process of the group is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return status
