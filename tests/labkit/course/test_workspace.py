"""The board, hints, the solution, reset and start, run as commands in a separate work tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
import typer
from terminal import Terminal

from labkit.check.report import TaskResult, TestResult
from labkit.cli.main import app
from labkit.course.progress import TaskState, state_of
from labkit.system.labs import ROOT, all_labs, find_lab

LAB_03 = find_lab("03")
SOLUTION = (LAB_03.folder / "solution.py").read_text(encoding="utf-8")


@pytest.fixture
def lab(work_tree: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of ./lab in the work tree."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "labkit", *arguments],
            cwd=work_tree,
            env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def starter(work_tree: Path) -> Path:
    """The learner's file of lab 03."""
    return work_tree / "labs" / LAB_03.folder.name / "starter.py"


def board_of(said: str, number: str) -> dict[str, str]:
    """Returns a lab's tasks and the state that the board shows for each."""
    part = said.split(f"Lab {number}  ")[1].split("\n\n")[0]
    return {found[1]: found[2].strip() for found in re.finditer(r"^  (\w+) +\d+  (.{16})", part, re.MULTILINE)}


def test_every_pristine_starter_is_the_one_in_the_lab() -> None:
    """When a starter changes, copy it: cp labs/LAB/starter.py labkit/course/starters/LAB.txt"""
    for each in all_labs():
        assert each.pristine.read_bytes() == each.implementation("starter").read_bytes(), each.pristine


