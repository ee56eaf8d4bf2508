"""``./lab doctor``: checks the machine for what the labs need, and says how to fix each problem.

Three states. *ok*: nothing to do. *note*: the labs run, but something optional would not. *fix*: a requirement of the labs is
missing, or something is set up only in part and would fail later with an unclear message.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

from labkit.system.console import print_lines
from labkit.system.environment import has_vllm, pending_steps
from labkit.system.labs import ROOT

CUDA = (13, 0)
"""CUDA version of the pinned wheels. A driver supports the version that nvidia-smi shows, and all earlier ones."""

NO_TOOLKIT = 'could not select device driver "" with capabilities: [[gpu]]'
"""docker's error for --gpus if the NVIDIA container toolkit is missing or not registered."""

INSTALL = "scripts/install-nvidia-container-toolkit.sh"

SMI = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"
DOCKER_INFO = "docker info --format '{{json .}}'"
TORCH = """
import json, torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available(), names]))
"""
TIMEOUT = 60
"""Seconds until a command counts as hung; the import of torch takes longest."""

Answer = subprocess.CompletedProcess[str]


class Host:
    """Probes of this machine; tests replace them with recorded output."""

    environment: Mapping[str, str] = os.environ

    def run(self, command: str) -> Answer:
        """Runs a command line without a shell; returns status and stdout with stderr. 127: no such command; 124: it timed out."""
        try:
            return subprocess.run(
                shlex.split(command), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, timeout=TIMEOUT, text=True, errors="replace"
            )
        except (FileNotFoundError, PermissionError):
            return Answer(command, 127, "")
        except subprocess.TimeoutExpired:
            return Answer(command, 124, f"no answer in {TIMEOUT} seconds")

    def read(self, path: str) -> str:
        """Returns the text of a file, or "" if the file cannot be read."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return ""

    def disk(self, path: str) -> tuple[int, int]:
        """Returns the total and the free bytes of a folder's file system, or (0, 0) if the folder does not exist."""
        try:
            total, _, free = shutil.disk_usage(path)
        except OSError:
            return 0, 0
        return total, free


@dataclass(frozen=True)
class Finding:
    """The result of one check of the thing ``what``: its state (ok, note or fix), what the machine has, and what to do."""

    what: str
    state: str
    found: str
    fix: str = ""


def torch_command(prefix: Path) -> str:
    """Returns a command that prints a JSON list: torch's version, its CUDA version or null, if it sees a GPU, the GPUs' names."""
    return shlex.join([f"{prefix}/bin/python", "-P", "-c", TORCH])


def examine(host: Host, prefix: Path = Path(sys.prefix)) -> list[Finding]:
    """Checks a host and the Python environment at ``prefix``; returns the findings in the order to print them."""
    gpu, docker = host.run(SMI), host.run(DOCKER_INFO)
    toolkit, editor = host.run("nvidia-ctk --version"), host.run("devcontainer --version")
    has_gpu = gpu.returncode == 0
    findings = (
        _environment(prefix),
        _disk(host, prefix),
        _memory(host),
        _shared_memory(host),
        _docker(host, docker),
        Finding("devcontainer", "ok", "no command line is installed; VS Code has one" if editor.returncode else _last(editor)),
        _driver(host, gpu),
        _toolkit(toolkit, docker) if has_gpu and docker.returncode == 0 else None,
        _cdi(host) if has_gpu and toolkit.returncode == 0 else None,
        _visible_gpus(host) if has_gpu else None,
        _torch(host, prefix, has_gpu=has_gpu),
    )
    return [finding for finding in findings if finding]


def show(findings: Iterable[Finding]) -> bool:
    """Prints a line for each finding and its fix below it; returns whether all labs can run here."""
    fixes = 0
    for finding in findings:
        fixes += finding.state == "fix"
        print_lines(f"{finding.state:5} {finding.what:<14} {finding.found}")
        if finding.fix:
            print_lines(f"{'':20} {finding.fix}")
    print_lines(f"{fixes} to fix" if fixes else "Nothing to fix: all labs can be done here.")
    return fixes == 0


def _last(answer: Answer) -> str:
    return next((line.strip() for line in reversed(answer.stdout.splitlines()) if line.strip()), "")


def _checked(what: str, found: str, is_ok: bool, state: str, fix: str) -> Finding:
    return Finding(what, "ok", found) if is_ok else Finding(what, state, found, fix)


def _environment(prefix: Path) -> Finding:
    python = f"Python {sys.version.split()[0]}"
    if steps := pending_steps(prefix, ["base"]):
        return Finding("environment", "fix", f"{python}; not as pinned: {', '.join(steps)}", "Run ./lab: it installs the pins.")
    builds = [name for name in ("vllm-cpu", "vllm-cuda") if has_vllm(name, prefix)]
    real = "the real vLLM is installed" if builds else "lab 02 or the tour installs the real vLLM"
    return Finding("environment", "ok", f"{python}, all as pinned; {real}")


