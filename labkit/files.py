"""Files that we write: whole or not at all, and refused before the work where the place cannot be right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, text: str, error: Callable[[str], Exception]) -> None:
    """Writes a text as UTF-8, whole or not at all: a reader never sees half of it.

    Args:
        error: makes the exception that is raised, from its message.

    Raises:
        error: the file cannot be written there; says why.
    """
    if not path.name:
        raise error(f"cannot write {path}: it names no file; name one in a folder of yours")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise error(f"cannot write {path}: {fault.strerror}; name a file in a folder of yours") from fault


def check_place(path: Path, suffix: str, error: Callable[[str], Exception]) -> None:
    """Sees that a file of this suffix can be meant, before it costs a trace to find out.

    Raises:
        error: the suffix is another, or there is no such folder.
    """
    if path.suffix != suffix:
        raise error(f"{path} should end in {suffix}; name it {path.with_suffix(suffix).name if path.name else 'trace' + suffix}")
    if not path.parent.is_dir():
        raise error(f"there is no folder {path.parent} to write {path.name} to; make it first, or name another")
