"""The cpu image, as people run it; nothing of it needs a network."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from docker_engine import SECRET, STRAY, Docker

BOXED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")


def test_alone_it_shows_the_board(docker: Docker, image: str) -> None:
    said = docker.run(image).stdout
    assert "Lab 01" in said
    assert "Next: " in said


@pytest.mark.parametrize("how", ["plain", "boxed", "boxed, somebody else"])
@pytest.mark.parametrize("lab", ["01", "03"])
def test_it_grades(lab: str, how: str, docker: Docker, image: str) -> None:
    options = [*(BOXED if "boxed" in how else ()), *(("--user", "4242:4343") if "else" in how else ())]
    assert "100 of 100 points" in docker.run(*options, image, "check", lab, "--solution").stdout


def test_it_grades_against_the_real_vllm(docker: Docker, image: str) -> None:
    assert "100 of 100 points" in docker.run(image, "check", "02", "--solution").stdout
    said = docker.run(image, "trace", "llama-3-8b", "--tp", "2", "--verify").stdout
    assert "(3072, 4096)" in said


@pytest.mark.parametrize("user", [None, "4242:4343"])
def test_a_learner_s_own_labs_are_graded_and_nothing_of_root_s_is_left_in_them(
    user: str | None, docker: Docker, image: str, tree: Path, tmp_path: Path
) -> None:
    labs = tmp_path / "labs"
    shutil.copytree(tree / "labs", labs)
    starter = labs / "lab-03-weight-mapping" / "starter.py"
    starter.write_text((starter.parent / "solution.py").read_text())
    before = {path for path in labs.rglob("*")}
    owner = (4242, 4343) if user else (1000, 1000)
    if os.getuid() == 0:
        for path in (labs, *before):
            os.chown(path, *owner)
    options = ["--user", user] if user else []
    mounted = docker.run(*options, "-v", f"{labs}:/workspace/labs", image, "check", "03")
    assert "100 of 100 points" in mounted.stdout
    failed = docker.run(*options, "-v", f"{labs}:/workspace/labs", image, "check", "01", check=False)
    assert (failed.returncode, "0 of 100 points" in failed.stdout) == (1, True)
    written = {path for path in labs.rglob("*")} - before
    assert {path.stat().st_uid for path in written} <= {owner[0]}


@pytest.mark.parametrize("user", [None, "4242:4343"])
def test_tox_takes_what_is_installed(user: str | None, docker: Docker, image: str) -> None:
    said = docker.run(*(["--user", user] if user else []), image, "tox", "-e", "lab03").stdout
    assert "lab03: OK" in said
    assert "congratulations" in said


def test_a_program_or_a_shell_can_be_named(docker: Docker, image: str) -> None:
    assert docker.run(image, "bash", "-c", "echo $0 in $PWD as $(id -un)").stdout == "bash in /workspace as learner\n"
    assert docker.run(image, "python", "-c", "import vllm; print(vllm.__version__)").stdout.splitlines()[-1] == "0.32.0"
    wrong = docker.run(image, "chekc", "01", check=False)
    assert wrong.returncode == 2
    assert "No such command" in wrong.stdout


def test_process_1_hands_signals_on(docker: Docker, image: str) -> None:
    name = docker("run", "-d", "--network", "none", image, "bash", "-c", "trap 'exit 3' TERM; sleep 1000 & wait").stdout.strip()
    try:
        assert "tini" in docker("exec", name, "cat", "/proc/1/comm").stdout
        time.sleep(1)
        docker("stop", "-t", "60", name)
        assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "3"
    finally:
        docker("rm", "-f", name)


def test_nothing_of_the_learner_s_and_no_token_is_in_it(docker: Docker, image: str) -> None:
    names = docker.run(image, "bash", "-c", "find /workspace -type f").stdout.split()
    assert "/workspace/labs/lab-01-add-a-toy-architecture/starter.py" in names
    assert not {f"/workspace/{name}" for name in STRAY} & set(names)
    assert SECRET not in docker("history", "--no-trunc", image).stdout
    assert SECRET not in docker("inspect", image).stdout
    found = f"grep -rl {SECRET} /workspace /home /etc /opt/mini-vllm-labs/bin /var/cache 2> /dev/null"
    assert docker.run(image, "bash", "-c", found, check=False).stdout == ""


def test_who_runs_and_what_is_not_there(docker: Docker, image: str) -> None:
    about = json.loads(docker("inspect", image).stdout)[0]["Config"]
    assert about["User"] == "1000"
    assert {name.rpartition(".")[2] for name in about["Labels"]} >= {"title", "description", "licenses"}
    assert docker.run(image, "bash", "-c", "command -v cc gcc g++ clang make", check=False).stdout == "", "no compiler"


def test_it_weighs_little_more_than_its_wheels_and_its_base(docker: Docker, image: str, base: str | None) -> None:
    """The bar is 1.15. The rest is bytecode, without which every start would compile what it imports."""
    sizes = "find /opt/mini-vllm-labs -type f -not -name '*.pyc' -printf '%s\\n' | awk '{sum += $1} END {print sum}'"
    wheels = float(docker.run(image, "bash", "-c", sizes).stdout)
    inspected = [json.loads(docker("inspect", name).stdout)[0]["Size"] for name in (image, base or "python:3.11-slim-bookworm")]
    assert inspected[0] <= 1.15 * (wheels + inspected[1])


def test_its_compiled_loops_are_used_whatever_times_a_checkout_has(build, docker: Docker, image: str, tree: Path) -> None:  # type: ignore[no-untyped-def]
    for source in (tree / "mini_vllm").rglob("*.py"):
        source.touch()
    with (tree / "README.md").open("a") as readme:
        readme.write("\n")  # so that the sources are copied again, and the loops come from the builder's cache
    compiled = "NUMBA_DEBUG_CACHE=1 python -m labkit.isolation.compiled_kernels"
    said = docker.run(build("cpu"), "bash", "-c", compiled).stdout
    assert "data loaded" in said
    assert "saved" not in said


def test_with_the_checkpoint_in_it_the_tour_needs_no_network(build, docker: Docker, image: str) -> None:  # type: ignore[no-untyped-def]
    said = docker.run(build("cpu", WITH_SMOLLM2="1"), "tour").stdout
    assert said.count("passed  lab ") == 3
    assert "Paris" in said
