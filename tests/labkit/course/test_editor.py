"""The files in .vscode: their commands exist, their tests are found, and the dev containers have the same settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.system.labs import ROOT, all_labs

EDITOR = ROOT / ".vscode"
SETTINGS: dict[str, Any] = json.loads((EDITOR / "settings.json").read_text(encoding="utf-8"))
LAUNCH: list[dict[str, Any]] = json.loads((EDITOR / "launch.json").read_text(encoding="utf-8"))["configurations"]


def collected(arguments: list[str], environment: dict[str, str]) -> list[str]:
    """The ids of the tests that pytest finds."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return re.findall(r"^(\S+::.+)$", ran.stdout, re.MULTILINE)


def test_the_explorer_finds_every_test_of_every_lab_and_grades_the_learners_file() -> None:
    name, _, value = (EDITOR / "learner.env").read_text().strip().partition("=")
    assert (name, value) == ("LAB_IMPL", "starter")
    assert SETTINGS["python.envFile"] == "${workspaceFolder}/.vscode/learner.env"
    found = collected(SETTINGS["python.testing.pytestArgs"], {name: value})
    for lab in all_labs():
        functions = {one.partition("::")[2].partition("[")[0] for one in found if one.startswith(f"labs/{lab.folder.name}/")}
        assert functions == {test for task in lab.tasks for test in task.tests}


def test_tests_and_labs_do_not_collide() -> None:
    # Ray is not installed where this runs.
    left_out = [word for name in ("vllm", "docker", "labkit/grading/test_ray.py") for word in ("--ignore", f"tests/{name}")]
    found = collected(["labs", "tests", *left_out], {})
    assert len(found) == len(set(found))


@pytest.mark.parametrize("configuration", LAUNCH, ids=lambda each: each["name"].partition(":")[0])
def test_every_launch_configuration_finds_its_tests(configuration: dict[str, Any]) -> None:
    assert configuration["module"] == "pytest"
    lab = str(all_labs()[1].folder)
    arguments = [argument.replace("${fileDirname}", lab) for argument in configuration["args"]]
    assert collected(arguments, configuration["env"])


def test_a_run_under_the_debugger_stops_at_the_first_failure() -> None:
    """The arguments are pytest's own, so they are run as they are."""
    lab = all_labs()[1]
    arguments = [argument.replace("${fileDirname}", str(lab.folder)) for argument in LAUNCH[0]["args"]]
    command = [sys.executable, "-m", "pytest", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | LAUNCH[0]["env"], capture_output=True, text=True, check=False)
    assert "1 failed" in ran.stdout
    assert "NotImplementedError: task names" in ran.stdout


def test_every_task_runs_a_command_that_there_is() -> None:
    tasks = json.loads((EDITOR / "tasks.json").read_text(encoding="utf-8"))
    inputs = {each["id"]: each["default"] for each in tasks["inputs"]}
    for task in tasks["tasks"]:
        command = re.sub(r"\$\{input:(\w+)\}", lambda found: inputs[found[1]], task["command"])
        program, *arguments = command.split()
        assert program == "./lab"
        if arguments:
            ran = subprocess.run(
                [sys.executable, "-P", "-m", "labkit", arguments[0], "--help"], cwd=ROOT, capture_output=True, check=False
            )
            assert ran.returncode == 0, command


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_dev_containers_say_the_same(kind: str) -> None:
    """A workspace's settings win over a container's, which has its Python elsewhere."""
    container = json.loads((ROOT / ".devcontainer" / kind / "devcontainer.json").read_text(encoding="utf-8"))
    inside = container["customizations"]["vscode"]
    assert {key: SETTINGS[key] for key in inside["settings"].keys() & SETTINGS.keys()} == {
        key: inside["settings"][key] for key in inside["settings"].keys() & SETTINGS.keys()
    }
    assert "python.defaultInterpreterPath" in inside["settings"].keys() - SETTINGS.keys()
    recommended = json.loads((EDITOR / "extensions.json").read_text(encoding="utf-8"))["recommendations"]
    assert inside["extensions"] == recommended
    assert Path(inside["settings"]["python.defaultInterpreterPath"]).is_absolute()
