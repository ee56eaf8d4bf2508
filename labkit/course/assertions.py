"""How a lab's test says no: what was expected, what came, and what that means for a model that is served.

    expected: (4096, 5120)
    got: (4096, 8192)
    k begins after 32 query heads of 128 rows, and has the rows of 8

An ``assert`` would add how Python compared the two; this says which rows differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

SHOWN_IN_FULL = 24
"""Elements of a tensor that is shown in full; of a larger one the first row that differs is."""


def expect(got: object, expected: object, meaning: str) -> None:
    """Fails unless the two are equal.

    Raises:
        AssertionError: both values, and ``meaning``.
    """
    __tracebackhide__ = True
    if got != expected:
        raise AssertionError(_sentence(_shown(expected), _shown(got), meaning))


def expect_tensor(got: object, expected: Tensor, meaning: str, within: float = 0) -> None:
    """Fails unless ``got`` is a tensor of the expected shape, dtype and values.

    Args:
        got: what came.
        expected: what should have come.
        meaning: what it means for a served model.
        within: how far apart two elements may be.

    Raises:
        AssertionError: the first of these that differs; of many rows the first that does, by its number.
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
    """Fails unless the block raises ``error`` with all of ``numbers``, in any order, in its message.

    Raises:
        AssertionError: what was raised instead, if anything, and ``meaning``.
    """
    __tracebackhide__ = True
    expected = f"a {error.__name__}" + (f" that has {' and '.join(map(str, numbers))} in it" if numbers else "")
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


def _sentence(expected: str, got: str, meaning: str) -> str:
    return f"expected: {expected}\ngot: {got}\n{meaning}"


def _shown(value: object) -> str:
    """A sentence as it is; a set in an order that does not change."""
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, set):
        return _short(f"{{{', '.join(sorted(map(repr, value)))}}}" if value else "nothing")
    return _short(repr(value))


def _short(text: str, most: int = 240) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _values(tensor: Tensor) -> str:
    """The numbers, five digits of each, at most a dozen and a word about the others."""
    if tensor.dim() > 1 and tensor.numel() <= SHOWN_IN_FULL:
        return f"[{', '.join(map(_values, tensor))}]"
    flat = tensor.flatten().tolist()
    shown = [f"{number:.5g}" for number in flat[:12]]
    return f"[{', '.join(chain(shown, ['...'] if len(flat) > len(shown) else []))}]"
