"""The same jobs as tasks of a Ray cluster that is there already.

A task gets a file's bytes and returns a report as JSON text. One that its node has not finished is begun again on another; the
process that asks writes all results, so none is lost and none is there twice. Only nodes with the same work tree may answer.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from labkit.grading.classroom import Graded, Grader, answer, version_of
from labkit.grading.container import Sandbox
from labkit.check.report import ReportError, read_report
from labkit.grading.submissions import Submission
from labkit.system.errors import UserError
from labkit.system.labs import Lab, find_lab

TRIES = 5
"""How often one submission is begun. Ray's own retries have no end where want of memory is what ends a task."""

HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of Ray begins: RFC 9113, section 3.4, with empty settings; the server answers with its own, a frame of type 4."""


def on_ray(address: str, image: str | None, version: str, jobs: int | None) -> Grader:
    """Grades on the cluster at ``address``, whose nodes have the work tree at the same path and the same environment.

    Args:
        address: HOST:PORT, as ``ray start --head`` has printed it; this machine is one of the nodes.
        image: the container image, on every node; None: no container.
        version: of what decides on a verdict (:func:`version_of`); a node with another does not answer.
        jobs: how many at a time; None: as many as the cluster has processors.

    Raises:
        UserError: no cluster answers there; raised when grading begins.
    """

    def grade(lab: Lab, submissions: list[Submission]) -> Iterator[Graded]:
        with _connected(address) as ray:
            task = ray.remote(num_cpus=1, max_retries=0)(report_text)
            begun: dict[Any, tuple[Submission, int]] = {}

            def begin(submission: Submission, tries: int) -> None:
                given = (image, version, lab.number, submission.name, submission.source)
                begun[task.remote(*given)] = submission, tries

            left = iter(submissions)
            for submission in islice(left, jobs):
                begin(submission, 1)
            while begun:
                (done,), _ = ray.wait(list(begun), num_returns=1)
                submission, tries = begun.pop(done)
                try:
                    answered = _read(ray.get(done))
                except ray.exceptions.RayError as error:
                    if tries < TRIES:
                        begin(submission, tries + 1)
                        continue
                    answered = {"fault": f"no node has finished it in {TRIES} tries ({type(error).__name__}); grade again"}
                for following in islice(left, 1):
                    begin(following, 1)
                yield submission, answered

    return grade


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # read once, at the import: Ray would write of every lost node into the table
    import ray

    try:
        _see_to(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({str(error).strip().splitlines()[0]}); start one with `ray start --head` and "
            f"join it from this machine with `ray start --address {address}`, or leave out --ray"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def report_text(image: str | None, version: str, lab_number: str, name: str, source: bytes) -> str:
    """On a node: :func:`answer` as JSON text."""
    if version_of(find_lab(lab_number), image) != version:
        node = socket.gethostname()
        return json.dumps(
            {"fault": f"the node {node} has other labs than this machine; give it the same work tree, then grade again"}
        )
    return json.dumps(answer(Sandbox(image), lab_number, name, source))


def _read(text: str) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(text)
    try:
        return {"report": read_report(json.dumps(answered["report"]).encode())} if "report" in answered else answered
    except ReportError as error:
        return {"fault": str(error)}


def _see_to(address: str) -> None:
    """That what answers at HOST:PORT may be Ray: where nothing does, Ray asks again for minutes.

    Raises:
        OSError: it is not.
        ValueError: it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(HTTP_2)
        if line.recv(9)[3:4] != b"\x04":
            raise OSError("what answers there is not Ray")
