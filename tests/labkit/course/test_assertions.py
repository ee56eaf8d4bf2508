"""``unchanged``: every kind of change is found and named; a block that changes nothing passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from labkit.course.assertions import expect_refused, unchanged

CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "zeroed": (
        lambda inputs: inputs["tensor"].zero_(),
        "the call does not change tensor\ngot: 5 of 6 elements have another value",
    ),
    "transposed": (
        lambda inputs: inputs["tensor"].t_(),
        "got: torch.float32 of shape (2, 3) became torch.float32 of shape (3, 2)",
    ),
    "nan": (lambda inputs: inputs["tensor"].fill_(torch.nan), "got: 6 of 6 elements have another value"),
    "inside": (lambda inputs: inputs["pairs"][0][1].add_(1), "the call does not change pairs[0][1]\n"),
    "popped": (
        lambda inputs: inputs["config"].pop("head_dim"),
        "the call does not change config['head_dim']\ngot: it is removed",
    ),
    "added": (lambda inputs: inputs["config"].setdefault("heads", 8), "config['heads']\ngot: it is added, as 8"),
    "assigned": (lambda inputs: inputs["config"].update(head_dim=64), "config['head_dim']\ngot: 128 became 64"),
    "sorted": (lambda inputs: inputs["rows"].sort(), "the call does not change rows\ngot: [2, 1] became [1, 2]"),
    "emptied": (lambda inputs: inputs["pairs"].clear(), "the call does not change pairs[0][0]\ngot: it is removed"),
}


def inputs() -> dict[str, Any]:
    return {
        "tensor": torch.arange(6.0).view(2, 3),
        "pairs": [("name", torch.tensor([torch.nan, 1.0]))],
        "config": {"head_dim": 128, "names": ("a", "b")},
        "rows": [2, 1],
    }


def run(change: Callable[[dict[str, Any]], object], given: dict[str, Any]) -> bool:
    """Whether the block ended without a failure."""
    with unchanged("copy it", **given):
        change(given)
    return True


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_named(change: Callable[[dict[str, Any]], object], said: str) -> None:
    with pytest.raises(pytest.fail.Exception) as failure:
        run(change, inputs())
    assert said in str(failure.value)
    assert str(failure.value).endswith("\ncopy it")


def test_a_block_that_changes_nothing_passes() -> None:
    assert run(lambda given: given["tensor"] + 1, inputs())


def test_only_the_keys_of_a_dict_are_compared_if_only_they_are_given() -> None:
    params = {"weight": torch.zeros(2)}
    run(lambda given: params["weight"].fill_(1), {"params": params.keys()})
    with pytest.raises(pytest.fail.Exception, match=r"does not change params\['weight'\]\ngot: it is removed"):
        run(lambda given: params.clear(), {"params": params.keys()})


def zero_and_raise(error: Exception) -> Callable[[dict[str, Any]], object]:
    def change(given: dict[str, Any]) -> None:
        given["tensor"].zero_()
        raise error

    return change


def test_a_change_before_a_refusal_is_found_inside_expect_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match="the call does not change tensor"), expect_refused(meaning="refuse it"):
        run(zero_and_raise(ValueError("refused")), {"tensor": torch.ones(3)})


def test_what_is_not_implemented_stays_so() -> None:
    with pytest.raises(NotImplementedError):
        run(zero_and_raise(NotImplementedError("task load")), {"tensor": torch.ones(3)})
