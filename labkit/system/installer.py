"""Installs uv, configures it from pip's environment variables, and runs its commands. Standard library only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.system.errors import UserError

OTHER_INDEX = "PIP_INDEX_URL sets another package index, PIP_FIND_LINKS a folder of wheels, https_proxy a proxy"
"""What to do if a package index cannot be reached, as part of a sentence."""


def print_progress(text: str) -> None:
    """Prints a progress line to stderr: stdout belongs to the command that waits for the environment."""
    print(text, file=sys.stderr, flush=True)


def uv_path(prefix: Path) -> Path:
    """Returns the path of uv in the environment at ``prefix``.

    Raises:
        UserError: the environment has no uv.
    """
    path = prefix / "bin" / "uv"
    if not path.exists():
        raise UserError(f"{prefix} has no uv; install it with {prefix}/bin/python -m pip install -r requirements/uv.txt")
    return path


def uv_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns ``environ`` for uv: each PIP_* setting becomes uv's setting, unless that is set already."""
    variables = dict(environ)
    for ours, theirs, separator in (
        ("PIP_FIND_LINKS", ("UV_FIND_LINKS",), ","),
        ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
        ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
        ("PIP_CERT", ("SSL_CERT_FILE",), " "),
    ):
        if environ.get(ours) and not any(environ.get(name) for name in theirs):
            variables[theirs[0]] = separator.join(environ[ours].split())
    # pip takes a package from any of its indexes; uv would stop at the first that has some version of it. Hashes protect both.
    variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    return variables


def no_index() -> bool:
    """Returns whether PIP_NO_INDEX restricts pip to folders of wheels; uv has no variable for it."""
    return os.environ.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "y", "t")


def uv_install(prefix: Path, options: Iterable[str]) -> bool:
    """Runs ``uv pip install`` in the environment at ``prefix``; returns whether it succeeded. uv prints to stderr."""
    import subprocess

    command = [*_uv_pip(prefix, "install"), "--no-deps", *options]
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        command.append("--compile-bytecode")  # else every import compiles: importing vLLM takes 23 seconds instead of 14
    return _succeeds(command, env=uv_variables(), stdin=subprocess.DEVNULL)


def _succeeds(command: list[str], **options: Any) -> bool:
    import subprocess

    # The child inherits the lock: if this process is killed, uv continues, and the next run waits for its end.
    if subprocess.run(command, close_fds=False, check=False, **options).returncode == 0:
        return True
    time.sleep(1)  # Ctrl-C reaches the installer too, and on a busy machine it ends before this process gets the signal
    return False


def index_has(prefix: Path, pins: Path, options: Iterable[str] = (), timeout: float | None = None) -> bool:
    """Returns whether an index has the packages of a pins file for this machine.

    uv sends the request, so that proxies, certificates and logins apply.

    Args:
        options: uv's options for the index; none for the configured one.
        timeout: seconds for the connection and for each part of the answer, and three times as long for the whole answer; after
            that the result is False. None: uv's own timeouts and retries.
    """
    import subprocess

    command = [*_uv_pip(prefix, "compile"), "--no-deps", "--quiet", str(pins), *options]
    variables, limit = uv_variables(), 3 * timeout if timeout else None
    if timeout:
        variables |= {"UV_HTTP_RETRIES": "0"} | dict.fromkeys(("UV_HTTP_CONNECT_TIMEOUT", "UV_HTTP_TIMEOUT"), f"{timeout:.0f}")
    try:
        answer = subprocess.run(command, env=variables, timeout=limit, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and "==" in answer.stdout


def _uv_pip(prefix: Path, verb: str) -> list[str]:
    index = ["--no-index"] if no_index() else []
    return [str(uv_path(prefix)), "pip", verb, "--python", str(prefix / "bin" / "python"), *index]


def fetch_uv(prefix: Path, pins: Path) -> None:
    """Installs uv into the environment at ``prefix``, with the pip of the running Python, or else with ensurepip's.

    Raises:
        UserError: there is no pip, or pip could not fetch uv.
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
    print_progress("uv: the installer, 20 MB")
    command = [*pip, "install", "--require-hashes", "--requirement", str(pins), "--only-binary", ":all:", "--no-user"]
    command += ["--disable-pip-version-check", "--no-warn-script-location"]
    if not _succeeds(command, stdout=sys.stderr):
        raise UserError(f"pip could not fetch uv; its error is above. Fix it, then run the command again ({OTHER_INDEX})")
