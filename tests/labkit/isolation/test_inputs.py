"""What a call does to its arguments in the learner's process, it does to the judge's own objects."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.grading.verdict import judge
from labkit.isolation import learner_process
from labkit.isolation.rpc_protocol import receive, send
from labkit.isolation.rpc_proxy import LearnerConnection, ModuleProxy, ProcessLostError
from labkit.system.labs import ROOT, find_lab

MUTANTS = ("parameters_popped", "list_emptied", "transposed_in_place")

FILE = """
def pop(params):
    params["new"] = params.pop("old")
    params["made"] = params["new"] + 1

def empty(weights):
    weights[0][1].zero_()
    weights.clear()

def grow(names):
    names |= {"a", "b"}

def transpose(tensor):
    tensor.zero_().t_()

def fill(array, tensor):
    array[0] = 7
    return len(tensor), b"", slice(1, None), range(3), {1: 2}.items()

def refuse(names):
    names.append(names)
    raise ValueError("no")
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ModuleProxy]:
    """The file, with the learner's side of the connection in a thread of this process."""
    (tmp_path / "mine.py").write_text(FILE)
    calls, theirs = socket.socketpair()
    learner = learner_process.Learner(tmp_path / "mine.py")

    def serve() -> None:
        while True:
            try:
                message, packer = learner.answer(*receive(theirs))
            except EOFError:
                return
            send(theirs, message, packer.parts)

    serving = threading.Thread(target=serve)
    serving.start()
    connection = LearnerConnection(tmp_path / "mine.py", calls, calls, lambda: "it has ended")
    connection.request("load")
    yield ModuleProxy(connection)
    calls.close()
    serving.join()
    theirs.close()


def test_arguments_change_as_in_one_process(lab: Any) -> None:
    old = torch.ones(2)
    params = {"old": old}
    lab.pop(params)
    assert list(params) == ["new", "made"]
    assert params["new"] is old
    assert params["made"].tolist() == [2, 2]
    weights = [("a", torch.ones(2))]
    tensor, emptied = weights[0][1], weights
    lab.empty(weights)
    assert (emptied, tensor.tolist()) == ([], [0, 0])
    names = {"a"}
    lab.grow(names)
    assert names == {"a", "b"}
    for shape in ((2, 3), (3, 3)):
        tensor = torch.nn.Parameter(torch.ones(shape))
        view = tensor.data
        lab.transpose(tensor)
        assert (tensor.shape, view.sum().item()) == (shape[::-1], 0)
    numbers = torch.ones(3).numpy()
    length, *rest, items = lab.fill(numbers, tensor)
    assert (numbers.tolist(), length, rest, list(items)) == ([7, 1, 1], 3, [b"", slice(1, None), range(3)], [(1, 2)])
    looped = [1]
    with pytest.raises(ValueError, match="no"):
        lab.refuse(looped)
    assert looped[0] == 1
    assert looped[1] is looped


@pytest.mark.parametrize(
    "changed",
    [
        [[9, {"list": []}]],
        [["0", {"list": []}]],
        [[0, {"range": [0, 1 << 60, 1]}]],
        [[1, {"dict": [1]}]],
        [[1, {"tensor": ["float32", [3], 0]}]],
        [[1, {"given": 99}]],
        [[2, {"list": [{"list": []}]}]],
        None,
    ],
)
def test_a_wrong_answer_ends_the_connection_with_a_sentence(changed: Any) -> None:
    calls, theirs = socket.socketpair()
    with calls, theirs:
        send(theirs, {"value": None, "wrote": [], "registered": [], "changed": changed})
        connection = LearnerConnection(Path("mine.py"), calls, calls, lambda: "it has ended")
        with pytest.raises(ProcessLostError, match=r"mine\.py has broken the connection to the tests"):
            connection.request("call", ("a", [1]), name="f")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_load_that_changes_its_inputs_fails(name: str, tmp_path: Path) -> None:
    """Plain pytest fails these mutants of lab 03 because ``unchanged`` compares the inputs afterwards."""
    lab = find_lab("03")
    mutant = (ROOT / "tests" / "mutants" / "lab-03" / f"{name}.py").read_text()
    kept = "\nright_load_weights, right_load_shard = load_weights, load_shard\n"
    file = tmp_path / "mine.py"
    file.write_text((lab.folder / "solution.py").read_text() + kept + mutant)
    report = judge(lab, str(file))
    failed = [test.message for task in report.tasks for test in task.tests if test.message]
    assert any("the call does not change" in message for message in failed), report
    assert report.points < lab.points
