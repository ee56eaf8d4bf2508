"""Download of one wheel from the package index by this interpreter's pip, with a sentence for every failure.

pip honours the user's settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf, proxies, certificates), resumes an interrupted transfer,
and with --require-hashes accepts only the pinned bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from labkit.system.errors import UserError

# The first pattern found in pip's output decides: "No matching distribution" is also printed for an unreachable index.
_ERRORS = {
    "No module named pip": "{python} has no pip; run '{python} -m ensurepip', or delete the .venv folder and start ./lab again",
    "DO NOT MATCH THE HASHES": (
        "the package index sent a file for {package} that is not the file that {file} pins (its sha256 differs); nothing of it "
        "was kept. Try again; if that does not help, ask the operator of the index or of the proxy"
    ),
    "No space left|Disk quota": "the disk is full while {package} is downloaded; make room for 500 MB, then try again",
    "incomplete-download|Connection broken|Download failed": (
        "the connection broke while {package} was downloaded, and resuming failed; try again, it starts from the beginning"
    ),
    "CERTIFICATE_VERIFY_FAILED|ssl-verification": (
        "pip does not trust the package index's certificate; if a proxy signs with its own, set PIP_CERT to it"
    ),
    "not a trusted or secure host": (
        "pip refuses a package index that is not https; set PIP_INDEX_URL to one that is, or PIP_TRUSTED_HOST to its name"
    ),
    "Retrying|connection-failed|connection-timeout|proxy-connection|Temporary failure|timed out|Max retries": (
        "the package index cannot be reached; look at the network and the proxy, or set PIP_INDEX_URL to an index that can be, "
        "or PIP_FIND_LINKS to a folder that holds the wheel of {package}, then try again"
    ),
    "No matching distribution": (
        "the package index does not have {package}; set PIP_INDEX_URL to one that has it (PyPI does), or PIP_FIND_LINKS to a "
        "folder that holds its wheel, then try again"
    ),
}


def download_wheel(requirement: Path, to: Path, note: Callable[[str], None]) -> Path:
    """Downloads the one wheel that a requirements file pins.

    Args:
        requirement: a requirements file of one pinned package with its hash.
        to: an existing empty folder, for the wheel and for pip's temporary files.
        note: is called with the progress in words.

    Returns:
        The wheel, inside ``to``.

    Raises:
        UserError: there is no pip, no connection or no such package, the disk is full, or the hash differs from the pin.
    """
    # -P: the current folder may hold a pip.py, or modules that pip would import.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirement), "--dest", str(to), "--no-input", "--disable-pip-version-check", "--progress-bar=raw"]
    pip = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(to)},  # so that a killed pip's temporary files are removed with this folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    output = []
    try:
        assert pip.stdout is not None
        for line in pip.stdout:
            if progress := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                note(f"{int(progress[1]) / 1e6:.0f} of {int(progress[2]) / 1e6:.0f} MB")
            else:
                output.append(line.strip())
        failed = pip.wait() != 0
    finally:
        # If this process is killed instead, pip ends at its next progress line, because the pipe is closed.
        pip.kill()
        pip.wait()
    if failed:
        raise UserError(_explained(output, requirement))
    return next(to.glob("*.whl"))


def _explained(output: list[str], requirement: Path) -> str:
    package = next(word for word in requirement.read_text().split() if "==" in word)
    for pattern, sentence in _ERRORS.items():
        if re.search(pattern, "\n".join(output)):
            return sentence.format(package=package, file=requirement.name, python=sys.executable)
    errors = [line for line in output if re.match(r"ERROR: (?!Exception)|\w*Error\b", line)] or output or ["(nothing)"]
    return f"pip could not download {package}; its last message was: {errors[-1]}"
