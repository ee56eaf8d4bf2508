"""Atomic file writes, and checks of output paths."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.system.errors import UserError


def atomic_write(path: Path, text: str) -> None:
    """Writes a text as UTF-8 atomically: a reader sees either the old content or the complete new content.

    Raises:
        UserError: the file cannot be written; the message gives the reason.
    """
    if not path.name:
        raise UserError(f"cannot write {path}: the path has no file name; name a file in a folder of yours")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write {path}: {fault.strerror}; name a file in a folder of yours") from fault


def check_output_path(path: Path, suffix: str, status: int = 1) -> None:
    """Checks, before the work that produces a file, that its name has this suffix and its folder exists.

    Raises:
        UserError: with this exit status, if the check fails.
    """
    if path.suffix != suffix:
        better = path.with_suffix(suffix).name if path.name else f"trace{suffix}"
        raise UserError(f"{path} should end in {suffix}; name it {better}", status)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to; make it first, or name another", status)
