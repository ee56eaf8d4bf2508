"""Assertion helpers of the lab tests: expected value, actual value, and what the difference means for a served model.

    expected: (4096, 5120)
    got: (4096, 8192)
    k begins after 32 query heads of 128 rows, and has the rows of 8

A plain ``assert`` would show how Python compared the two values; these helpers show which rows differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, KeysView, Mapping
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from torch import Tensor

SHOWN_IN_FULL = 24
"""A tensor of at most this many elements is shown completely, a larger one by its first wrong row."""


def expect(got: object, expected: object, meaning: str) -> None:
    """Asserts that two values are equal; raises an AssertionError with both values and ``meaning``, what a difference means."""
    __tracebackhide__ = True
    if got != expected:
        raise AssertionError(_message(_describe(expected), _describe(got), meaning))


def expect_tensor(got: object, expected: Tensor, meaning: str, within: float = 0) -> None:
    """Asserts that a value is a tensor of the expected shape, dtype and values.

    Args:
        meaning: what a difference means for a served model.
        within: the largest allowed difference of two elements.

    Raises:
        AssertionError: the shape, else the dtype, else the values differ; of a large tensor, the first wrong row is shown.
    """
    __tracebackhide__ = True
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        came = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else _describe(got)
        raise AssertionError(_message(f"a tensor of shape {tuple(expected.shape)}", came, meaning))
    if got.dtype != expected.dtype:
        raise AssertionError(_message(str(expected.dtype), str(got.dtype), meaning))
    close = torch.isclose(got, expected, rtol=0, atol=within)
    if close.all():
        return
    if expected.numel() <= SHOWN_IN_FULL or expected.dim() < 2:
        raise AssertionError(_message(_elements(expected), _elements(got), meaning))
    wrong = [row for row, same in enumerate(close.flatten(1).all(dim=1).tolist()) if not same]
    where = f"row {wrong[0]}, the first of {len(wrong)} of {len(expected)} that differ: "
    raise AssertionError(_message(f"{where}{_elements(expected[wrong[0]])}", _elements(got[wrong[0]]), meaning))


@contextmanager
def expect_refused(*numbers: object, meaning: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Asserts that the block raises ``error`` with all of ``numbers``, in any order, in its message.

    Raises:
        AssertionError: no error or another one was raised; the message has this error and ``meaning``.
    """
    __tracebackhide__ = True
    expected = f"a {error.__name__}" + (f" with {' and '.join(map(str, numbers))} in its message" if numbers else "")
    try:
        yield
    except NotImplementedError:
        raise
    except Exception as raised:
        got = f"{type(raised).__name__}: {raised}"
        named = all(re.search(rf"(?<![^\W_]){re.escape(str(number))}(?![^\W_])", got) for number in numbers)
        if not isinstance(raised, error) or not named:
            raise AssertionError(_message(expected, _truncate(got), meaning)) from raised
    else:
        raise AssertionError(_message(expected, "no error", meaning))


@contextmanager
def unchanged(meaning: str, **inputs: object) -> Iterator[None]:
    """Asserts that the block changes none of ``inputs``, also if it raises an error.

    Args:
        meaning: the consequence of the change, in one sentence.
        inputs: values by the name that the failure prints: tensors, plain values, dicts, lists or tuples of them, and the keys of
            a dict whose values may change.

    Raises:
        pytest.fail.Exception: with the name of the input, the first difference and ``meaning``. The class is no subclass of
            ``Exception``, so an :func:`expect_refused` around this block does not mistake it for the learner's error.
    """
    __tracebackhide__ = True
    before = {
        name: leaf.detach().clone() if isinstance(leaf, Tensor) else deepcopy(leaf) for name, leaf in _leaves(inputs).items()
    }
    try:
        yield
    except NotImplementedError:
        raise
    except Exception:
        _expect_same(_leaves(inputs), before, meaning)
        raise
    _expect_same(_leaves(inputs), before, meaning)


def _leaves(value: object, name: str = "") -> dict[str, object]:
    """Returns the tensors, plain values and lists of plain values inside ``value``, by a path like ``config['head_dim']``."""
    if isinstance(value, Mapping):
        items = [(f"{name}[{key!r}]" if name else key, each) for key, each in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(each, Tensor | Mapping | list | tuple) for each in value):
        items = [(f"{name}[{index}]", each) for index, each in enumerate(value)]
    elif isinstance(value, KeysView):
        items = [(f"{name}[{key!r}]", "a value") for key in value]
    else:
        return {name: value}
    return {path: leaf for inner, each in items for path, leaf in _leaves(each, inner).items()}


def _expect_same(now: dict[str, object], before: dict[str, object], meaning: str) -> None:
    __tracebackhide__ = True
    for name in before | now:
        if name not in now:
            change = "it is removed"
        elif name not in before:
            change = f"it is added, as {_describe(now[name])}"
        else:
            change = _change(before[name], now[name])
        if change:
            pytest.fail(_message(f"the call does not change {name}", change, meaning))


def _change(before: object, now: object) -> str:
    """Returns the difference between two values, in words; empty if they are equal."""
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            return f"{before.dtype} of shape {tuple(before.shape)} became {now.dtype} of shape {tuple(now.shape)}"
        count = int((~torch.isclose(before, now, rtol=0, atol=0, equal_nan=True)).sum())
        return f"{count} of {now.numel()} elements have another value" if count else ""
    return "" if before == now else f"{_describe(before)} became {_describe(now)}"


def _message(expected: str, got: str, meaning: str) -> str:
    return f"expected: {expected}\ngot: {got}\n{meaning}"


def _describe(value: object) -> str:
    if isinstance(value, set):  # sorted, so that the message is the same in every run
        return _truncate(f"{{{', '.join(sorted(map(repr, value)))}}}" if value else "nothing")
    return _truncate(value if isinstance(value, str) else repr(value))


def _truncate(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def _elements(tensor: Tensor) -> str:
    """Formats at most 12 elements of a row with five digits each; of a small tensor, every row."""
    if tensor.dim() > 1 and tensor.numel() <= SHOWN_IN_FULL:
        return f"[{', '.join(map(_elements, tensor))}]"
    numbers = [f"{number:.5g}" for number in tensor.flatten().tolist()]
    return f"[{', '.join(numbers if len(numbers) <= 12 else [*numbers[:12], '...'])}]"
