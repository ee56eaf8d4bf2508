"""./lab watch in a real terminal and in a pipe, in a work tree of its own, on the real labs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal import Terminal

from labkit.course.watch.changes import Changes
from labkit.course.watch.runs import Run, WatchServer
from labkit.system.labs import Lab, find_lab

LAB_03 = find_lab("03")
RIGHT = (LAB_03.folder / "solution.py").read_text(encoding="utf-8")
FIRST_LINE = "    owner, _, kind = "
"""The first line of translate in the solution."""


@pytest.fixture
def starter(work_tree: Path) -> Path:
    """The learner's file of lab 03, where a test may take a minute, for the sake of busy machines."""
    folder = work_tree / "labs" / LAB_03.folder.name
    set_time_limit(folder, 60)
    return folder / "starter.py"


def set_time_limit(folder: Path, seconds: int) -> None:
    """Seconds that each test of a lab may take."""
    toml = folder / "lab.toml"
    text = re.sub(r"^time_limit.*\n", "", toml.read_text(encoding="utf-8"), flags=re.MULTILINE)
    toml.write_text(f"time_limit = {seconds}\n{text}", encoding="utf-8")


@pytest.fixture
def open_terminal(work_tree: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens a terminal in the work tree; whatever runs there is ended in the end."""
    opened: list[Terminal] = []

    def start(*arguments: str, **options: object) -> Terminal:
        opened.append(Terminal(*arguments, cwd=work_tree, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.process.close(force=True)


def wrong_slice(text: str) -> str:
    """v's rows are taken from the rank's own block, where ranks share a kv head: right at TP 1 and 2, wrong at 16."""
    assert "(heads + kv_heads, kv_heads, tp_rank // replicas)" in text
    return text.replace("(heads + kv_heads, kv_heads, tp_rank // replicas)", "(heads + kv_heads, kv_heads, tp_rank)")


def at_the_first_line(text: str, *statements: str) -> str:
    """translate begins with these statements."""
    assert FIRST_LINE in text
    return text.replace(FIRST_LINE, "".join(f"    {statement}\n" for statement in statements) + FIRST_LINE)


def test_an_afternoon_in_a_terminal(starter: Path, open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("watch", "03")
    seen = terminal.wait("names: failing")
    assert "NotImplementedError: task names" in seen
    assert "at starter.py:" in seen

    starter.write_text(wrong_slice(RIGHT), encoding="utf-8")
    seen = terminal.wait("slices: failing")
    assert "slices: failing  multi query attention" in seen or "slices: failing  kv heads are replicated" in seen
    assert seen.index("  expected: shard") < seen.index("  got: shard")
    assert "look at starter.py:68, in shard_slices" in seen
    assert RIGHT.splitlines()[67].startswith("def shard_slices")
    assert "passed: names" in seen

    first, second, _ = LAB_03.find_task("slices").hints
    terminal.press("h")
    assert first[:24] in terminal.wait("Hint 1 of 3 for slices:")
    terminal.press("h")
    assert second[:24] in terminal.wait("Hint 2 of 3 for slices:")
    assert "h hint (2 of 3 seen)   n next task   a run all   q quit" in terminal.text

    starter.write_text(RIGHT, encoding="utf-8")
    terminal.wait("every task has passed")
    assert "100 of 100 points" in terminal.text
    assert all(len(line) <= 80 for line in terminal.lines)

    terminal.press("q")
    assert terminal.end() == 0
    assert "Lab 03: 100 of 100 points" in terminal.text


def test_it_outlives_whatever_the_file_does(starter: Path, open_terminal: Callable[..., Terminal]) -> None:
    starter.write_text(RIGHT, encoding="utf-8")
    terminal = open_terminal("watch", "03")
    terminal.wait("every task has passed")

    starter.write_text(at_the_first_line(RIGHT, "import os", "os._exit(0)"), encoding="utf-8")
    assert "ended the whole Python process (with exit status 0)" in terminal.wait("no verdict: ").replace("\n", " ")
    starter.write_text(at_the_first_line(RIGHT, "import ctypes", "ctypes.string_at(0)"), encoding="utf-8")
    terminal.wait("signal SIGSEGV")
    starter.write_text(f"{RIGHT}\n(", encoding="utf-8")
    terminal.wait("is not Python yet")
    starter.write_text("", encoding="utf-8")
    terminal.wait("names: failing")
    starter.unlink()
    starter.write_text(RIGHT, encoding="utf-8")
    terminal.wait("every task has passed")
    assert not children_left(terminal)


def children_left(terminal: Terminal) -> list[str]:
    """Runs that are still there: children of the warm process."""
    pids = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    return [child for pid in pids for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("swallows", [False, True])
def test_an_endless_loop_is_stopped_and_its_line_named(
    starter: Path, open_terminal: Callable[..., Terminal], swallows: bool
) -> None:
    loop = (
        ("while True:", "    try:", "        while True: pass", "    except BaseException: pass")
        if swallows
        else ("while True: pass",)
    )
    set_time_limit(starter.parent, 4)
    starter.write_text(at_the_first_line(RIGHT, *loop), encoding="utf-8")
    terminal = open_terminal("watch", "03")
    terminal.wait("running: the five fused names, 2 s")
    seen = terminal.wait("did not end within 4 seconds; look for a loop that never ends")
    assert "while True: pass" in seen
    assert "names: failing  the five fused names" in seen
    terminal.press("q")
    assert terminal.end() == 0


def test_ctrl_c_gives_the_terminal_back(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("watch", "03")
    terminal.wait("names: failing")
    warm = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    assert warm
    terminal.press("\x03")
    assert terminal.end() == 0
    assert b"\x1b[?1049l" in terminal.sent, "the screen is what it was before"
    assert "0 of 100 points. Go on with ./lab watch 03" in terminal.text
    assert not any(Path(f"/proc/{pid}").exists() for pid in warm)


def test_what_a_test_prints_is_shown_and_a_flood_fills_no_disk(starter: Path, open_terminal: Callable[..., Terminal]) -> None:
    set_time_limit(starter.parent, 15)
    starter.write_text(at_the_first_line(RIGHT, "print('name is', name)", "return name, None"), encoding="utf-8")
    terminal = open_terminal("watch", "03")
    assert "  name is model.layers.3.self_attn.q_proj.weight" in terminal.wait("printed:")
    starter.write_text(at_the_first_line(RIGHT, "while True: print('x' * 1000)"), encoding="utf-8")
    warm = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()[0]
    folder = next(
        value
        for name, _, value in (entry.partition("=") for entry in Path(f"/proc/{warm}/environ").read_text().split("\0"))
        if name == "PYTEST_DEBUG_TEMPROOT"
    )
    largest = 0
    while "did not end within" not in terminal.text:
        terminal._take()
        largest = max(largest, (Path(folder) / "printed").stat().st_size)
    assert 0 < largest < 2**30
    terminal.press("q")
    assert terminal.end() == 0
    assert not Path(folder).exists()


def test_in_a_pipe_it_is_plain_text(starter: Path, work_tree: Path) -> None:
    starter.write_text(wrong_slice(RIGHT), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "labkit", "watch", "03"]
    with subprocess.Popen(command, cwd=work_tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = list(until(watch.stdout, "points;"))
        starter.write_text(RIGHT, encoding="utf-8")
        second = list(until(watch.stdout, "points;"))
        watch.send_signal(signal.SIGINT)
        left = watch.stdout.read()
    assert first[1].startswith("names: passed  ")
    assert any(line.startswith("slices: failing  ") for line in first)
    assert second[0].startswith("slices: passed  "), "the task in hand comes first"
    assert second[-1] == "100 of 100 points; waiting for the next save of starter.py\n"
    assert left == "Lab 03: 100 of 100 points. Go on with ./lab watch 03\n"
    assert not any("\x1b" in line for line in (*first, *second))


def until(lines: Iterator[str], word: str) -> Iterator[str]:
    for line in lines:
        yield line
        if word in line:
            return


def test_no_color_is_honoured(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("watch", "03", environment={"NO_COLOR": "1"})
    terminal.wait("names: failing")
    assert b"\x1b[1;31m" not in terminal.sent
    assert b"\x1b[31m" not in terminal.sent


def test_a_low_terminal_keeps_the_keys_in_sight(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("watch", "03", height=9)
    terminal.wait("a taller terminal shows the rest")
    assert "q quit" in terminal.text


def run_tests(server: WatchServer, graded: Path) -> Run:
    """A run from its first to its last result."""
    while not server.ready:
        server.receive()
    run = server.start_run(graded, None)
    while run.read():
        pass
    while not run.ended:
        for message in server.receive():
            if "ended" in message:
                run.end(message["ended"])
    os.close(run.pipe)
    return run


@pytest.mark.parametrize("number", ["01", "03"])
def test_one_thread_is_alive_across_every_fork_and_each_fork_is_fresh(number: str, tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork; a child that needs them would wait for ever."""
    lab = find_lab(number)
    mine = tmp_path / "mine.py"
    server = WatchServer(lab)
    try:
        for text in ("x = 1\n", "y = 1\n", (lab.folder / "solution.py").read_text(encoding="utf-8")):
            mine.write_text(text, encoding="utf-8")
            os.utime(mine, (1e9, 1e9))  # the first two have one size and one time: bytecode of the one would pass for the other's
            run = run_tests(server, mine)
            assert run.finished
            assert run.report.passed == ("def register" in text or "def translate" in text)
            missing = [result.message for result in run.tests.values() if "has no attribute" in result.message]
            assert bool(missing) == (not run.report.passed)
        while not server.ready:
            server.receive()
        assert server.threads == (1 if sys.platform == "linux" else 0)
    finally:
        server.close()


def changed(changes: Changes) -> set[Path]:
    """What the next wake tells."""
    return changes.take()


def test_changes_come_by_events_and_where_there_are_none_by_looking(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "here" / "starter.py", tmp_path / "elsewhere"
    for folder in (file.parent, elsewhere):
        folder.mkdir()
    file.write_text("a")
    by_events = Changes(lambda: [file], [file.parent])
    silent = Changes(lambda: [file], [elsewhere])  # events come from a folder in which nothing happens, as from a shared one
    try:
        time.sleep(0.2)
        file.with_name("new").write_text("b")
        file.with_name("new").replace(file)  # as editors do it
        assert changed(by_events) == {file}
        assert changed(silent) == {file}
        while not silent.polling:
            time.sleep(0.01)
        assert not by_events.polling
        file.write_text("longer")
        assert changed(silent) == {file}
        assert changed(by_events) == {file}
    finally:
        by_events.close()
        silent.close()


def test_a_lab_whose_tests_cannot_be_read_is_a_sentence(work_tree: Path) -> None:
    lab = Lab.read(work_tree / "labs" / LAB_03.folder.name)
    lab.tests.write_text("this is no Python\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "labkit", "watch", "03"]
    ran = subprocess.run(command, cwd=work_tree, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "the tests of lab 03 could not be made ready" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr
