"""Whether vLLM loads a checkpoint whole at every TP size, and computes what transformers computes: ``./lab verify``.

>>> from labkit.verify import verify_model
>>> verify_model("llama-3-8b", sizes=(1, 2, 4, 8)).status  # doctest: +SKIP
0

One load per TP size through the real class (`labkit.trace`), judged by what its copies cover (`labkit.trace.coverage`); where
there are values, the logits beside transformers', and of those that differ the first module that does (layers.py).
"""

from labkit.verify.report import COULD_NOT, FINDINGS, WHOLE, Load, NotVerified, Report, write
from labkit.verify.run import SIZES, parse_sizes, verify_model

__all__ = ["COULD_NOT", "FINDINGS", "SIZES", "WHOLE", "Load", "NotVerified", "Report", "parse_sizes", "verify_model", "write"]
