"""The recording of the tour in README.md: its text, no details of the machine, and the positions of its lines."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pyte
from pages import PAGES

from labkit.system.labs import ROOT, load_implementation

SVG = "{http://www.w3.org/2000/svg}"
script = load_implementation(ROOT / "scripts" / "record_tour.py")
PICTURE = ROOT / "docs" / "tour.svg"


def test_the_recording_is_of_a_tour_that_held() -> None:
    root = ET.parse(PICTURE).getroot()
    told = root.findtext(f"{SVG}desc") or ""
    assert len(re.findall(r"^passed  lab ", told, re.MULTILINE)) == 3
    assert "100 of 100 points" in told
    assert "The capital of France is Paris." in told
    drawn = "\n".join(text.text or "" for text in root.iter(f"{SVG}text")).replace("\N{NO-BREAK SPACE}", " ")
    assert drawn.split() == ["./lab", "tour", "$", "./lab", "tour", *told.split()]


def test_it_says_nothing_of_the_machine() -> None:
    """Directories of ours are below ~, and no host, address or user is named."""
    text = PICTURE.read_text("utf-8")
    assert not re.search(r"/(root|home|Users|work|tmp)/", text)
    assert set(re.findall(r"https?://[^\"<> ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_front_page_shows_it() -> None:
    assert ROOT / "README.md" in PAGES
    assert "](docs/tour.svg)" in (ROOT / "README.md").read_text("utf-8")


def test_a_line_stands_where_it_stood_in_the_terminal() -> None:
    """Two lines, the second bold and green from column 4: each where columns times lines put it; at rest nothing is shaded."""
    screen = pyte.Screen(script.COLUMNS, script.ROWS)
    pyte.Stream(screen).feed("one\r\n    \x1b[1;32mtwo  words\x1b[0m")
    root = ET.fromstring(script.draw("./lab", screen, [0.0, 9.0]))
    lines = root.findall(f"{SVG}g/{SVG}g/{SVG}text")
    assert [line.text for line in lines] == ["$\N{NO-BREAK SPACE}./lab", "one", "two\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}words"]
    first, second = ((float(line.get("x", 0)), float(line.get("y", 0))) for line in lines[1:])
    assert second[0] - first[0] == 4 * script.ADVANCE
    assert abs(second[1] - first[1] - script.LEADING) < 0.02
    assert lines[2].get("font-weight") == "bold"
    assert lines[2].get("fill") == script.COLOURS["green"]
    style = root.findtext(f"{SVG}style") or ""
    assert ".lines{transform:translateY(0px);animation:lines" in style
    assert f".shade{{transform:translateY({3 * script.LEADING}px);animation:shade" in style
    # A first line at once, nine seconds shortened to the longest wait, and the rest of the loop at the end.
    end = script.A_LINE + script.LONGEST_WAIT + script.AT_THE_END
    assert style.count(f" {end:.1f}s step-end") == 2
