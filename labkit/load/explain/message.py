"""Finds vLLM's load error in a log, and says it in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.system.errors import UserError

MOST = 20_000_000
"""Characters of a log that are looked at, from its end."""


@dataclass(frozen=True)
class Said:
    """An error, found.

    Attributes:
        kind: a short word for it.
        line: the line as it stood in the log, without what the logger put before it.
        words: what it means, in sentences.
    """

    kind: str
    line: str
    words: str


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DECORATION = re.compile(
    r"^(?:\([^)\n]*pid=\d+\)[ \t]*)?(?:(?:ERROR|WARNING|INFO) \d\d-\d\d [\d:]+ \[[^\]\n]*\][ \t]*)?", re.MULTILINE
)
"""What vLLM's logger puts before a line."""


def _no_home(found: re.Match[str]) -> str:
    return (
        f"The checkpoint has a name that begins with {found['name']}, and {found['owner']} has no module or parameter so called. "
        "vLLM stops at the first such name, so there may be more. Either a mapping row is missing that gives it a name the class "
        "has, or the checkpoint is of another class than config.json says, or the tensor is one to leave out."
    )


def _key(found: re.Match[str]) -> str:
    return (
        f"A loader with a loop of its own looked {found['name']} up among the class's parameters: there is none. The row of its "
        "mapping may have been applied already (qkv_proj, w13), so the checkpoint's own name is another; or the tensor is one "
        "that the class does not hold: a scale of a quantized checkpoint, a bias, a name of another convention."
    )


def _not_initialized(found: re.Match[str]) -> str:
    names = re.findall(r"'([^']+)'", found["names"])
    count = f"{len(names)} parameters, such as {names[0]}," if len(names) > 1 else f"{names[0] if names else 'A parameter'}"
    return (
        f"{count} got nothing from the checkpoint: a tensor is missing on disk, or stands there under a name that was skipped. "
        "vLLM checks names of parameters, not their parts, and leaves linear layers out: more may be empty than it says."
    )


def _nested(found: re.Match[str]) -> str:
    return (
        f"The checkpoint has {found['name']}, which lies below {found['owner']}: for the class a parameter and no module. "
        "A row is missing that takes the last part of the name away."
    )


def _shape(found: re.Match[str]) -> str:
    return (
        f"A tensor of shape {found['mine']} was to go into a parameter of shape {found['theirs']}: config.json's sizes are "
        "not the checkpoint's, or the tensor belongs elsewhere."
    )


def _narrow(found: re.Match[str]) -> str:
    start, length, size = (int(found[name]) for name in ("start", "length", "size"))
    return (
        f"A rank wanted {length} rows from {start} of a tensor that has {size}: too short for what config.json says, in most "
        "cases its number of kv heads or its head size. A rank whose part is there says nothing, and a tensor that is too long "
        "is cut off in silence: ./lab verify shows both."
    )


def _unsupported(found: re.Match[str]) -> str:
    return (
        f"config.json asks for {found['names']}, which this vLLM has no class for, nor any plugin. A plugin that "
        "fails is only logged: look further up for 'Failed to load plugin'. ./lab verify DIR says which name is nearest."
    )


KINDS: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = {
    "no home": (re.compile(r"There is no module or parameter named '(?P<name>[^']*)' in (?P<owner>\w+)"), _no_home),
    "nested": (
        re.compile(r"Attempted to load nested weight '(?P<name>[^']*)' into a single parameter '(?P<owner>[^']*)'"),
        _nested,
    ),
    "not initialized": (
        re.compile(r"(?:Following|Some) weights (?:were|are) not initialized from checkpoints?:?\s*(?P<names>\{.*)"),
        _not_initialized,
    ),
    "shape": (
        re.compile(r"Attempted to load weight \((?P<mine>[^{}]*?)\) into parameter \((?P<theirs>[^{}]*?\))\)"),
        _shape,
    ),
    "too short": (
        re.compile(r"start \((?P<start>\d+)\) \+ length \((?P<length>\d+)\) exceeds dimension size \((?P<size>\d+)\)"),
        _narrow,
    ),
    "key": (re.compile(r"KeyError: '(?P<name>[\w.]+)'"), _key),
    "no parameter": (
        re.compile(r"Layer (?P<owner>\S+) has no parameter '(?P<name>[^']*)' for checkpoint weight '(?P<tensor>[^']*)'"),
        lambda found: (
            f"The experts' mapping made {found['name']} of {found['tensor']}, and {found['owner']} has no such "
            "parameter: a scale or a bias without a home. A config without quantization_config beside quantized weights ends so."
        ),
    ),
    "unsupported": (
        re.compile(r"Model architectures? (?P<names>\[[^\]]*\]|\S+) (?:are|is) not supported"),
        _unsupported,
    ),
    "file missing": (
        re.compile(r"Weight files referenced in index but missing: (?P<names>\{[^}]*\})"),
        lambda found: f"The index names {found['names']}, and there is no such file: the download was cut off. Fetch it again.",
    ),
    "broken file": (
        re.compile(r"SafetensorError: (?P<said>[^\n]*)"),
        lambda found: f"A safetensors file is cut short or damaged ({found['said'].strip()}). Fetch it again.",
    ),
    "empty assertion": (
        re.compile(r"AssertionError:?\s*$", re.MULTILINE),
        lambda found: (
            "An assertion without a message; while weights load, it is a tensor of a shape that is not the parameter's: its "
            "input size, or the vocabulary. With --model, the tensor and both shapes are named."
        ),
    ),
}
"""The errors that are known, each with the sentence that says it."""


def read(log: str) -> Said:
    """The last error in a log that is known here: the engine's own report of it comes after it and says less.

    Raises:
        UserError: there is none.
    """
    text = _DECORATION.sub("", _COLOUR.sub("", log[-MOST:]))
    found = [(match.start(), kind, match, say) for kind, (pattern, say) in KINDS.items() for match in pattern.finditer(text)]
    if not found:
        raise UserError(
            f"no load error of vLLM that is known here stands in these {len(log):,} characters; known are: {', '.join(KINDS)}"
        )
    start, kind, match, say = max(found, key=lambda each: each[0])
    line = text[text.rfind("\n", 0, start) + 1 :].partition("\n")[0].strip()
    line = line.partition(" The available parameters")[0]
    return Said(kind, line if len(line) < 300 else f"{line[:297]}...", say(match))


def read_log(file: Path | None) -> str:
    """A log's text, of a file or of standard input; what is no UTF-8 in it is passed over.

    Raises:
        UserError: it cannot be read, or nothing stands in it.
    """
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give a log of vLLM's, or pipe one in") from error
    if not text.strip():
        raise UserError(f"{file or 'standard input'} is empty; paste vLLM's traceback, its last lines are enough")
    return text
