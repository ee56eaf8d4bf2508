"""A class on a real Ray cluster: two nodes on this machine, one of which is killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from labkit.grading.classroom import version_of
from labkit.grading.cluster import MAX_TRIES, on_ray, report_text
from labkit.grading.submissions import Submission
from labkit.isolation.sandbox import layers
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, find_lab

LAB = find_lab("03")
CLASS = {f"learner-{number}": b"\n" * number + b"(" for number in range(6)}
"""Files that do not compile: a verdict is soon reached, and each is told from the others by its line."""


@dataclass
class Gradings:
    """Which submissions have been begun where, from the folders that are made for them; a node has its own place for these.

    Attributes:
        places: node -> its folder for temporary files.
        begun: a name for each grading, in the order they began.
        last: node -> the name begun there last.
    """

    places: dict[str, Path]
    begun: list[str] = field(default_factory=list)
    last: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self, seen: Callable[[str], None]) -> None:
        """Until ``ended``, looks a hundred times a second, and calls ``seen`` with the node of each grading that has begun."""
        known: set[Path] = set()
        names = {source: name for name, source in CLASS.items()}
        while not self.ended.wait(0.01):
            for node, place in self.places.items():
                for file in set(place.glob("lab-grade-*/starter.py")) - known:
                    with suppress(OSError, KeyError):  # it is not written yet, or gone
                        self.last[node] = names[file.read_bytes()]
                        self.begun.append(self.last[node])
                        known.add(file)
                        seen(node)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {node: tmp_path_factory.mktemp(node) for node in ("head", "second")}


@pytest.fixture(scope="module")
def cluster(places: dict[str, Path]) -> Iterator[Cluster]:
    """Two raylets, each with room for one submission at a time."""
    room = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    # Sockets go where RAY_TMPDIR says, and the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", str(places["head"]))
        made = Cluster(initialize_head=True, head_node_args=room)
        patch.setenv("TMPDIR", str(places["second"]))
        made.add_node(**room)
        patch.delenv("TMPDIR")
        made.wait_for_nodes()
        yield made
        made.shutdown()


def grade(address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "labkit", "grade", str(folder / "class"), "--lab", "03", "--no-sandbox"]
    command += ["-o", str(folder / "grades"), "--ray", address]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(600)
def test_a_node_that_is_lost_loses_nothing_and_nothing_is_graded_twice(
    cluster: Cluster, places: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "class").mkdir()
    for name, source in CLASS.items():
        (tmp_path / "class" / f"{name}.py").write_bytes(source)
    gradings, lost = Gradings(places), []

    def kill_the_second(node: str) -> None:
        if node == "second" and len(gradings.begun) > 2 and not lost:
            lost.append(gradings.last[node])
            (second,) = cluster.worker_nodes
            cluster.remove_node(second, allow_graceful=False)

    watching = threading.Thread(target=gradings.watch, args=(kill_the_second,))
    watching.start()
    try:
        done = grade(cluster.address, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(lost) == 1, gradings.begun
        assert Counter(gradings.begun) == Counter([*CLASS, *lost]), "only what the lost node had is begun a second time"
        check_results(tmp_path, done.stdout)
        assert "raylet" not in done.stdout + done.stderr, "Ray's own words are for those who run it"

        gradings.begun.clear()
        (tmp_path / "grades" / "results" / "learner-4.json").unlink()
        done = grade(cluster.address, tmp_path)
        assert gradings.begun == ["learner-4"], "what has a result is not graded again"
        check_results(tmp_path, done.stdout)
    finally:
        gradings.ended.set()
        watching.join()


def check_results(folder: Path, said: str) -> None:
    """Each learner is there once, with the line that their own file is wrong in."""
    results = json.loads((folder / "grades" / "grades.json").read_text())
    assert [result["name"] for result in results] == list(CLASS)
    for number, result in enumerate(results):
        assert f"starter.py line {number + 1} is not Python yet" in result["report"]["broken"]
        assert f"{result['name']}: starter.py line {number + 1} is not Python yet" in said
        assert set(layers()) == set(result["report"]["environment"]["box"])
    with (folder / "grades" / "grades.csv").open() as table:
        assert [row["name"] for row in csv.DictReader(table)] == list(CLASS)
    assert sorted(path.stem for path in (folder / "grades" / "results").iterdir()) == list(CLASS)


def test_what_no_node_finishes_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ends the process it is in, as a node without memory does, is begun so often and no more."""
    monkeypatch.setattr("labkit.grading.cluster.report_text", lambda *given: os._exit(1))
    (graded,) = on_ray(cluster.address, None, "", None)(LAB, [Submission("ada", b"(")])
    assert graded[1] == {"fault": f"no node has finished it in {MAX_TRIES} tries (WorkerCrashedError); grade again"}


def test_a_node_with_other_labs_gives_no_verdict() -> None:
    answered = json.loads(report_text(None, version_of(LAB, None) + "x", "03", b"("))
    assert "has other labs than this machine" in answered["fault"]


def no_cluster(address: str) -> str:
    with pytest.raises(UserError, match="no Ray cluster answers at") as error:
        list(on_ray(address, None, "", None)(LAB, []))
    assert "start one with `ray start --head`" in str(error.value)
    return str(error.value)


def test_an_address_without_a_cluster_is_said_at_once() -> None:
    assert "HOST:PORT" in no_cluster("auto")
    assert "refused" in no_cluster("127.0.0.1:1")


def test_another_server_is_not_taken_for_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line = server.accept()[0]
            with line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        assert "the server at this address is not Ray" in no_cluster(f"127.0.0.1:{server.getsockname()[1]}")
        answering.join()
