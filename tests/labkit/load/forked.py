"""Runs a function in a fork of this process, so that vLLM is imported once and cases do not affect each other."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forked(function: Callable[[], Any]) -> Any:
    """Returns the function's result through JSON; raises its exception as RuntimeError with the type's name."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        child = os.fork()
        if child == 0:
            try:
                answer.write_text(json.dumps({"returned": function()}))
            except BaseException as error:
                answer.write_text(json.dumps({"raised": f"{type(error).__name__}: {error}"}))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert answer.is_file(), f"the process ended with {status}"
        told = json.loads(answer.read_text())
        if "raised" in told:
            raise RuntimeError(told["raised"])
        return told["returned"]
