"""What a learner sees of ./lab check when the file is at fault, held word for word.

After a change that is meant, write the texts anew and read the diff:

    .venv/bin/python tests/labkit/check/test_golden.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from labkit.system.labs import ROOT, find_lab

GOLDEN = Path(__file__).parent / "golden"
RIGHT = (find_lab("03").folder / "solution.py").read_text(encoding="utf-8")
FIRST_LINE = "    owner, _, kind = "
"""The first line of translate in the solution."""


def changed(old: str, new: str) -> str:
    """The solution with one change."""
    assert RIGHT.count(old) == 1, f"the solution of lab 03 has changed; choose another line than {old!r}"
    return RIGHT.replace(old, new)


def begins(statement: str) -> str:
    """The solution, and translate begins with this statement."""
    return changed(FIRST_LINE, f"    {statement}\n{FIRST_LINE}")


FILES = {
    "empty file": "",
    "syntax error": changed("return name, None", "return (name, None"),
    "import error": f"import flash_attn\n{RIGHT}".replace("from __future__ import annotations\n", ""),
    "wrong shape": changed("first_head * shape.head_dim, num_heads * shape.head_dim", "first_head * shape.head_dim, num_heads"),
    "wrong slice": changed('"v": (heads + kv_heads, kv_heads', '"v": (heads, kv_heads'),
    "endless loop": begins("while True: pass"),
    "exit": begins("import os; os._exit(0)"),
    "print flood": begins("print('x' * 1_000_000); return name, None"),
}
"""Lab 03's solution, spoilt in the ways that happen."""


def said(text: str) -> str:
    """What ./lab check says of such a file, in a pipe of 80 columns, without what differs from run to run."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "work" / "mine.py"
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "labkit", "check", "03", "--impl", str(file)],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 1, "no such file passes"
    assert ran.stderr == ""
    lines = [line.rstrip() for line in ran.stdout.splitlines() if not re.match(r"  ?still |Grading lab", line)]
    return re.sub(r"\S*/mine\.py", "mine.py", "\n".join(lines)) + "\n"


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_it(name: str) -> None:
    golden = GOLDEN / f"{name.replace(' ', '-')}.txt"
    assert said(FILES[name]) == golden.read_text(encoding="utf-8"), f"if this is meant: {sys.executable} {__file__}"


def test_no_other_texts_are_kept() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {name.replace(" ", "-") for name in FILES}


if __name__ == "__main__":
    for each, spoilt in FILES.items():
        written = GOLDEN / f"{each.replace(' ', '-')}.txt"
        written.write_text(said(spoilt), encoding="utf-8")
        print(f"written: {written.relative_to(ROOT)}")
