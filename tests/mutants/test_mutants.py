"""Tests that each wrong implementation fails with the message in killed.txt, and that each right one passes.

To write killed.txt and the table: MINI_VLLM_LABS_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/mutants/test_mutants.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from verdicts import Verdict, verdicts
from whole import HERE, misconception, mutants_of, whole

from labkit.system.labs import Lab, all_labs

LABS = [lab for lab in all_labs() if Path(__file__).with_name(f"lab-{lab.number}").is_dir()]
WRITE = os.environ.get("MINI_VLLM_LABS_WRITE_GOLDEN") == "1"
AT_LEAST = {"01": 20, "03": 30, "02": 25}
"""The least number of wrong implementations of each lab."""

each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
Graded = dict[Path, Verdict]


@pytest.fixture(scope="session")
def graded() -> Callable[[Lab], Graded]:
    """Grades every mutant of a lab, wrong and right, once for all tests."""
    known: dict[str, Graded] = {}

    def grade(lab: Lab) -> Graded:
        if lab.number not in known:
            files = {file.stem: file for file in mutants_of(lab) + mutants_of(lab, "right")}
            found = verdicts(lab, {name: whole(lab, file) for name, file in files.items()})
            known[lab.number] = {files[name]: verdict for name, verdict in found.items()}
        return known[lab.number]

    return grade


def killed_text(wrong: Graded) -> str:
    """Returns the text of killed.txt: the misconception of each mutant, the test that fails, and its message."""
    entries = []
    for file, verdict in wrong.items():
        # The folder of a test and the last digits of a product differ between machines.
        stable = re.sub(r"/\S*/(?=test_)", "", verdict.message)
        stable = re.sub(r"-?\d+\.\d{3,}(e-\d+)?", lambda number: f"{float(number[0]):.2f}", stable)
        message = "".join(f"    {line}\n" for line in stable.splitlines())
        entries.append(f"{file.stem}: {misconception(file)}\n  fails {verdict.task}, {verdict.test}\n{message}")
    return "\n".join(entries)


def table(lab: Lab) -> str:
    """Returns the README's table of one lab, from its killed.txt."""
    killed = re.findall(
        r"^(\w+): (.*)\n  fails (\w+),", (HERE / f"lab-{lab.number}" / "killed.txt").read_text(encoding="utf-8"), re.M
    )
    heading = f"Lab {lab.number}: {len(killed)} wrong implementations, all of them killed.\n\n"
    rows = "".join(f"| {name} | {belief} | {task} |\n" for name, belief, task in killed)
    return f"{heading}| mutant | misconception | task that fails |\n|---|---|---|\n{rows}"


def golden(file: Path, text: str) -> str:
    """Returns the contents of a golden file. Writes ``text`` to it first if WRITE is set."""
    if WRITE:
        file.write_text(text, encoding="utf-8")
    return file.read_text(encoding="utf-8")


@each_lab
def test_every_wrong_implementation_is_killed(lab: Lab, graded: Callable[[Lab], Graded]) -> None:
    wrong = {file: graded(lab)[file] for file in mutants_of(lab)}
    for file, verdict in wrong.items():
        print(f"lab {lab.number}: {'survived' if verdict.passed else f'killed in {verdict.task}'}: {file.stem}")
    survived = [file.stem for file, verdict in wrong.items() if verdict.passed]
    assert not survived, f"lab {lab.number}'s test_lab.py lets these through: {survived}"
    assert len(wrong) >= AT_LEAST[lab.number]


@each_lab
def test_what_kills_it_teaches_what_it_taught(lab: Lab, graded: Callable[[Lab], Graded]) -> None:
    said = killed_text({file: graded(lab)[file] for file in mutants_of(lab)})
    assert golden(HERE / f"lab-{lab.number}" / "killed.txt", said) == said, __doc__


@each_lab
def test_every_right_implementation_passes(lab: Lab, graded: Callable[[Lab], Graded]) -> None:
    right = {file.stem: graded(lab)[file] for file in mutants_of(lab, "right")}
    assert {name: verdict for name, verdict in right.items() if not verdict.passed} == {}
    assert len(right) >= 5


def test_the_table_of_the_readme() -> None:
    readme = HERE / "README.md"
    before = re.split(r"(?<=<!-- written by test_mutants.py -->\n)", readme.read_text(encoding="utf-8"))[0]
    written = before + "".join(f"\n{table(lab)}" for lab in LABS)
    assert golden(readme, written) == written, __doc__


@each_lab
def test_each_misconception_is_one_line_and_its_own(lab: Lab) -> None:
    said = [misconception(file) for file in mutants_of(lab)]
    assert all(line.endswith(".") for line in said)
    assert len(set(said)) == len(said)
