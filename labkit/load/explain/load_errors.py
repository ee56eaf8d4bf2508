"""Finds a load error of vLLM in a log, and explains it; load_errors.toml lists the known errors."""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

from labkit.system.errors import UserError

ERRORS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["error"]

MAX_CHARACTERS = 20_000_000
MAX_LINE = 300
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LOGGER_PREFIX = re.compile(
    r"^(?:\([^)\n]*pid=\d+\)[ \t]*)?(?:(?:ERROR|WARNING|INFO) \d\d-\d\d [\d:]+ \[[^\]\n]*\][ \t]*)?", re.MULTILINE
)


@dataclass(frozen=True)
class KnownError:
    """An error in a log: its kind, its line without the logger's prefix, and sentences that explain it."""

    kind: str
    line: str
    meaning: str


def find_error(log: str) -> KnownError:
    """Finds the last known error in a log, because the engine's own report after it says less; raises UserError for none."""
    text = LOGGER_PREFIX.sub("", COLOUR.sub("", log[-MAX_CHARACTERS:]))
    matches = [(error, found) for error in ERRORS for found in re.finditer(error["pattern"], text, re.MULTILINE)]
    if not matches:
        raise UserError(
            f"no known load error of vLLM is in these {len(log):,} characters; known are: "
            f"{', '.join(error['kind'] for error in ERRORS)}; give the whole log, with the traceback"
        )
    error, found = max(matches, key=lambda match: match[1].start())
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0].strip().partition(" The available parameters")[0]
    groups = {
        name: textwrap.shorten(value[: 2 * MAX_LINE], MAX_LINE, placeholder=" ...") for name, value in found.groupdict().items()
    }
    count = len(re.findall(r"'[^']+'", found.groupdict().get("names", "")))
    shown = line if len(line) < MAX_LINE else f"{line[: MAX_LINE - 3]}..."
    return KnownError(error["kind"], shown, error["meaning"].format(**groups, count=count))


def read_log(file: Path | None) -> str:
    """Reads a log from a file or from standard input; raises UserError where it cannot be read or is empty."""
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give a log of vLLM's, or pipe one in") from error
    if not text.strip():
        raise UserError(f"{file or 'standard input'} is empty; paste vLLM's traceback, its last lines are enough")
    return text
