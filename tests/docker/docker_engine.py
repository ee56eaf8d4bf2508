"""The Docker client that the tests use, and what they look for."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BASE, IMAGE = "mini-vllm-labs-test-base", "mini-vllm-labs-test"
SECRET = "_".join(("hf", "a", "token", "that", "must", "not", "be", "seen"))  # in parts, for this file is in the image
STRAY = {
    "labs/lab-01-add-a-toy-architecture/mine.py": "a learner's attempt",
    "labs/lab-01-add-a-toy-architecture/starter.py.2026-11-24": "a learner's older attempt",
    ".env": f"HF_TOKEN={SECRET}",
    "thesis.tex": "a learner's",
    ".venv/bin/python": "not this one",
}
"""What lies about in a learner's work tree."""

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Docker:
    """A client that builds with BuildKit, and the engine it talks to."""

    client: str

    def __call__(self, *arguments: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs one command; what it printed, both streams together, is the result's stdout."""
        done = subprocess.run(
            [self.client, *map(str, arguments)],
            env=os.environ | {"DOCKER_BUILDKIT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0 or not check, f"docker {arguments[0]}: {done.stdout[-3000:]}"
        return done

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``docker run --rm --network none ...``: nothing of the labs needs a network."""
        return self("run", "--rm", "--network", "none", *arguments, check=check)
