"""Records the picture in README.md: ``./lab tour`` in a real terminal.

    python scripts/record_tour.py

The recorded text is not changed. Run it on a quiet machine where everything is installed and fetched; the first run of a tour
takes longer.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pexpect
import pyte
from pyte.screens import Char

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))

from labkit.pictures.drawing import element, svg_text  # noqa: E402  # found only with the line above

COLUMNS, ROWS, SHOWN = 104, 400, 32
"""The terminal's size, which fits the whole tour, and the number of lines that the picture shows at a time."""
PICTURE = ROOT / "docs" / "tour.svg"
SIZE, ADVANCE, LEADING, MARGIN, BAR = 12, 7.23, 17, 14, 28
"""Pixels: font size, character width, line height, margin, height of the window's title bar."""
LONGEST_WAIT, A_LINE, AT_THE_END = 1.5, 0.07, 8.0
"""Seconds: longest wait (longer ones are shortened), shortest time of a line, duration of the last frame."""
SHEET, TEXT, FAINT = "#10151c", "#d8dee6", "#5a6472"
COLOURS = {
    "red": "#ff8a80",
    "green": "#8fd694",
    "brown": "#e6c07b",
    "blue": "#82aaff",
    "magenta": "#c792ea",
    "cyan": "#7fd6d6",
    "black": FAINT,
}


def record(command: str) -> tuple[pyte.Screen, list[float]]:
    """Runs the command in a terminal; returns the final screen and the time at which the cursor first left each line.

    Raises:
        SystemExit: the command failed.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    child = pexpect.spawn(command, cwd=ROOT, env=environment, dimensions=(ROWS, COLUMNS), timeout=600)
    started, left = time.monotonic(), []
    with contextlib.suppress(pexpect.EOF):
        while True:
            # The picture must not show the home directory of this machine.
            stream.feed(child.read_nonblocking(4096).replace(bytes(Path.home()), b"~"))
            left += [time.monotonic() - started] * (screen.cursor.y - len(left))
    child.close()
    lines = shown(screen)
    if child.exitstatus or len(left) < len(lines) - 1:
        sys.exit(f"{command} ended with status {child.exitstatus}; nothing was written:\n" + "\n".join(lines))
    return screen, [*left, time.monotonic() - started][: len(lines)]


def shown(screen: pyte.Screen) -> list[str]:
    """Returns the lines of the screen without empty lines at the end."""
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def draw(command: str, screen: pyte.Screen, left: Sequence[float]) -> str:
    """Draws the recording as a self-contained animated SVG; without animation it shows the last frame."""
    lines = shown(screen)
    root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    element(root, "title", f"{command}, recorded; waits are shortened, printed times are not changed")
    element(root, "desc", "\n".join(lines))
    element(root, "style", _motion(left))
    room = SHOWN * LEADING
    element(element(root, "clipPath", id="window"), "rect", y=BAR + MARGIN - 1, width="100%", height=room + 2)
    element(root, "rect", width="100%", height="100%", rx=8, fill=SHEET)
    for place in range(3):
        element(root, "circle", cx=MARGIN + 6 + 18 * place, cy=BAR / 2 + 2, r=5, fill="none", stroke=FAINT)
    element(root, "text", command, x="50%", y=BAR / 2 + 6, fill=TEXT, text_anchor="middle")
    window = element(root, "g", clip_path="url(#window)")
    moving = element(window, "g", class_="lines")
    prompt = (0, f"$ {command}", {"fill": TEXT, "font_weight": "bold"})
    for number, runs in enumerate([[prompt], *(_runs(screen, line) for line in range(len(lines)))]):
        _text(moving, runs, number)
    element(window, "rect", class_="shade", y=BAR + MARGIN, width="100%", height=room + MARGIN, fill=SHEET)
    text = svg_text(root, 2 * MARGIN + COLUMNS * ADVANCE, BAR + room + 2 * MARGIN)
    face = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
    return text.replace('font-family="system-ui, sans-serif"', f'font-family="{face}" font-size="{SIZE}"')


def _motion(left: Sequence[float]) -> str:
    """Returns the CSS animation: a cover over the lines that are not printed yet moves down, then the lines scroll up."""
    now, before, moments = 0.0, 0.0, [0.0]
    for moment in left:
        now += min(max(moment - before, A_LINE), LONGEST_WAIT)
        before = moment
        moments.append(now)
    end = now + AT_THE_END
    style = ""
    for name, offsets in (
        ("lines", [min(SHOWN - 1 - number, 0) for number in range(len(moments))]),
        ("shade", [min(1 + number, SHOWN + 1) for number in range(len(moments))]),
    ):
        frames = zip(moments, offsets, strict=True)
        steps = "".join(f"{100 * moment / end:.2f}%{{transform:translateY({offset * LEADING}px)}}" for moment, offset in frames)
        rest = f"transform:translateY({offsets[-1] * LEADING}px)"
        style += f".{name}{{{rest};animation:{name} {end:.1f}s step-end infinite}}@keyframes {name}{{{steps}100%{{{rest}}}}}"
    return style + "@media(prefers-reduced-motion:reduce){.lines,.shade{animation:none}}"


def _runs(screen: pyte.Screen, number: int) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Splits a line into runs of equal style; yields column, text and style of each."""
    line, start = screen.buffer[number], 0
    for column in range(1, COLUMNS + 1):
        if column == COLUMNS or _look(line[column]) != _look(line[start]):
            text = "".join(line[place].data for place in range(start, column))
            if text.strip():
                yield start, text.rstrip(), _look(line[start])
            start = column


def _look(character: Char) -> dict[str, str]:
    look = {"fill": COLOURS.get(character.fg, TEXT)}
    return look | {"font_weight": "bold"} if character.bold else look


def _text(parent: ET.Element, runs: Iterable[tuple[int, str, dict[str, str]]], line: int) -> None:
    for column, text, look in runs:
        kept = text.lstrip()
        where = {"x": MARGIN + (column + len(text) - len(kept)) * ADVANCE, "y": BAR + MARGIN + (line + 0.7) * LEADING}
        # textLength keeps the columns aligned in any monospaced font; SVG merges ordinary spaces.
        element(
            parent,
            "text",
            kept.replace(" ", "\N{NO-BREAK SPACE}"),
            **where,
            **look,
            textLength=len(kept) * ADVANCE,
            lengthAdjust="spacingAndGlyphs",
        )


def main() -> None:
    """Records the tour and draws it."""
    command = "./lab tour"
    PICTURE.write_text(draw(command, *record(command)), encoding="utf-8")
    print(f"written: {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
