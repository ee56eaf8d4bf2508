"""The warm process: pytest, torch, the engine and the lab's tests are in it once, and it forks for every run.

It forks when pytest has collected the lab's tests and before the first of them runs: test_lab.py never imports the learner's
file, which the fixture ``lab`` loads, so a fork starts without a line of the learner's and reads what is on disk then.

It imports and never computes (ahead.py). So there is one thread when it forks, which each message ``ready`` reports, and one in
the child's OpenMP too.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import Phase, settings

from labkit.check.preload import import_ahead
from labkit.check.reporter import Telling, time_limit
from labkit.system.labs import ROOT, Lab

GRACE = 2.0
"""Seconds that a test has to end by itself once its time is up; then the child is ended, and says where it was."""


class Forks:
    """The pytest plugin that stands where the tests would run."""

    def __init__(self, control: socket.socket, lab: Lab) -> None:
        self.control, self.lab = control, lab
        self.is_child = False
        self.results = -1

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Serves runs for as long as there is a watcher; in a child, returns None, and pytest goes on to the tests."""
        if session.testsfailed:  # the tests cannot be imported; pytest ends here by itself
            return None
        gc.collect()
        gc.freeze()  # what is old stays on pages that parent and child share
        while True:
            self._say(ready=True, threads=threads())
            message, files, _, _ = socket.recv_fds(self.control, 65536, 1)
            if not message:
                return True
            request = json.loads(message)
            self.results = files[0]
            child = os.fork()
            if child == 0:
                self._become_a_run(session, request)
                return None
            os.close(self.results)
            self._say(child=child)
            _, status = os.waitpid(child, 0)
            self._say(ended=os.waitstatus_to_exitcode(status))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Why the tests cannot be imported is the last line that is left of this process."""
        if report.failed:
            print(report.longreprtext, file=sys.stderr)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):  # type: ignore[no-untyped-def]
        """A test that pytest-timeout cannot stop (it hangs in C, or swallows every exception) is ended by a thread in C."""
        faulthandler.dump_traceback_later(time_limit(item, self.lab) + GRACE, exit=True, file=self.results)
        yield
        faulthandler.cancel_dump_traceback_later()

    def _become_a_run(self, session: pytest.Session, request: dict[str, str]) -> None:
        self.is_child = True
        os.setpgid(0, 0)  # so that whatever the learner's code starts is ended with it
        self.control.close()
        output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = _line_by_line(1), _line_by_line(2)
        os.environ["LAB_IMPL"] = request["graded"]
        first = self.lab.find_task(request["first"]).tests if request["first"] else ()
        session.items.sort(key=lambda item: item.name.partition("[")[0] not in first)
        telling = Telling(self.results, Path(request["graded"]), self.lab, Path(request["output"]))
        session.config.pluginmanager.register(telling)

    def _say(self, **message: object) -> None:
        self.control.sendall(json.dumps(message).encode() + b"\n")


def threads() -> int:
    """How many threads this process has, those of C libraries too; 0 where the system does not say."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def _line_by_line(file: int) -> TextIO:
    return os.fdopen(file, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def serve(control: socket.socket, lab: Lab) -> int:
    """Runs pytest up to its tests, and forks there for each run."""
    import_ahead()
    # The first wrong answer will do: to look for the smallest takes seconds, and ./lab check does it.
    quick = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
    settings.register_profile("watch", phases=quick)
    settings.load_profile("watch")
    forks = Forks(control, lab)
    arguments = [str(lab.tests), "-q", "-s", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    with Path(os.devnull).open("w") as nowhere:
        said, sys.stdout = sys.stdout, nowhere  # pytest's own dots
        status = pytest.main([*arguments, f"--timeout={lab.time_limit}"], plugins=[forks])
        sys.stdout = said
    if forks.is_child:
        os._exit(0)
    return status


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1])), Lab.read(Path(sys.argv[2]))))
