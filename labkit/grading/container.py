"""Where one submission is graded: here, in the box of a child process, or in a container that is thrown away.

Either way what comes back is text, which is parsed as JSON against the schema; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit.check.check import Start, start_pytest
from labkit.check.report import MAX_BYTES, ReportError, read_report
from labkit.grading.verdict import judge
from labkit.isolation.sandbox import undumpable
from labkit.system.errors import UserError
from labkit.system.labs import find_lab

IMAGE = "mini-vllm-labs"

SPARE = 90
"""Seconds that a container has beyond what a verdict may take."""


@dataclass(frozen=True)
class Sandbox:
    """Where and how.

    Attributes:
        image: the image that has this version of the labs; None: no container.
        memory: what a container may use, in Docker's words.
        cpus: how many processors it may use.
        pids: how many processes and threads.
        start: how a judge is started without a container.
    """

    image: str | None = IMAGE
    memory: str = "6g"
    cpus: float = 2.0
    pids: int = 512
    start: Start = start_pytest

    def grade(self, lab_number: str, name: str, source: bytes) -> dict[str, Any]:
        """The report on one file.

        Raises:
            ReportError: no report came, or none that can be read.
        """
        if self.image is None:
            return read_report(json.dumps(grade_source(lab_number, source, self.start)).encode())
        return self._in_container(lab_number, source)

    def _in_container(self, lab_number: str, source: bytes) -> dict[str, Any]:
        """One ``docker run``; the file goes in by standard input, the report comes out by standard output.

        Whoever is in there could write to standard output too, so the report bears a number that the judge alone was told.
        """
        name, nonce = f"mini-vllm-labs-{uuid.uuid4().hex[:12]}", secrets.token_hex(16)
        given = json.dumps({"nonce": nonce, "source": source.decode("utf-8", "surrogateescape")}).encode()
        command = [docker(), "run", "--rm", "-i", "--name", name, *self.options(), str(self.image)]
        command += ["python", "-P", "-m", "labkit.grading.container", lab_number]
        limit = 6 * find_lab(lab_number).time_limit + SPARE
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            errors: list[bytes] = []
            reading = threading.Thread(target=lambda: errors.append(child.stderr.read(4000) if child.stderr else b""))
            reading.start()
            late = threading.Timer(limit, _remove, [name])
            late.start()
            said = b""
            try:
                try:
                    child.stdin.write(given)
                    child.stdin.close()
                except BrokenPipeError:
                    pass  # its own words say why
                said = child.stdout.read(MAX_BYTES + 1)
            finally:
                late.cancel()
                if child.poll() is None and len(said) > MAX_BYTES:
                    _remove(name)
                child.kill()
        reading.join()
        for line in said.splitlines():
            if line.startswith(nonce.encode()):
                return read_report(line[len(nonce) :])
        told = b"".join(errors).decode(errors="replace").strip().splitlines()
        raise ReportError(
            f"no report came out of the container{f' ({told[-1][:200]})' if told else ''}; it ended, was ended, "
            f"or took more than {limit} seconds"
        )

    def options(self) -> list[str]:
        """What ``docker run`` is told: no network, nothing to write to but memory, no rights, not root, and limits."""
        return [
            *("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,size=1g,mode=1777"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "1000:1000"),
            *("--memory", self.memory, "--memory-swap", self.memory, "--cpus", str(self.cpus), "--pids-limit", str(self.pids)),
            *("--env", "HOME=/tmp", "--env", "OMP_NUM_THREADS", "--log-driver", "none"),
        ]


def docker() -> str:
    """The client.

    Raises:
        UserError: there is none.
    """
    found = shutil.which("docker")
    if found is None:
        raise UserError("there is no docker here; install it, or grade your own code with --no-sandbox")
    return found


def find_image(image: str) -> str:
    """The image's id.

    Raises:
        UserError: no engine answers, or it has no such image.
    """
    asked = subprocess.run([docker(), "image", "inspect", "--format", "{{.Id}}", image], capture_output=True, text=True)
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(
            f"the image {image} cannot be used ({why}); make it with `docker build -f docker/Dockerfile -t {image} .`, "
            "or grade your own code with --no-sandbox"
        )
    return asked.stdout.strip()


def _remove(name: str) -> None:
    subprocess.run([docker(), "rm", "-f", name], capture_output=True)


def grade_source(lab_number: str, source: bytes, start: Start = start_pytest) -> dict[str, Any]:
    """The report on a file with these bytes, graded in a folder of its own."""
    with TemporaryDirectory(prefix="lab-grade-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "starter.py"
        file.write_bytes(source)
        file.chmod(0o444)
        return judge(find_lab(lab_number), str(file), start).to_json() | {"graded": file.name}


def main(lab_number: str) -> None:
    """In the container: takes the file from standard input, and writes the number and the report to standard output."""
    undumpable()
    given = json.load(sys.stdin.buffer)
    # Nothing more is to be read there, and the number 0 must not go to the next file that is opened.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    report = grade_source(lab_number, given["source"].encode("utf-8", "surrogateescape"))
    sys.stdout.write(f"{given['nonce']}{json.dumps(report)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
