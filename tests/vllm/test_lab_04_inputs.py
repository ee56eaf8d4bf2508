"""Lab 04's tests fail for a model that changes its inputs. tests/mutants has the same for the other labs, without vLLM."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from labkit.system.labs import find_lab, load_implementation

FOLDER = find_lab("04").folder


@pytest.fixture
def lab() -> ModuleType:
    """The solution, loaded anew for each test."""
    return load_implementation(FOLDER / "solution.py")


@pytest.fixture(scope="module")
def spec() -> ModuleType:
    """The lab's own tests, as a module."""
    found = importlib.util.spec_from_file_location("lab_04_tests", FOLDER / "test_lab.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def wrap(model_class: Any, name: str, change: Any) -> None:
    """Makes a method of the model change its inputs after it has computed its result."""
    right = getattr(model_class, name)

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(list(arg) if hasattr(arg, "__next__") else arg for arg in args)
        result = right(self, *args, **kwargs)
        change(*args, **kwargs)
        return result

    setattr(model_class, name, wrong)


def test_a_load_that_zeroes_the_checkpoint_fails(lab: ModuleType, spec: ModuleType) -> None:
    spec.test_load_weights_names_what_it_has_filled(lab)
    wrap(lab.BigramForCausalLM, "load_weights", lambda weights: [tensor.zero_() for _, tensor in weights])
    table = spec.TABLE.clone()
    with pytest.raises(pytest.fail.Exception, match="the call does not change table\ngot: 20 of 25 elements"):
        spec.bigram_of(lab, table)


@pytest.mark.parametrize("name", ["input_ids", "positions"])
def test_a_forward_that_overwrites_the_step_fails(lab: ModuleType, spec: ModuleType, name: str) -> None:
    spec.test_hidden_states_and_logits_are_rows_of_the_table(lab)
    wrap(lab.BigramForCausalLM, "forward", lambda **inputs: inputs[name].fill_(1))
    with pytest.raises(pytest.fail.Exception, match=f"the call does not change {name}\n"):
        spec.test_hidden_states_and_logits_are_rows_of_the_table(lab)
