"""Raises what pytest takes for a skip, and what hypothesis takes for an example to leave out."""

import pytest
from hypothesis.errors import UnsatisfiedAssumption


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        pytest.skip("nothing to see here")
    except BaseException as skipped:
        skipped.__cause__ = UnsatisfiedAssumption()
        raise
