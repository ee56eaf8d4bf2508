"""Runs the examples of docs/verify.md, and writes their output into it.

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

from labkit.checkpoints.faults import inject_fault  # noqa: E402
from labkit.checkpoints.known_models import resolve  # noqa: E402
from labkit.load.explain import find_error, find_fix  # noqa: E402
from labkit.load.explain.fix import fix_lines  # noqa: E402
from labkit.load.verify import verify_model  # noqa: E402
from labkit.load.verify.report import report_lines  # noqa: E402

ERROR = "ValueError: There is no module or parameter named 'language_model' in Gemma3ForCausalLM"


@contextmanager
def _in_a_folder() -> Iterator[None]:
    """Changes to a temporary directory, so that names are short and no path of this machine is printed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def shapes() -> str:
    """``./lab verify llama-3-8b``."""
    return "\n".join(report_lines(verify_model("llama-3-8b")))


def silent() -> str:
    """``./lab verify my-llama --tp 1,2``, for a checkpoint that lacks a k_proj."""
    with _in_a_folder():
        record_verified.make("LlamaForCausalLM", Path("good"))
        inject_fault(Path("good"), "missing-k", Path("my-llama"))
        return "\n".join(report_lines(verify_model("my-llama", (1, 2), logits=False)))


def garbage() -> str:
    """``./lab verify from-gguf --tp 1 --against good``, for one whose q and k are permuted."""
    with _in_a_folder():
        record_verified.make("LlamaForCausalLM", Path("good"))
        inject_fault(Path("good"), "permuted-qk", Path("from-gguf"))
        return "\n".join(report_lines(verify_model("from-gguf", (1,), against=Path("good"))))


def prefix() -> str:
    """``./lab explain --model headers.json``, for a text-only Gemma 3 with a multimodal model's prefix."""
    with _in_a_folder():
        record_verified.make("Gemma3ForCausalLM", Path("gemma"))
        stored = resolve("gemma").stored
        headers = {f"language_model.{name}": {"dtype": each.dtype, "shape": each.shape} for name, each in stored.items()}
        Path("gemma/headers.json").write_text(json.dumps(headers))
        error = find_error(ERROR)
        return "\n".join([f"error: {error.line}", error.meaning, *fix_lines(find_fix(resolve("gemma/headers.json")))])


EXAMPLES: dict[str, Callable[[], str]] = {"shapes": shapes, "silent": silent, "garbage": garbage, "prefix": prefix}


def with_examples(text: str, outputs: dict[str, str]) -> str:
    """Replaces each block below a marker ``<!-- run: NAME -->`` by the output of that example."""
    block = r"(<!-- run: (\w+) -->\n```text\n).*?(```)"
    return re.sub(block, lambda found: f"{found[1]}{outputs[found[2]]}\n{found[3]}", text, flags=re.DOTALL)


def main() -> int:
    """Runs every example in a fork, so that they do not affect each other, and writes the page."""
    outputs = {name: record_verified.forked(example) for name, example in EXAMPLES.items()}
    PAGE.write_text(with_examples(PAGE.read_text(encoding="utf-8"), outputs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
