"""Holds back what vLLM and the libraries under it say while they are imported and while a model is built."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("vllm", "transformers", "torch._library.triton", "torch.distributed")
"""Loggers that speak of nothing a reader of the trace could act on."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the noisy loggers below an error, and warnings; keeps vLLM from reporting its use and from asking the hub."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    levels = {name: logging.getLogger(name).level for name in NOISY}
    try:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
