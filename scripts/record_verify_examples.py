"""Runs the examples of ``./lab verify`` and ``./lab explain`` in docs/verify.md and writes their output into the page.

python scripts/record_verify_examples.py
git diff docs/verify.md
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "verify.md"

sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import record_verified  # noqa: E402  # found only with the line above

from labkit.checkpoints.faults import break_checkpoint  # noqa: E402
from labkit.checkpoints.known_models import resolve  # noqa: E402
from labkit.load.explain import mend, read  # noqa: E402
from labkit.load.explain.mend import lines as mended_lines  # noqa: E402
from labkit.load.verify import verify_model  # noqa: E402
from labkit.load.verify.report import lines  # noqa: E402

SAID = "ValueError: There is no module or parameter named 'language_model' in Gemma3ForCausalLM"


@contextmanager
def _in_a_folder() -> Iterator[None]:
    """Changes to a temporary directory, so that no path of this machine is printed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def shapes() -> str:
    """Runs ``./lab verify llama-3-8b``."""
    return "\n".join(lines(verify_model("llama-3-8b")))


def silent() -> str:
    """Runs ``./lab verify my-llama --tp 1,2`` on a checkpoint without one k_proj."""
    with _in_a_folder():
        record_verified.make("LlamaForCausalLM", Path("good"))
        break_checkpoint(Path("good"), "missing-k", Path("my-llama"))
        return "\n".join(lines(verify_model("my-llama", (1, 2), logits=False)))


def garbage() -> str:
    """Runs ``./lab verify from-gguf --tp 1 --against good`` on a checkpoint with permuted q and k."""
    with _in_a_folder():
        record_verified.make("LlamaForCausalLM", Path("good"))
        break_checkpoint(Path("good"), "permuted-qk", Path("from-gguf"))
        return "\n".join(lines(verify_model("from-gguf", (1,), against=Path("good"))))


def prefix() -> str:
    """Runs ``./lab explain --model headers.json`` on a text-only Gemma 3 with the prefix of a multimodal model."""
    with _in_a_folder():
        record_verified.make("Gemma3ForCausalLM", Path("gemma"))
        stored = resolve("gemma").stored
        headers = {f"language_model.{name}": {"dtype": each.dtype, "shape": each.shape} for name, each in stored.items()}
        Path("gemma/headers.json").write_text(json.dumps(headers))
        said = read(SAID)
        return "\n".join([f"said: {said.line}", said.words, *mended_lines(mend(resolve("gemma/headers.json")))])


EXAMPLES: dict[str, Callable[[], str]] = {"shapes": shapes, "silent": silent, "garbage": garbage, "prefix": prefix}


def with_examples(text: str, said: dict[str, str]) -> str:
    """Replaces each block below a marker ``<!-- run: NAME -->`` by the output of that example."""
    block = r"(<!-- run: (\w+) -->\n```text\n).*?(```)"
    return re.sub(block, lambda found: f"{found[1]}{said[found[2]]}\n{found[3]}", text, flags=re.DOTALL)


def main() -> int:
    """Runs every example in a fork, so that none affects another, and writes the page."""
    said = {name: record_verified.forked(example) for name, example in EXAMPLES.items()}
    PAGE.write_text(with_examples(PAGE.read_text(encoding="utf-8"), said), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
