"""The GitHub Action around ``./lab verify``: its step run as the runner runs it, with the real ``./lab``."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from recordings import TINY, write_checkpoint

from labkit.checkpoints.known_models import implied_shapes

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".github" / "actions" / "verify-checkpoint"
ACTION: dict[str, Any] = yaml.safe_load((FOLDER / "action.yml").read_text())


def run(tmp_path: Path, **given: str) -> tuple[int, str, str]:
    """The exit status, what is set for later steps, and the summary."""
    step = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "verify")
    inputs = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | given
    values = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(FOLDER)}
    told = {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda found: values[found[1]], text) for name, text in step["env"].items()}
    output, summary = tmp_path / "output", tmp_path / "summary"
    environment = os.environ | told | {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), "OMP_NUM_THREADS": "1"}
    # As the runner calls it for shell: bash.
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    return ended.returncode, output.read_text(), summary.read_text()


def test_findings_fail_the_step_and_are_in_the_summary(tmp_path: Path) -> None:
    shapes = implied_shapes(TINY)
    del shapes["model.layers.1.self_attn.k_proj.weight"]
    write_checkpoint(tmp_path, TINY, shapes)
    status, output, summary = run(tmp_path, model=str(tmp_path), tp="1,2", logits="no")
    assert (status, output) == (1, "status=1\n")
    assert "missing: rows 128:192 of model.layers.1.self_attn.qkv_proj.weight" in summary
    assert json.loads((tmp_path / "verify-report.json").read_text())["status"] == 1


def test_a_model_that_is_not_there_is_no_finding_and_no_option(tmp_path: Path) -> None:
    """A name that begins with a dash is a name."""
    status, output, summary = run(tmp_path, model="--html")
    assert (status, output) == (2, "status=2\n")
    assert "there is no config.json in --html" in summary


def test_every_input_reaches_the_command() -> None:
    step = ACTION["runs"]["steps"][-1]
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(step["env"])))
    assert used == set(ACTION["inputs"])
    assert "${{" not in step["run"], "an input inside the script could end it and begin another"
