"""Verifies that vLLM loads a checkpoint whole at every TP size, and computes what transformers computes: ``./lab verify``.

>>> from labkit.load.verify import verify_model
>>> verify_model("llama-3-8b", sizes=(1, 2, 4, 8)).status  # doctest: +SKIP
0

run.py          loads once per TP size through the real class (`labkit.load.trace`), and finds the faults of each load
comparison.py   compares vLLM's logits with transformers' (model_runs.py), and finds the first module that differs
report.py       the result as data, JSON and text
"""

from labkit.load.verify.report import FINDINGS, NOT_VERIFIED, VERIFIED, LoadResult, Report, write_report
from labkit.load.verify.run import parse_sizes, verify_model

__all__ = ["FINDINGS", "NOT_VERIFIED", "VERIFIED", "LoadResult", "Report", "parse_sizes", "verify_model", "write_report"]
