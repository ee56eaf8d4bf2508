"""mini_vllm/README.md: the files of the first evening exist, and are short enough for one."""

from __future__ import annotations

import re
from pathlib import Path

MINI_VLLM = Path(__file__).resolve().parents[2] / "mini_vllm"
MOST_LINES = 1600


def files_under(heading: str) -> list[Path]:
    """The files in the first column of the table below a heading."""
    text = (MINI_VLLM / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [MINI_VLLM / name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_first_evening_is_at_most_1600_lines() -> None:
    files = files_under("The first evening")
    lines = {str(file.relative_to(MINI_VLLM)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lines) == 15
    assert sum(lines.values()) <= MOST_LINES, f"{sum(lines.values())} lines: {lines}"


def test_the_first_evening_reads_no_kernel_and_every_chapter_exists() -> None:
    assert not any("mini_vllm.kernels" in file.read_text(encoding="utf-8") for file in files_under("The first evening"))
    afterwards = files_under("Afterwards")
    assert len(afterwards) > 10
    assert all(file.exists() for file in afterwards)


def test_every_kernel_is_in_the_second_evenings_table() -> None:
    table = (MINI_VLLM / "kernels" / "README.md").read_text(encoding="utf-8")
    kernels = {file.name for file in (MINI_VLLM / "kernels").glob("*.py")} - {"__init__.py"}
    assert kernels == set(re.findall(r"`(\w+\.py)`", "".join(re.findall(r"^\| ((?:`\w+\.py`(?:, )?)+) \|", table, re.MULTILINE))))
