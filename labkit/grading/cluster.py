"""Grades submissions as tasks of a running Ray cluster.

A task gets a file's bytes and returns a report as JSON. A task whose node is lost is started again on another node. Only the
process that the user started writes results, so that none is lost or duplicated. A node with another work tree returns no report.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from labkit.check.report import ReportError, read_report
from labkit.grading.classroom import Graded, Grader, answer, version_of
from labkit.grading.submissions import Submission
from labkit.system.errors import UserError
from labkit.system.labs import Lab, find_lab

MAX_TRIES = 5
"""The largest number of starts of a submission. Ray's own retries never end if each try is killed for lack of memory."""

HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A gRPC client's first bytes (RFC 9113, section 3.4), with empty settings; the server answers with a frame of type 4."""


def on_ray(address: str, image: str | None, version: str, jobs: int | None) -> Grader:
    """Returns a grader for a cluster whose nodes have the work tree at the same path, and the same environment.

    Args:
        address: HOST:PORT, as ``ray start --head`` prints it; this machine is one of the nodes.
        image: the container image, on every node; None: no container.
        version: :func:`version_of` on this machine; a node with another version returns no report.
        jobs: how many submissions at a time; None: as many as the cluster has processors.
    """

    def grade(lab: Lab, submissions: list[Submission]) -> Iterator[Graded]:
        with _connected(address) as ray:
            task = ray.remote(num_cpus=1, max_retries=0)(report_text)
            started: dict[Any, tuple[Submission, int]] = {}

            def begin(submission: Submission, tries: int) -> None:
                started[task.remote(image, version, lab.number, submission.source)] = submission, tries

            left = iter(submissions)
            for submission in islice(left, jobs):
                begin(submission, 1)
            while started:
                (done,), _ = ray.wait(list(started), num_returns=1)
                submission, tries = started.pop(done)
                try:
                    answered = _read(ray.get(done))
                except ray.exceptions.RayError as error:
                    if tries < MAX_TRIES:
                        begin(submission, tries + 1)
                        continue
                    answered = {"fault": f"no node has finished it in {MAX_TRIES} tries ({type(error).__name__}); grade again"}
                for following in islice(left, 1):
                    begin(following, 1)
                yield submission, answered

    return grade


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # Ray reads it at import; else it prints lost nodes into our table
    import ray

    try:
        _check_address(address)
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


def report_text(image: str | None, version: str, lab_number: str, source: bytes) -> str:
    """Runs on a node; returns the result of :func:`answer` as JSON text, or a "fault" if the node has another version."""
    if version_of(find_lab(lab_number), image) == version:
        return json.dumps(answer(image, lab_number, source))
    fault = f"the node {socket.gethostname()} has other labs than this machine; give it the same work tree, then grade again"
    return json.dumps({"fault": fault})


def _read(text: str) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(text)
    try:
        return {"report": read_report(json.dumps(answered["report"]).encode())} if "report" in answered else answered
    except ReportError as error:
        return {"fault": str(error)}


def _check_address(address: str) -> None:
    """Checks that a gRPC server answers at HOST:PORT; without a server, Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(HTTP_2)
        if line.recv(9)[3:4] != b"\x04":
            raise OSError("the server at this address is not Ray")