def test_the_board_shows_the_state_of_the_current_files(
    lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    names = [task.name for task in LAB_03.tasks]
    said = lab().stdout
    assert board_of(said, "03") == dict.fromkeys(names, "not started")
    assert said.splitlines()[-1].startswith("Next: ./lab start 01")
    assert max(map(len, said.splitlines()[:-1])) <= 80

    starter.write_text(SOLUTION.replace("if loaded.shape != wanted:", "if False:"), encoding="utf-8")
    assert set(board_of(lab().stdout, "03").values()) == {"not checked"}

    assert lab("check", "03", "--impl", "starter").returncode == 1
    said = lab().stdout
    assert board_of(said, "03") == dict.fromkeys(names, "passed") | {"loud": "failing"}
    assert "(CPU-OK, 75 of 100 points)" in said

    right = starter.read_text(encoding="utf-8")
    starter.write_text(f"{right}\n# one more line\n", encoding="utf-8")
    assert set(board_of(lab().stdout, "03").values()) == {"not checked"}, "a verdict on other bytes does not count"
    starter.write_text(right, encoding="utf-8")
    assert board_of(lab().stdout, "03")["loud"] == "failing", "the bytes are again those of the verdict"
    engine = starter.parents[2] / "mini_vllm" / "contract.py"
    engine.write_text(engine.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert set(board_of(lab().stdout, "03").values()) == {"not checked"}, "the verdict depends on the engine too"


@pytest.mark.parametrize(
    "noted",
    [
        "",
        "[]",
        "{",
        '{"digest": 1}',
        '{"tasks": {"names": ["passed", ""]}}',
        '{"digest": null, "tasks": 7, "hints": {"names": "x"}}',
    ],
)
def test_the_board_ignores_a_damaged_progress_file(
    noted: str, lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    starter.write_text(SOLUTION, encoding="utf-8")
    folder = starter.parents[1] / ".progress"
    folder.mkdir()
    (folder / "03.json").write_text(noted, encoding="utf-8")
    ran = lab()
    assert ran.returncode == 0
    assert set(board_of(ran.stdout, "03").values()) == {"not checked"}
    assert "Hint 1 of 3 for names" in lab("hint", "03").stdout


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_no_command_crashes_on_a_missing_or_binary_starter(
    content: bytes | None, lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    starter.unlink()
    if content is not None:
        starter.write_bytes(content)
    board = lab()
    assert set(board_of(board.stdout, "03").values()) == {"not checked"}
    for command in (("hint", "03"), ("solution", "03"), ("solution", "03", "--i-give-up"), ("check", "03", "--impl", "starter")):
        ran = lab(*command)
        assert "bug of this project" not in ran.stdout, command
    assert "starter.py" in ran.stdout
    assert "100 of 100" in lab("check", "03", "--solution").stdout
    assert lab("reset", "03").returncode == 0
    assert starter.exists()


def test_progress_survives_git(lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path, work_tree: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *arguments], cwd=work_tree, check=True, capture_output=True)

    (work_tree / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "as it is given out")
    lab("hint", "03", "names")
    starter.write_text("x = 1\n", encoding="utf-8")
    git("stash")
    git("clean", "-fd")
    git("checkout", "-q", "-b", "other")
    assert "Hint 2 of 3 for names" in lab("hint", "03", "names").stdout
    status = subprocess.run(["git", "status", "--porcelain"], cwd=work_tree, check=True, capture_output=True, text=True)
    assert status.stdout == ""


def test_hints_come_one_by_one(lab: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    hints = LAB_03.find_task("slices").hints
    for number in (1, 2, 3, 3):
        assert lab("hint", "3", "slices").stdout == f"Hint {number} of 3 for slices: {hints[number - 1]}\n"
    assert "Hint 1 of 3 for names" in lab("hint", "03").stdout, "without a name: the first task that is left"
    wrong = lab("hint", "03", "slizes")
    assert wrong.returncode == 1
    assert wrong.stdout == "lab: lab 03 has no task 'slizes'; its tasks are names, slices, loud, load, theorem\n"


def test_the_solution_is_shown_after_passing_or_giving_up(
    lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    refused = lab("solution", "03")
    assert refused.returncode == 1
    assert "lab 03 has not passed yet; open tasks: names, slices, loud, load, theorem." in refused.stdout
    assert "+++" not in refused.stdout
    given_up = lab("solution", "03", "--i-give-up").stdout
    assert given_up.startswith("--- starter.py (yours)\n+++ solution.py\n")
    assert "\n+" in given_up

    starter.write_text(f"# mine\n{SOLUTION}", encoding="utf-8")
    assert lab("solution", "03").returncode == 1, "nobody has checked it"
    assert lab("check", "03", "--impl", "starter").returncode == 0
    assert "\n-# mine\n" in lab("solution", "03").stdout


def test_reset_loses_nothing_and_needs_no_git(lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path) -> None:
    given_out = starter.read_bytes()
    assert "your version was copied" not in lab("reset", "03").stdout, "there was none"
    for work in (b"first = 1\n", b"second = \xff\n"):
        starter.write_bytes(work)
        said = lab("reset", "03").stdout
        kept = starter.parents[2] / re.search(r"^your version was copied to (.*)$", said, re.MULTILINE)[1]  # type: ignore[index]
        assert kept.read_bytes() == work
        assert re.fullmatch(r"lab-03-\d{4}-\d\d-\d\d-\d{6}-\d{6}\.py", kept.name)
        assert starter.read_bytes() == given_out
        assert f"cp {kept.relative_to(starter.parents[2])} labs/" in said
    starter.unlink()
    assert lab("reset", "03").returncode == 0
    assert starter.read_bytes() == given_out


def test_reset_changes_nothing_if_the_copy_cannot_be_written(
    lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    starter.write_text("mine = 1\n", encoding="utf-8")
    (starter.parents[1] / ".progress").write_text("a file where the folder should be")
    refused = lab("reset", "03")
    assert refused.returncode == 1
    assert "nothing has been changed" in refused.stdout
    assert starter.read_text(encoding="utf-8") == "mine = 1\n"


def test_start_opens_the_readme_and_the_starter(
    lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path, tmp_path: Path
) -> None:
    editor = tmp_path / "an editor"
    editor.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.opened"\n')
    editor.chmod(0o755)
    said = lab("start", "03", EDITOR=f"'{editor}' --wait", VISUAL="", TERM_PROGRAM="")
    assert said.returncode == 0
    assert (tmp_path / "an editor.opened").read_text().splitlines() == [
        "--wait",
        str(starter.with_name("README.md")),
        str(starter),
    ]
    assert "Next: ./lab watch 03" in said.stdout

    bare = {"PATH": str(tmp_path), "EDITOR": "", "VISUAL": "", "TERM_PROGRAM": ""}
    said = lab("start", "03", **bare)
    assert "No editor was found" in said.stdout
    assert str(starter) in said.stdout
    said = lab("start", "03", **(bare | {"EDITOR": "no-such-editor"}))
    assert said.returncode == 1
    assert said.stdout.startswith("lab: no-such-editor could not open the lab")

    (tmp_path / "code").write_text(editor.read_text())
    (tmp_path / "code").chmod(0o755)
    lab(
        "start",
        "03",
        **(bare | {"TERM_PROGRAM": "vscode", "EDITOR": "no-such-editor", "PATH": f"{tmp_path}:{os.environ['PATH']}"}),
    )
    assert (tmp_path / "code.opened").read_text().splitlines() == [
        "--reuse-window",
        str(starter.with_name("README.md")),
        str(starter),
    ]


def test_a_verdict_is_printed_even_if_it_cannot_be_stored(
    lab: Callable[..., subprocess.CompletedProcess[str]], starter: Path
) -> None:
    starter.write_text(SOLUTION, encoding="utf-8")
    (starter.parents[1] / ".progress").write_text("a file where the folder should be")
    ran = lab("check", "03", "--impl", "starter")
    assert ran.returncode == 0
    assert "100 of 100 points" in ran.stdout
    assert "your progress cannot be stored" in ran.stdout


def test_help_shows_every_command_in_80_columns(work_tree: Path) -> None:
    terminal = Terminal("--help", height=50, cwd=work_tree)
    assert terminal.end() == 0
    assert "Usage: ./lab [OPTIONS] COMMAND" in terminal.text
    assert "--install-completion" in terminal.text
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^│ {command} +[A-Z].*[.] +│$", terminal.text, re.MULTILINE), f"{command}: one line, not wrapped"
    assert "…" not in terminal.text, "no line is truncated"


def test_help_in_a_pipe_is_plain_text_of_80_columns(lab: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    said = lab("--help").stdout
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 80
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        assert command.help.partition("\n\n")[0] in said, command.name


def test_the_board_in_a_terminal(work_tree: Path) -> None:
    terminal = Terminal(height=50, cwd=work_tree)
    assert terminal.end() == 0
    assert "Next: ./lab start 01" in terminal.text
    assert terminal.text.index("Lab 01") < terminal.text.index("Lab 03") < terminal.text.index("Lab 02")


def test_the_board_imports_no_torch(work_tree: Path) -> None:
    code = "import sys\nfrom labkit.cli import main\nmain.board.show_board()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], cwd=work_tree, check=True, capture_output=True)


def test_tab_completes_commands_labs_and_tasks() -> None:
    shell = pexpect.spawn("bash", ["--norc", "--noprofile"], cwd=ROOT, dimensions=(24, 80), encoding="utf-8", timeout=60)
    shell.sendline("""PS1='$ '; eval "$(./lab --show-completion bash)"; echo rea""dy""")
    shell.expect("ready\r\n")
    shell.send("./lab wat\t")
    shell.expect("./lab watch ")
    shell.send("\x15./lab hint 01 inv\t")
    shell.expect("./lab hint 01 invariants ")
    shell.close(force=True)


@pytest.mark.parametrize(("debug", "shown"), [((), False), (("--debug",), True)])
def test_a_bug_is_reported_in_a_sentence_without_debug(
    debug: tuple[str, ...], shown: bool, lab: Callable[..., subprocess.CompletedProcess[str]], work_tree: Path
) -> None:
    (work_tree / "labkit" / "course" / "workspace.py").write_text(
        "def next_hint(*_): 1 / 0\ntask_to_help = max\n", encoding="utf-8"
    )
    ran = lab(*debug, "hint", "03")
    assert ran.returncode == 1
    assert ("Traceback" in ran.stderr) == shown
    assert shown or re.match(r"lab: a bug of this project, \w+Error: .*; \./lab --debug hint 03 shows the traceback", ran.stdout)


@pytest.mark.parametrize(
    ("tests", "state"),
    [
        (
            (TestResult("a", "passed", against="captured/x.json, recorded earlier"), TestResult("b", "skipped", "no CUDA")),
            TaskState("passed on captured data only", "1 of 2 tests skipped: no CUDA"),
        ),
        ((TestResult("a", "passed", against="the real vLLM 0.32.0, live"),), TaskState("passed")),
        ((TestResult("a", "skipped", "no CUDA"),), TaskState("skipped", "no CUDA")),
        (
            (TestResult("a", "failed", "NotImplementedError: x"), TestResult("b", "failed", "1 is not 2")),
            TaskState("failing", "NotImplementedError: x"),
        ),
        ((TestResult("a", "failed", "NotImplementedError: x"), TestResult("b", "passed")), TaskState("not started")),
        (
            (TestResult("a", "passed"), TestResult("b", "not run")),
            TaskState("not checked", "did not run: a test before it did not finish"),
        ),
    ],
)
def test_the_state_of_a_task(tests: tuple[TestResult, ...], state: TaskState) -> None:
    assert state_of(TaskResult(find_lab("02").tasks[0], tests)) == state
