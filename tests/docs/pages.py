"""The pages of the project, every Markdown file that is tracked or would be, and the commands that they tell a reader to type."""

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
    """What git tracks or would track of the work tree."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", "--", *patterns]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in sorted(names) if (ROOT / name).is_file()]


PAGES = files("*.md")


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    Attributes:
        page: the file, from the work tree's root.
        text: what is to be typed, without the comment behind it.
        in_block: whether it stands in a code block; else in a line of text.
    """

    page: str
    text: str
    in_block: bool


def tokens(page: Path) -> list[Token]:
    """The page's Markdown, taken apart."""
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def is_command(text: str) -> bool:
    """Whether it begins with a program: one that the pages use, or one in a folder of ours."""
    words = [word for word in text.split() if not ASSIGNMENT.match(word)]
    return bool(words) and (words[0] in PROGRAMS or words[0].startswith(("./", ".venv/bin/")))


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each code block's language, if it says one, and its lines without the comments behind them."""
    for token in tokens(page):
        if token.type in ("code_block", "fence"):
            yield token.info, [re.split(r"\s#\s", line)[0].rstrip() for line in token.content.splitlines() if line.strip()]


def commands() -> Iterator[Command]:
    """Every command of every page."""
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        for language, lines in blocks(page):
            if language != "text":
                yield from (Command(name, line, in_block=True) for line in lines if is_command(line))
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline" and is_command(child.content) and " " in child.content:
                    yield Command(name, child.content, in_block=False)
