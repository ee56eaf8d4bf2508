"""Whether vLLM loads a checkpoint whole at every TP size, and computes what transformers computes: ``./lab verify``.

>>> from labkit.load.verify import verify_model
>>> verify_model("llama-3-8b", sizes=(1, 2, 4, 8)).status  # doctest: +SKIP
0

One load per TP size through the real class (`labkit.load.trace`), judged by what its copies cover
(`labkit.load.trace.coverage`); where there are values, the logits beside
transformers', and of those that differ the first module that does (layers.py).
"""

from labkit.load.verify.report import COULD_NOT, FINDINGS, WHOLE, Load, NotVerified, Report, write
from labkit.load.verify.run import SIZES, parse_sizes, verify_model

__all__ = ["COULD_NOT", "FINDINGS", "SIZES", "WHOLE", "Load", "NotVerified", "Report", "parse_sizes", "verify_model", "write"]
