"""Grades one submission in a container that is deleted afterwards. The report comes out as JSON; nothing is unpickled."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from labkit.check.report import MAX_BYTES, ReportError, read_report
from labkit.grading.verdict import grade_source
from labkit.isolation.sandbox import protect_memory
from labkit.system.errors import UserError
from labkit.system.labs import find_lab

START_SECONDS = 90
"""Seconds that a container may run in addition to the time limit of a verdict."""


@dataclass(frozen=True)
class Container:
    """The image and the limits of a container for one submission; ``image`` must contain this version of the labs."""

    image: str
    memory: str = "6g"
    cpus: float = 2.0
    pids: int = 512

    def grade(self, lab_number: str, source: bytes) -> dict[str, Any]:
        """Grades a file with these bytes in a new container and returns the report as a dict, as report.schema.json defines it.

        Bytes and nonce go to the container's standard input, the report comes from its standard output. The submission could
        write there too, so the report begins with the nonce, which only labkit's process in the container reads.

        Raises:
            ReportError: no report came out, or one that does not fit the schema.
        """
        name, nonce = f"mini-vllm-labs-{uuid.uuid4().hex[:12]}", secrets.token_hex(16)
        given = json.dumps({"nonce": nonce, "source": source.decode("utf-8", "surrogateescape")}).encode()
        command = [docker(), "run", "--rm", "-i", "--name", name, *self.options(), self.image]
        command += ["python", "-P", "-m", "labkit.grading.container", lab_number]
        limit = 6 * find_lab(lab_number).time_limit + START_SECONDS
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            errors: list[bytes] = []
            reading = threading.Thread(target=lambda: errors.append(child.stderr.read(4000) if child.stderr else b""))
            reading.start()
            timer = threading.Timer(limit, _remove, [name])
            timer.start()
            printed = b""
            try:
                with suppress(BrokenPipeError), child.stdin:  # standard error says why
                    child.stdin.write(given)
                printed = child.stdout.read(MAX_BYTES + 1)
            finally:
                timer.cancel()
                if child.poll() is None and len(printed) > MAX_BYTES:
                    _remove(name)
                child.kill()
        reading.join()
        for line in printed.splitlines():
            if line.startswith(nonce.encode()):
                return read_report(line[len(nonce) :])
        why = b"".join(errors).decode(errors="replace").strip().splitlines()
        raise ReportError(
            f"the container returned no report{f' ({why[-1][:200]})' if why else ''}: it did not start, exited, was killed "
            f"(memory limit: {self.memory}), or took more than {limit} seconds; run the same ./lab grade again to grade it"
        )

    def options(self) -> list[str]:
        """Returns options of ``docker run``: no network, a read-only root, /tmp in memory, no capabilities, no root, limits."""
        return [
            *("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,size=1g,mode=1777"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "1000:1000"),
            *("--memory", self.memory, "--memory-swap", self.memory, "--cpus", str(self.cpus), "--pids-limit", str(self.pids)),
            *("--env", "HOME=/tmp", "--env", "OMP_NUM_THREADS", "--log-driver", "none"),
        ]


def docker() -> str:
    """Returns the path of the docker client; UserError: the PATH has no docker."""
    if (found := shutil.which("docker")) is None:
        raise UserError("docker is not on the PATH; install Docker, or grade your own code with --no-sandbox")
    return found


def find_image(image: str) -> str:
    """Returns the id of an image; UserError: no Docker Engine answers, or the engine has no such image."""
    found = subprocess.run([docker(), "image", "inspect", "--format", "{{.Id}}", image], capture_output=True, text=True)
    if found.returncode:
        why = (found.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(
            f"the image {image} cannot be used ({why}); start Docker, build the image with "
            f"`docker build -f docker/Dockerfile -t {image} .`, or grade your own code with --no-sandbox"
        )
    return found.stdout.strip()


def _remove(name: str) -> None:
    subprocess.run([docker(), "rm", "-f", name], capture_output=True)


def main(lab_number: str) -> None:
    """In the container: reads the nonce and the file from standard input, writes the nonce and the report."""
    protect_memory()
    given = json.load(sys.stdin.buffer)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that the next file does not get the number 0
    report = grade_source(lab_number, given["source"].encode("utf-8", "surrogateescape"))
    sys.stdout.write(f"{given['nonce']}{json.dumps(report)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
