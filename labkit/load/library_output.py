"""Silences the output of vLLM and of the libraries it uses, and shortens their errors. Imports neither torch nor vLLM."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.system.errors import UserError

NOISY_LOGGERS = ("vllm", "transformers", "torch._library.triton", "torch.distributed")
"""Loggers whose warnings a reader of the result could not act on."""


def require_vllm(command: str) -> None:
    """Raises UserError, naming the ``./lab`` command that installs vLLM, if vLLM is not installed in this environment."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"vLLM is not installed in this environment; run ./lab {command}, which installs the pinned version first"
        )


@contextmanager
def silence_logs() -> Iterator[None]:
    """Silences warnings, and NOISY_LOGGERS below ERROR; stops vLLM's usage statistics and requests to the Hugging Face hub.

    Enter it once for the imports and again for the work: a library sets the level of its logger when it is imported.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    levels = {logger: logger.level for logger in map(logging.getLogger, NOISY_LOGGERS)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Silences every logger below CRITICAL, and everything written to file descriptor 2, also by C++ code."""
    logging.disable(logging.ERROR)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # its file descriptor is needed
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(logging.NOTSET)


def describe_error(error: BaseException) -> str:
    """Formats an exception as ``Type: message`` on one line; leaves out vLLM's list of all parameters and pydantic's context."""
    faults = getattr(error, "errors", None)  # pydantic's ValidationError
    message = "; ".join(fault["msg"] for fault in faults()) if callable(faults) else str(error)
    message = " ".join(message.split(" The available parameters")[0].split()).rstrip(".")
    return f"{type(error).__name__}: {message}" if message else f"{type(error).__name__} without a message"
