"""A class graded in containers of the cpu image: the right verdicts, for honest files and for those that attack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docker_engine import ROOT, Docker

from labkit.check.report import ReportError
from labkit.grading.container import Container

ATTACKS = ROOT / "tests" / "labkit" / "isolation" / "attacks"
LAB_03 = ROOT / "labs" / "lab-03-weight-mapping"


@pytest.fixture
def client_on_path(docker: Docker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client that the tests have found is the one that ``./lab grade`` finds."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").symlink_to(docker.client)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("client_on_path")
def test_a_class_is_graded_in_containers(image: str, tmp_path: Path) -> None:
    handed_in = tmp_path / "class"
    for name, file in {"ada": LAB_03 / "solution.py", "bob": LAB_03 / "starter.py", "eve": ATTACKS / "exits.py"}.items():
        (handed_in / name).mkdir(parents=True)
        shutil.copy(file, handed_in / name / "starter.py")
    command = [sys.executable, "-P", "-m", "labkit", "grade", str(handed_in), "--lab", "03", "--image", image]
    command += ["-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert {each["name"]: each["report"]["points"] for each in results} == {"ada": 100, "bob": 0, "eve": 0}
    written = (tmp_path / "out" / "results" / "ada.json").stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert (tmp_path / "out" / "results" / "ada.json").stat().st_mtime_ns == written, "what has a result is not graded again"


@pytest.mark.usefixtures("client_on_path")
@pytest.mark.parametrize(
    "attack", ["forges_the_report", "kills_the_judge", "changes_files", "fork_bomb", "fills_memory", "loops"]
)
def test_an_attack_earns_nothing_in_a_container(image: str, attack: str) -> None:
    try:
        report = Container(image).grade("03", (ATTACKS / f"{attack}.py").read_bytes())
    except ReportError:
        return  # it ended its own container: there is no verdict, and no point
    assert report["points"] == 0
    assert not report["passed"]


@pytest.mark.usefixtures("client_on_path")
def test_what_is_in_the_container_can_say_nothing_by_itself(image: str) -> None:
    """A whole report on the container's standard output, without the number that the judge alone was told."""
    forging = """
import glob
for place in glob.glob('/proc/*/fd/1'):
    try:
        open(place, 'w').write('{"points": 100}\\n')
    except OSError:
        pass
"""
    report = Container(image).grade("03", forging.encode())
    assert report["points"] == 0


def test_the_box_that_holds_it(docker: Docker, image: str) -> None:
    asked = "import os\nprint(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    said = docker("run", "--rm", *Container(image).options(), image, "python", "-c", asked).stdout.split()
    assert said[:2] == ["1000", "0" * 16]
    for what in ("open('/workspace/x', 'w')", "__import__('socket').create_connection(('192.0.2.1', 80), 3)"):
        refused = docker("run", "--rm", *Container(image).options(), image, "python", "-c", what, check=False)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stdout or "unreachable" in refused.stdout
