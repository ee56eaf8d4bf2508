"""``./lab doctor`` on hosts that lack one thing each.

What each command says there was written after its own words: docker's refusals and nvidia-smi's tables as NVIDIA and Docker print
them, the machine without a GPU as recorded on one. No host with a GPU was at hand.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from labkit.system.doctor import DOCKER_INFO, NO_TOOLKIT, SMI, Answer, Finding, Host, examine, show, torch_command
from labkit.system.labs import ROOT

INFO, VERSION = DOCKER_INFO, "docker version --format {{.Server.Version}}"
TORCH = torch_command(Path(sys.prefix))
GB = 10**9


class Recorded(Host):
    """A host whose answers were written down; what was not is not there."""

    def __init__(
        self, commands: Mapping[str, tuple[int, str]], files: Mapping[str, str], shm: int, free: int, **environment: str
    ) -> None:
        self.commands, self.files, self.shm, self.free, self.environment = commands, files, shm, free, environment

    def run(self, command: str) -> Answer:
        return Answer(command, *self.commands.get(command, (127, "")))

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def disk(self, path: str) -> tuple[int, int]:
        return (self.shm, self.shm) if path == "/dev/shm" else (100 * GB, self.free if path == str(ROOT) else 0)


SERVER = {
    VERSION: (0, "28.2.2\n"),
    INFO: (0, '{"Runtimes":{"io.containerd.runc.v2":{},"nvidia":{},"runc":{}},"DockerRootDir":"/var/lib/docker"}'),
    SMI: (0, "NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB\n"),
    "nvidia-smi": (0, "| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0  |\n"),
    "nvidia-ctk --version": (0, "NVIDIA Container Toolkit CLI version 1.18.0\ncommit: f8daa5e2\n"),
    "devcontainer --version": (0, "0.89.0\n"),
    TORCH: (0, '["2.13.0+cu130", "13.0", true, ["NVIDIA H100 80GB HBM3"]]\n'),
}
FILES = {"/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable:   60000000 kB\n", "/etc/cdi/nvidia.yaml": "cdiVersion: 0.5.0"}
LAPTOP = {TORCH: (0, '["2.13.0+cpu", null, false, []]\n')}


def found(host: Host) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(host)}


def test_a_server_with_everything_has_nothing_to_fix() -> None:
    findings = found(Recorded(SERVER, FILES, 32 * GB, 100 * GB))
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert findings["GPU"].found == "NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB"
    assert findings["toolkit"].found == "NVIDIA Container Toolkit CLI version 1.18.0"
    assert findings["torch"].found == "2.13.0+cu130 sees NVIDIA H100 80GB HBM3"


def test_a_laptop_without_docker_and_gpu_can_do_all_labs() -> None:
    findings = found(Recorded(LAPTOP, FILES, 8 * GB, 100 * GB))
    assert {name: finding.state for name, finding in findings.items() if finding.state != "ok"} == {"docker": "note"}
    assert findings["GPU"].found == "no NVIDIA driver; the labs need none"


@pytest.mark.parametrize(
    ("change", "what", "state", "told"),
    [
        ({"nvidia-ctk --version": (127, "")}, "toolkit", "fix", f"would fail with: {NO_TOOLKIT}. Run sudo scripts/"),
        ({INFO: (0, '{"Runtimes":{"runc":{}}}')}, "toolkit", "fix", f"may fail with: {NO_TOOLKIT}"),
        ({INFO: (0, '{"Runtimes":{"nvidia":{}},"DockerRootDir":"/var/snap/docker/common"}')}, "docker", "note", "from a snap"),
        ({VERSION: (1, "permission denied while trying to connect to the Docker API")}, "docker", "note", "usermod -aG docker"),
        ({VERSION: (1, "Cannot connect to the Docker daemon.")}, "docker", "note", "systemctl start docker"),
        ({"nvidia-smi": (0, "Driver Version: 550.54   CUDA Version: 12.4")}, "GPU", "note", "the driver supports CUDA 12.4"),
        ({SMI: (9, "NVIDIA-SMI has failed because it couldn't communicate with it.")}, "GPU", "note", "does not answer"),
        ({TORCH: (0, '["2.13.0+cu130", "13.0", false, []]')}, "torch", "note", "a container must be started with --gpus all."),
        ({TORCH: (0, '["2.13.0+cpu", null, false, []]')}, "torch", "ok", "tox -e lab02-gpu has an environment of its own"),
        ({TORCH: (1, "ImportError: libtorch.so: cannot open shared object file")}, "torch", "fix", "ImportError: libtorch.so"),
    ],
)  # fmt: skip
def test_a_server_that_lacks_one_thing_is_told_which(
    change: dict[str, tuple[int, str]], what: str, state: str, told: str
) -> None:
    finding = found(Recorded(SERVER | change, FILES, 32 * GB, 100 * GB))[what]
    assert finding.state == state
    assert told in f"{finding.found} {finding.fix}"


@pytest.mark.parametrize(
    ("files", "shm", "free", "what", "state", "told"),
    [
        ({"/proc/meminfo": "MemAvailable: 1500000 kB"}, GB, 9 * GB, "memory", "fix", "1.5 GB available The tour needs 3 GB"),
        ({}, 67_108_864, 9 * GB, "shared memory", "note", "67 MB Start the container with --ipc=host or --shm-size=2g"),
        ({}, GB, GB // 2, "disk", "fix", "0.5 GB free Make room for"),
        ({"/etc/cdi/nvidia.yaml": None}, GB, 9 * GB, "CDI", "note", "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"),
    ],
)
def test_a_server_with_too_little_of_something(
    files: dict[str, str], shm: int, free: int, what: str, state: str, told: str
) -> None:
    there = {path: text for path, text in (FILES | files).items() if text}
    finding = found(Recorded(SERVER, there, shm, free))[what]
    assert (finding.state, told in f"{finding.found} {finding.fix}") == (state, True), finding


@pytest.mark.parametrize(("value", "state"), [("", "note"), ("-1", "note"), ("0,1", "ok")])
def test_gpus_that_a_variable_hides(value: str, state: str) -> None:
    assert found(Recorded(SERVER, FILES, GB, 9 * GB, CUDA_VISIBLE_DEVICES=value))["visible GPUs"].state == state


def test_an_environment_that_is_not_as_pinned(tmp_path: Path) -> None:
    environment = next(
        finding for finding in examine(Recorded(SERVER, FILES, GB, 9 * GB), tmp_path) if finding.what == "environment"
    )
    assert (environment.state, environment.fix) == ("fix", "Run ./lab: it installs the pins.")


def test_the_verdict_follows_the_fixes_and_fits_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([Finding("disk", "ok", "9 GB free")])
    assert not show([Finding("disk", "fix", "1 GB\x1b free", "Make room for 3 GB.")])
    assert capsys.readouterr().out.splitlines() == [
        "ok    disk           9 GB free",
        "Nothing to fix: all labs can be done here.",
        "fix   disk           1 GB\\x1b free",
        "                     Make room for 3 GB.",
        "1 to fix",
    ]


def test_this_machine_as_it_is() -> None:
    done = subprocess.run([sys.executable, "-m", "labkit", "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"Python {sys.version.split()[0]}, all as pinned" in done.stdout
    assert "torch          2.13.0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
