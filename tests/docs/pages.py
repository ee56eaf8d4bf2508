"""The pages of the project, every Markdown file that is tracked or not ignored, and the commands on them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from labkit.system.labs import ROOT

PROGRAMS = {"python", "pytest", "tox", "torchrun", "docker", "devcontainer", "npm", "git", "pip", "vllm", "curl", "uv"}
ASSIGNMENT = re.compile(r"\w+=\S*$")


def files(*patterns: str) -> list[Path]:
    """Returns the files of the work tree that are tracked or not ignored."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", "--", *patterns]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in sorted(names) if (ROOT / name).is_file()]


PAGES = files("*.md")


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    Attributes:
        page: the file, relative to the root.
        text: the command, without a comment after it.
        in_block: whether it is in a code block; else in a line of text.
    """

    page: str
    text: str
    in_block: bool


def tokens(page: Path) -> list[Token]:
    """Parses the page's Markdown."""
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def is_command(text: str) -> bool:
    """Returns whether a text starts with one of ``PROGRAMS`` or a program in the work tree."""
    words = [word for word in text.split() if not ASSIGNMENT.match(word)]
    return bool(words) and (words[0] in PROGRAMS or words[0].startswith(("./", ".venv/bin/")))


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each code block's language, if given, and its lines without the comments after them."""
    for token in tokens(page):
        if token.type in ("code_block", "fence"):
            yield token.info, [re.split(r"\s#\s", line)[0].rstrip() for line in token.content.splitlines() if line.strip()]


def commands() -> Iterator[Command]:
    """Yields every command on every page."""
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        for language, lines in blocks(page):
            if language != "text":
                yield from (Command(name, line, in_block=True) for line in lines if is_command(line))
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline" and is_command(child.content) and " " in child.content:
                    yield Command(name, child.content, in_block=False)