def _disk(host: Host, prefix: Path) -> Finding:
    free, needed = host.disk(str(ROOT))[1] / 1e9, 1 if has_vllm("vllm-cpu", prefix) else 3
    fix = f"Make room for {needed} GB on the disk of the work tree: {ROOT}"
    return _checked("disk", f"{free:.1f} GB free", free >= needed, "fix", fix)


def _memory(host: Host) -> Finding:
    available = re.search(r"MemAvailable:\s+(\d+) kB", host.read("/proc/meminfo"))
    if not available:
        return Finding("memory", "ok", "not reported by this system")
    free = int(available[1]) / 1e6
    fix = "The tour needs 3 GB: end other programs, or give the container more memory."
    return _checked("memory", f"{free:.1f} GB available", free >= 3, "fix", fix)


def _shared_memory(host: Host) -> Finding | None:
    total = host.disk("/dev/shm")[0]
    if not total:
        return None
    size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
    fix = "Start the container with --ipc=host or --shm-size=2g: vLLM's and torch's processes exchange tensors there."
    return _checked("shared memory", size, total >= 1e9, "note", fix)


def _docker(host: Host, info: Answer) -> Finding:
    answer = host.run("docker version --format {{.Server.Version}}")
    if answer.returncode == 127:
        return Finding("docker", "note", "not installed; only the containers need it", "https://docs.docker.com/engine/install/")
    if "permission denied" in answer.stdout.lower():
        fix = "Add yourself to the group docker (sudo usermod -aG docker $USER), then log in again."
        return Finding("docker", "note", "you have no permission to use its socket", fix)
    if answer.returncode:
        fix = "Start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to its address."
        return Finding("docker", "note", f"no engine answers: {_last(answer)}", fix)
    if "/var/snap/docker" in info.stdout:
        fix = (
            f"The snap cannot see the NVIDIA toolkit, and --gpus fails with: {NO_TOOLKIT}. Install Docker's own packages instead."
        )
        return Finding("docker", "note", f"engine {_last(answer)}, from a snap", fix)
    return Finding("docker", "ok", f"engine {_last(answer)}")


def _driver(host: Host, smi: Answer) -> Finding:
    if smi.returncode == 127:
        return Finding("GPU", "ok", "no NVIDIA driver; the labs need none")
    if smi.returncode:
        fix = "Reinstall the driver, or boot the kernel that it was built for; until then the labs run on the CPU."
        return Finding("GPU", "note", f"the driver does not answer: {_last(smi)}", fix)
    found = "; ".join(line.strip() for line in smi.stdout.splitlines() if line.strip())
    supported = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", host.run("nvidia-smi").stdout)
    if supported and (int(supported[1]), int(supported[2])) < CUDA:
        fix = f"The pinned wheels are built for CUDA {CUDA[0]}, which needs a driver of version 580 or later."
        return Finding("GPU", "note", f"{found}; the driver supports CUDA {supported[1]}.{supported[2]}", fix)
    return Finding("GPU", "ok", found)


def _toolkit(version: Answer, docker: Answer) -> Finding:
    if version.returncode:
        fix = f"docker run --gpus all would fail with: {NO_TOOLKIT}. Run sudo {INSTALL}, then try again."
        return Finding("toolkit", "fix", "a GPU, and no NVIDIA container toolkit", fix)
    first = version.stdout.splitlines()[0]
    if '"nvidia"' not in docker.stdout:
        fix = f"docker run --gpus all may fail with: {NO_TOOLKIT}. sudo {INSTALL} registers the toolkit and restarts docker."
        return Finding("toolkit", "fix", f"{first}, not registered with docker", fix)
    return Finding("toolkit", "ok", first)


def _cdi(host: Host) -> Finding:
    found = next((path for path in ("/etc/cdi/nvidia.yaml", "/var/run/cdi/nvidia.yaml") if host.read(path)), None)
    fix = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, then --device nvidia.com/gpu=all works (podman, rootless)."
    return _checked("CDI", found or "no specification of the GPUs", found is not None, "note", fix)


def _visible_gpus(host: Host) -> Finding | None:
    visible = host.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    hidden = visible.strip() in ("", "-1")
    found = f"CUDA_VISIBLE_DEVICES is {visible!r}" + (" and hides every GPU" if hidden else "")
    return _checked("visible GPUs", found, not hidden, "note", "Run unset CUDA_VISIBLE_DEVICES.")


def _torch(host: Host, prefix: Path, *, has_gpu: bool) -> Finding:
    answer = host.run(torch_command(prefix))
    try:
        version, cuda, available, names = json.loads(_last(answer))
    except ValueError:
        return Finding("torch", "fix", f"cannot be imported: {_last(answer)}", "Run rm -r .venv, then ./lab to reinstall it.")
    if available:
        return Finding("torch", "ok", f"{version} sees {', '.join(names)}")
    if has_gpu and cuda is None:
        fix = "For the GPU, tox -e lab02-gpu has an environment of its own with the CUDA build."
        return Finding("torch", "ok", f"{version}, the CPU build, which the labs need", fix)
    if has_gpu:
        fix = "Look at the lines above; a container must be started with --gpus all."
        return Finding("torch", "note", f"{version} (CUDA {cuda}) sees no GPU", fix)
    return Finding("torch", "ok", f"{version}, on the CPU")
