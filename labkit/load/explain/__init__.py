"""Explains a load error of vLLM, and finds the mapping rows that fix it: ``./lab explain``.

load_errors.py    finds an error that load_errors.toml lists in a log, and explains it
single_loads.py   loads the tensors one by one into vLLM's class on the meta device; lists unmatched names, unfilled parameters
mapper_rows.py    proposes WeightsMapper rows that lead from unmatched names to unfilled parameters
fix.py            tries the rows on meta, and reports whether the load is whole with them
"""

from labkit.load.explain.fix import FixSearch, find_fix
from labkit.load.explain.load_errors import KnownError, find_error, read_log

__all__ = ["FixSearch", "KnownError", "find_error", "find_fix", "read_log"]
