"""uv, the installer: how it gets here, what it is told of package indexes, and what it is asked. Standard library only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.system.errors import UserError

ELSEWHERE = "another package index is named by PIP_INDEX_URL, a folder of wheels by PIP_FIND_LINKS, a proxy by https_proxy"
"""What to do about an index that cannot be reached, as part of a sentence."""


def say(text: str) -> None:
    """One line of progress, on stderr: stdout belongs to the command that is waiting for the environment."""
    print(text, file=sys.stderr, flush=True)


def uv_path(prefix: Path) -> Path:
    """The uv of the environment at ``prefix``.

    Raises:
        UserError: it has none.
    """
    path = prefix / "bin" / "uv"
    if not path.exists():
        raise UserError(f"{prefix} has no uv; put it there with {prefix}/bin/python -m pip install -r requirements/uv.txt")
    return path


def uv_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for uv: what pip is told by PIP_* holds for uv too, where uv is not told otherwise."""
    variables = dict(environ)
    for ours, theirs, separator in (
        ("PIP_FIND_LINKS", ("UV_FIND_LINKS",), ","),
        ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
        ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
        ("PIP_CERT", ("SSL_CERT_FILE",), " "),
    ):
        if environ.get(ours) and not any(environ.get(name) for name in theirs):
            variables[theirs[0]] = separator.join(environ[ours].split())
    # pip takes a package from any index it knows; uv would stop at the first that has some version of it. Hashes guard both.
    variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    return variables


def no_index(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether pip is told to use folders of wheels alone; uv has no variable for it."""
    return environ.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "y", "t")


def uv_install(prefix: Path, options: Iterable[str]) -> bool:
    """Whether ``uv pip install`` succeeded in the environment at ``prefix``; its progress and its reasons are on stderr."""
    import subprocess

    command = [*_uv_pip(prefix, "install"), "--no-deps", *options]
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        command.append("--compile-bytecode")  # else every import would compile: that of vLLM takes 23 seconds then, and 14 so
    return _succeeds(command, env=uv_variables(), stdin=subprocess.DEVNULL)


def _succeeds(command: list[str], **options: Any) -> bool:
    """Whether an installer ends well."""
    import subprocess

    # File descriptors stay open for the lock's sake: were we killed, the next run would wait until uv, which goes on, has ended.
    if subprocess.run(command, close_fds=False, check=False, **options).returncode == 0:
        return True
    time.sleep(1)  # Ctrl-C goes to the installer and to us, and on a busy machine it ends before we are told
    return False


def offered(prefix: Path, pins: Path, options: Iterable[str] = (), patience: float | None = None) -> bool:
    """Whether an index has what ``pins`` names for this machine: uv itself is asked, so proxies, certificates and logins count.

    Args:
        prefix: the environment that holds uv.
        pins: a requirements file.
        options: which index, as uv's options; none for the configured one.
        patience: seconds to wait for a connection and for each part of the answer, and three times as long for all of it; after
            that the answer is no. Without it, uv's own patience and retries.
    """
    import subprocess

    hurry = (
        {"UV_HTTP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": f"{patience:.0f}", "UV_HTTP_TIMEOUT": f"{patience:.0f}"}
        if patience
        else {}
    )
    try:
        answer = subprocess.run(
            [*_uv_pip(prefix, "compile"), "--no-deps", "--quiet", str(pins), *options],
            env=uv_variables() | hurry,
            timeout=3 * patience if patience else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and "==" in answer.stdout


def _uv_pip(prefix: Path, verb: str) -> list[str]:
    index = ["--no-index"] if no_index() else []
    return [str(uv_path(prefix)), "pip", verb, "--python", str(prefix / "bin" / "python"), *index]


def fetch_uv(prefix: Path, pins: Path) -> None:
    """Puts uv into the environment at ``prefix`` with pip: that of the Python which runs this, else one that ensurepip brings.

    Raises:
        UserError: there is no pip, or it could not fetch uv.
    """
    import subprocess
    from importlib.util import find_spec

    python = str(prefix / "bin" / "python")
    found = find_spec("pip")
    if found and found.origin:
        pip = [python, str(Path(found.origin).parent)]  # our pip, run by the environment's Python, so that it installs there
    elif subprocess.run([python, "-P", "-m", "ensurepip"], capture_output=True, check=False).returncode == 0:
        pip = [python, "-P", "-m", "pip"]
    else:
        raise UserError(
            "this Python has neither pip nor ensurepip, so nothing can be installed with it; on Debian and Ubuntu run "
            "sudo apt-get install python3-venv (or python3.11-venv), then the same command again"
        )
    say("uv: the installer, 20 MB")
    command = [*pip, "install", "--require-hashes", "--requirement", str(pins), "--only-binary", ":all:", "--no-user"]
    command += ["--disable-pip-version-check", "--no-warn-script-location"]
    if not _succeeds(command, stdout=sys.stderr):
        raise UserError(f"pip could not fetch uv; its reason is above. When that is mended, run the command again ({ELSEWHERE})")
