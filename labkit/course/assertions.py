"""Assertion helpers for the labs. A failure shows the expected value, the actual value and the consequence for a served model:

    expected: (4096, 5120)
    got: (4096, 8192)
    k begins after 32 query heads of 128 rows and has the rows of 8 kv heads

An ``assert`` prints how Python compared two tensors. These helpers print the rows that differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, KeysView, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain

import pytest
import torch
from torch import Tensor

SHOWN_IN_FULL = 24
"""A tensor with at most this many elements is printed in full. Of a larger one, only the first row that differs is printed."""


def expect(got: object, expected: object, meaning: str) -> None:
    """Fails unless ``got`` equals ``expected``.

    Args:
        got: the actual value.
        expected: the right value.
        meaning: the consequence of a wrong value, in one sentence.

    Raises:
        AssertionError: with both values and ``meaning``.
    """
    __tracebackhide__ = True
    if got != expected:
        raise AssertionError(_sentence(_shown(expected), _shown(got), meaning))


def expect_tensor(got: object, expected: Tensor, meaning: str, within: float = 0) -> None:
    """Fails unless ``got`` is a tensor with the expected shape, dtype and values.

    Args:
        got: the actual value.
        expected: the right tensor.
        meaning: the consequence of a wrong value, in one sentence.
        within: the largest allowed difference between two elements.

    Raises:
        AssertionError: with the first property that differs. If values differ, with the number of the first wrong row.
    """
    __tracebackhide__ = True
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        came = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else _shown(got)
        raise AssertionError(_sentence(f"a tensor of shape {tuple(expected.shape)}", came, meaning))
    if got.dtype != expected.dtype:
        raise AssertionError(_sentence(str(expected.dtype), str(got.dtype), meaning))
    close = torch.isclose(got, expected, rtol=0, atol=within)
    if close.all():
        return
    if expected.numel() <= SHOWN_IN_FULL or expected.dim() < 2:
        raise AssertionError(_sentence(_values(expected), _values(got), meaning))
    wrong = [row for row, same in enumerate(close.flatten(1).all(dim=1).tolist()) if not same]
    where = f"row {wrong[0]}, the first of {len(wrong)} of {len(expected)} that differ: "
    raise AssertionError(_sentence(f"{where}{_values(expected[wrong[0]])}", _values(got[wrong[0]]), meaning))


@contextmanager
def expect_refused(*numbers: object, meaning: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Fails unless the block raises ``error`` with all of ``numbers`` in its message, in any order.

    Args:
        numbers: words or numbers that the message must contain.
        meaning: the consequence if the fault is not refused, in one sentence.
        error: the exception type.

    Raises:
        AssertionError: with the exception that was raised instead, if any, and ``meaning``.
    """
    __tracebackhide__ = True
    expected = f"a {error.__name__}" + (f" with {' and '.join(map(str, numbers))} in its message" if numbers else "")
    try:
        yield
    except NotImplementedError:
        raise
    except Exception as raised:
        said = f"{type(raised).__name__}: {raised}"
        named = all(re.search(rf"(?<![^\W_]){re.escape(str(number))}(?![^\W_])", said) for number in numbers)
        if not isinstance(raised, error) or not named:
            raise AssertionError(_sentence(expected, _short(said), meaning)) from raised
    else:
        raise AssertionError(_sentence(expected, "no error", meaning))


@contextmanager
def unchanged(meaning: str, **inputs: object) -> Iterator[None]:
    """Fails when the block changes one of ``inputs``, also when the block raises an error.

    Args:
        meaning: the consequence of the change, in one sentence.
        inputs: values by the name that the failure prints: tensors, plain values, dicts, lists or tuples of them, and the keys of
            a dict whose values may change.

    Raises:
        pytest.fail.Exception: with the name of the input, the first difference and ``meaning``. It is no ``Exception``, so
            :func:`expect_refused` around it does not mistake it for the learner's error.
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
    """The tensors, plain values and lists of plain values in dicts, lists and tuples, by a name like ``config['head_dim']``."""
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
            change = f"it is added, as {_shown(now[name])}"
        else:
            change = _change(before[name], now[name])
        if change:
            pytest.fail(_sentence(f"the call does not change {name}", change, meaning))


def _change(before: object, now: object) -> str:
    """The difference between two values, in words; empty if they are equal."""
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            return f"{before.dtype} of shape {tuple(before.shape)} became {now.dtype} of shape {tuple(now.shape)}"
        count = int((~torch.isclose(before, now, rtol=0, atol=0, equal_nan=True)).sum())
        return f"{count} of {now.numel()} elements have another value" if count else ""
    return "" if before == now else f"{_shown(before)} became {_shown(now)}"


def _sentence(expected: str, got: str, meaning: str) -> str:
    return f"expected: {expected}\ngot: {got}\n{meaning}"


def _shown(value: object) -> str:
    """Text without quotes, a set in sorted order, anything else by its repr."""
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, set):
        return _short(f"{{{', '.join(sorted(map(repr, value)))}}}" if value else "nothing")
    return _short(repr(value))


def _short(text: str, most: int = 240) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _values(tensor: Tensor) -> str:
    """The first twelve numbers, with five digits each."""
    if tensor.dim() > 1 and tensor.numel() <= SHOWN_IN_FULL:
        return f"[{', '.join(map(_values, tensor))}]"
    flat = tensor.flatten().tolist()
    shown = [f"{number:.5g}" for number in flat[:12]]
    return f"[{', '.join(chain(shown, ['...'] if len(flat) > len(shown) else []))}]"
