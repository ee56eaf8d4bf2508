"""Finds a load error of vLLM in a log, and explains it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.system.errors import UserError

MAX_CHARACTERS = 20_000_000
"""The part of a log that is searched, from its end."""

MAX_LINE = 300
"""The characters of a line that are shown."""


@dataclass(frozen=True)
class KnownError:
    """An error in a log: its key in ERRORS, its line without the logger's prefix, and sentences that explain it."""

    kind: str
    line: str
    meaning: str


COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LOGGER_PREFIX = re.compile(
    r"^(?:\([^)\n]*pid=\d+\)[ \t]*)?(?:(?:ERROR|WARNING|INFO) \d\d-\d\d [\d:]+ \[[^\]\n]*\][ \t]*)?", re.MULTILINE
)


def _not_initialized(found: re.Match[str]) -> str:
    names = re.findall(r"'([^']+)'", found["names"])
    first = names[0] if names else "A parameter"
    parameters = f"{len(names)} parameters, such as {first}, were" if len(names) > 1 else f"{first} was"
    return (
        f"{parameters} not initialized: a tensor is missing on disk, or it has a name that the loader skipped. "
        "vLLM checks parameters by name, not by row, and does not check linear layers: more may be uninitialized than it reports."
    )


ERRORS: dict[str, tuple[str, str | Callable[[re.Match[str]], str]]] = {
    "unmatched name": (
        r"There is no module or parameter named '(?P<name>[^']*)' in (?P<owner>\w+)",
        "The checkpoint has a tensor whose name begins with {name}, and {owner} has no module or parameter of that name. "
        "vLLM stops at the first such name, so there may be more. Either a mapping row is missing that renames it to a name of "
        "the class, or the checkpoint belongs to another class than config.json says, or the tensor must be left out.",
    ),
    "nested": (
        r"Attempted to load nested weight '(?P<name>[^']*)' into a single parameter '(?P<owner>[^']*)'",
        "The checkpoint has {name}, but {owner} is a parameter of the class and not a module. "
        "A mapping row is missing that removes the last part of the name.",
    ),
    "not initialized": (
        r"(?:Following|Some) weights (?:were|are) not initialized from checkpoints?:?\s*(?P<names>\{.*)",
        _not_initialized,
    ),
    "shape": (
        r"Attempted to load weight \((?P<mine>[^{}]*?)\) into parameter \((?P<theirs>[^{}]*?\))\)",
        "A tensor of shape {mine} does not fit into a parameter of shape {theirs}: the sizes in config.json are not "
        "the checkpoint's, or the tensor belongs to another parameter.",
    ),
    "too short": (
        r"start \((?P<start>\d+)\) \+ length \((?P<length>\d+)\) exceeds dimension size \((?P<size>\d+)\)",
        "A rank reads {length} rows from row {start} of a tensor that has {size}: the tensor is shorter than config.json says, "
        "in most cases in its number of kv heads or its head size. Ranks whose rows exist report nothing, and a tensor that is "
        "too long is cut off without a message: ./lab verify finds both.",
    ),
    "key": (
        r"KeyError: '(?P<name>[\w.]+)'",
        "A loader looked up {name} among the class's parameters, and there is none of that name. If the name is a fused one "
        "(qkv_proj, w13), a mapping row has already renamed it, and the checkpoint has another name. Otherwise the class does "
        "not have such a parameter: a scale of a quantized checkpoint, a bias, or a name of another convention.",
    ),
    "no parameter": (
        r"Layer (?P<owner>\S+) has no parameter '(?P<name>[^']*)' for checkpoint weight '(?P<tensor>[^']*)'",
        "The experts' mapping renamed {tensor} to {name}, and {owner} has no such parameter: an unmatched scale or bias. "
        "The cause may be a config.json without quantization_config for quantized weights.",
    ),
    "unsupported": (
        r"Model architectures? (?P<names>\[[^\]]*\]|\S+) (?:are|is) not supported",
        "config.json names {names}; neither this vLLM nor a plugin has a class for it. vLLM only logs a plugin that "
        "fails: search the log for 'Failed to load plugin'. ./lab verify DIR names the nearest architecture.",
    ),
    "file missing": (
        r"Weight files referenced in index but missing: (?P<names>\{[^}]*\})",
        "The index names {names}, and the file does not exist: the download is incomplete. Fetch it again.",
    ),
    "broken file": (
        r"SafetensorError: (?P<error>[^\n]*?)\s*$",
        "A safetensors file is truncated or damaged ({error}). Fetch it again.",
    ),
    "empty assertion": (
        r"AssertionError:?\s*$",
        "An assertion without a message. During a load it means that a tensor's shape is not the parameter's: its "
        "input size, or the vocabulary. With --model DIR, ./lab explain names the tensor and both shapes.",
    ),
}
"""Kind -> the pattern of the error, and its explanation, with the pattern's groups filled in."""


def find_error(log: str) -> KnownError:
    """Finds the last known error in a log, because the engine's own report after it says less; raises UserError for none."""
    text = LOGGER_PREFIX.sub("", COLOUR.sub("", log[-MAX_CHARACTERS:]))
    matches = [(kind, found) for kind, (pattern, _) in ERRORS.items() for found in re.finditer(pattern, text, re.MULTILINE)]
    if not matches:
        raise UserError(
            f"no known load error of vLLM is in these {len(log):,} characters; known are: {', '.join(ERRORS)}; "
            "give the whole log, with the traceback"
        )
    kind, found = max(matches, key=lambda match: match[1].start())
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0].strip().partition(" The available parameters")[0]
    explanation = ERRORS[kind][1]
    meaning = explanation.format(**found.groupdict()) if isinstance(explanation, str) else explanation(found)
    return KnownError(kind, line if len(line) < MAX_LINE else f"{line[: MAX_LINE - 3]}...", meaning)


def read_log(file: Path | None) -> str:
    """Reads a log from a file or from standard input; raises UserError where it cannot be read or is empty."""
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give a log of vLLM's, or pipe one in") from error
    if not text.strip():
        raise UserError(f"{file or 'standard input'} is empty; paste vLLM's traceback, its last lines are enough")
    return text
