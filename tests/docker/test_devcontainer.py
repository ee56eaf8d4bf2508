"""The dev containers, with the real devcontainer CLI; and the compose file, with the real docker compose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docker_engine import ROOT, Docker

CLI = "@devcontainers/cli@0.89.0"


def config(kind: str, tree: Path = ROOT) -> dict[str, object]:
    found: dict[str, object] = json.loads((tree / ".devcontainer" / kind / "devcontainer.json").read_text())
    return found


@pytest.fixture(scope="session")
def devcontainer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CLI, from the npm registry."""
    folder = tmp_path_factory.mktemp("cli")
    if not shutil.which("npm"):
        pytest.skip("NOT RUN, there is no npm to install the devcontainer CLI with")
    done = subprocess.run(["npm", "install", "--prefix", folder, CLI], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT RUN, the devcontainer CLI cannot be installed: {done.stderr.strip()[-200:]}")
    return str(folder / "node_modules" / ".bin" / "devcontainer")


def test_it_comes_up_and_grades(docker: Docker, devcontainer: str, tree: Path, build_arguments: dict[str, str]) -> None:
    path = tree / ".devcontainer" / "cpu" / "devcontainer.json"
    local = config("cpu", tree)
    # What this machine needs besides: its base, its wheels, and no bridge.
    local["build"] = local["build"] | {"args": build_arguments, "options": ["--network=host"]}  # type: ignore[operator]
    local["runArgs"] = [*local["runArgs"], "--network=host"]  # type: ignore[misc]
    if os.getuid() == 0:
        local["updateRemoteUserUID"] = False  # learner cannot be given root's id
    path.write_text(json.dumps(local))
    where = ["--docker-path", docker.client, "--workspace-folder", tree, "--config", path]
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    up = subprocess.run([devcontainer, "up", *where], env=environment, capture_output=True, text=True, timeout=1200)
    assert up.returncode == 0, up.stderr[-3000:]
    name = json.loads(up.stdout.splitlines()[-1])["containerId"]
    try:

        def inside(*command: str) -> str:
            done = subprocess.run([devcontainer, "exec", *where, *command], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        assert "100 of 100 points" in inside("./lab", "check", "01", "--solution")
        assert "Lab 01" in inside("./lab")
        assert inside("id", "-un").strip() == "learner"
        assert inside("/opt/mini-vllm-labs/bin/python", "-m", "pytest", "--collect-only", "-q", "labs").count("test_lab.py") > 90
        assert "ruff" in inside("ruff", "--version")
    finally:
        docker("rm", "-f", name)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_cli_reads_the_configuration(kind: str, devcontainer: str, docker: Docker) -> None:
    path = ROOT / ".devcontainer" / kind / "devcontainer.json"
    command = [devcontainer, "read-configuration", "--docker-path", docker.client, "--workspace-folder", ROOT, "--config", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["configuration"]["name"].startswith("mini-vllm-labs")


def test_the_two_differ_in_the_target_and_the_gpu_alone() -> None:
    cpu, cuda = config("cpu"), config("cuda")
    assert (cpu["build"]["target"], cuda["build"]["target"]) == ("cpu-dev", "cuda-dev")  # type: ignore[index]
    assert set(cuda["runArgs"]) - set(cpu["runArgs"]) == {"--gpus=all"}  # type: ignore[call-overload]
    assert {key for key in cpu if cpu[key] != cuda[key]} == {"name", "build", "runArgs"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_key_is_documented_and_no_token_is_built_in(kind: str) -> None:
    """Keys: containers.dev/implementors/json_reference."""
    documented = {"name", "build", "remoteUser", "updateRemoteUserUID", "init", "runArgs", "workspaceMount", "workspaceFolder"}
    documented |= {"mounts", "remoteEnv", "postCreateCommand", "postAttachCommand", "customizations"}
    found = config(kind)
    assert set(found) <= documented
    assert set(found["build"]) <= {"dockerfile", "context", "target"}  # type: ignore[call-overload]
    assert found["remoteEnv"] == {"HF_TOKEN": "${localEnv:HF_TOKEN}"}
    assert (ROOT / str(found["postCreateCommand"])).stat().st_mode & 0o111
    lifecycle = (ROOT / str(found["postCreateCommand"])).read_text()
    # Nothing gated: a failure there skips all that follows.
    assert not re.search(r"^[^#]*(fetch|download|hf )", lifecycle, re.MULTILINE)


def test_compose_reads_its_file(docker: Docker) -> None:
    for command in ([docker.client, "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("NOT RUN, there is no docker compose")
    done = subprocess.run([*command, "--profile", "gpu", "config"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"lab-gpu:.*driver: nvidia", done.stdout, re.DOTALL)
    assert "mini-vllm-labs-cache" in done.stdout
