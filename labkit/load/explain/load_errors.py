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
    """A known error in a log: its kind, its line of the log without the logger's prefix, and sentences that explain the error."""

    kind: str
    line: str
    meaning: str


def find_error(log: str) -> KnownError:
    """Returns the known error that comes last in a log; raises UserError if the log has none."""
    text = LOGGER_PREFIX.sub("", COLOUR.sub("", log[-MAX_CHARACTERS:]))
    matches = [(error, found) for error in ERRORS for found in re.finditer(error["pattern"], text, re.MULTILINE)]
    if not matches:
        raise UserError(
            f"no known load error of vLLM is in these {len(log):,} characters; the known kinds are: "
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
    """Returns the text of a log file, or of standard input for None; raises UserError if it cannot be read or is empty."""
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give the file of a vLLM log, or pipe a log in") from error
    if not text.strip():
        raise UserError(f"{file or 'standard input'} is empty; paste vLLM's traceback, its last lines are enough")
    return text
