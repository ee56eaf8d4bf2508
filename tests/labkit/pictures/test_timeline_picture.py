"""The picture of a step trace says what the trace says, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from step_traces import STEPS, SVG, Lab, centre, chunk, groups, number, picture, places, step, title, write


def test_every_cell_stands_in_the_row_of_its_request_and_the_column_of_its_step(trace: Path) -> None:
    drawn = picture(trace)
    assert places(drawn, "prefill") == [("a", 0), ("b", 0), ("b", 1), ("b", 4)]
    assert places(drawn, "decode") == [("a", 1), ("a", 2), ("a", 3), ("b", 6)]
    assert places(drawn, "hit") == [("b", 0), ("b", 4)]
    assert places(drawn, "preemption") == [("b", 2)]
    assert [text.text for name in groups(drawn, "name") for text in name.iterfind(f"{SVG}text")] == ["a", "b", "c"]


def test_numbers_are_written_on_prefills_and_hits(trace: Path) -> None:
    drawn = picture(trace)
    assert [group.findtext(f"{SVG}text") for group in groups(drawn, "prefill")] == ["16", "24", "4", "13"]
    assert [group.findtext(f"{SVG}text") for group in groups(drawn, "hit")] == ["+32", "+48"]


def test_a_finish_closes_its_column_with_the_letter_of_the_reason(trace: Path) -> None:
    drawn = picture(trace)
    stop, abort = groups(drawn, "finish")
    assert (stop.findtext(f"{SVG}text"), abort.findtext(f"{SVG}text")) == ("S", "A")
    last_decode = max(x for x, _ in (centre(group) for group in groups(drawn, "decode")[:3]))
    width = centre(groups(drawn, "decode")[1])[0] - centre(groups(drawn, "decode")[0])[0]
    assert float(stop[1].attrib["d"][1:].split()[0]) == pytest.approx(last_decode + width / 2 + 1)


def test_lines_join_what_belongs_together_and_are_dashed_only_while_a_request_waits(trace: Path) -> None:
    drawn = picture(trace)
    (waits,), batch = groups(drawn, "waits"), groups(drawn, "batch")
    assert title(waits) == "request b: waits after a preemption, steps 2 to 4"
    assert waits[1].attrib["stroke-dasharray"] != "none"
    assert [title(line) for line in batch] == [
        "request a: in the batch, steps 0 to 3",
        "request b: in the batch, steps 0 to 2",
        "request b: in the batch, steps 4 to 6",
    ]
    assert not any("stroke-dasharray" in line[1].attrib for line in batch)
    (cross, _), back = centre(groups(drawn, "preemption")[0]), centre(groups(drawn, "prefill")[3])[0]
    start, _, stop = map(float, re.findall(r"[\d.]+", waits[1].attrib["d"]))
    assert (start, stop) == (pytest.approx(cross, abs=0.02), pytest.approx(back, abs=0.02))


def test_tooltips_say_the_numbers_in_words(trace: Path) -> None:
    drawn = picture(trace)
    assert [title(group) for group in groups(drawn, "prefill")][:2] == [
        "step 0, request a: prefill of 16 tokens at positions 0 to 15; 1 block taken: 0; a token is sampled",
        "step 0, request b: prefill of 24 tokens at positions 32 to 55; 4 blocks taken: 1, 2, 3, 4",
    ]
    assert title(groups(drawn, "decode")[1]) == (
        "step 2, request a: decode of 1 token at position 17; no block taken; a token is sampled"
    )
    assert title(groups(drawn, "hit")[1]) == (
        "step 4, request b: 48 tokens found in the prefix cache, positions 0 to 47, not computed"
    )
    assert title(groups(drawn, "preemption")[0]) == (
        "step 2, request b: preempted; 4 blocks freed: 1, 2, 3, 4; it waits until its next chunk"
    )
    assert title(groups(drawn, "finish")[0]) == "step 3, request a: finished (stop); 2 blocks freed: 0, 5"
    assert title(groups(drawn, "name")[1]) == (
        "request b: 41 tokens computed in prefill, 80 from the prefix cache, 3 generated, 1 preemption; "
        "steps 0 to 6; not finished when the trace ends"
    )
    assert [title(group) for group in drawn.iterfind(f"{SVG}g[@class='step']")][1] == (
        "step 1: 5 of 64 tokens (4 prefill, 1 decode), 2 of 4 requests, 1 waiting; 5 of 8 blocks free, 2 evicted; 12.5 ms"
    )


def shape(group: ET.Element) -> tuple[object, ...]:
    """What a group looks like when all colours are taken away and sizes are not looked at."""
    first = group[1]
    letters = re.sub(r"[^A-Za-z]", "", first.attrib.get("d", ""))
    dashed = first.attrib.get("stroke-dasharray", "none") != "none"
    thick = float(first.attrib.get("stroke-width", 0)) >= 2
    return first.tag, letters, dashed, thick, "url(" in first.attrib.get("fill", "")


@pytest.mark.parametrize("overview", [False, True])
def test_kinds_are_told_apart_without_colour(tmp_path: Path, overview: bool) -> None:
    more = [step(number, chunk("b", "decode", 55 + number)) for number in range(7, 407 if overview else 8)]
    drawn = picture(write(tmp_path / "run.jsonl", STEPS + more))
    kinds = ["prefill", "decode", "hit", "preemption", "finish", "waits", "batch"]
    looks = {kind: {shape(group) for group in groups(drawn, kind)} for kind in kinds}
    assert all(len(look) == 1 for look in looks.values()), "a kind looks the same everywhere"
    assert len(set.union(*looks.values())) == len(kinds)


def test_the_hatch_of_a_hit_is_drawn_in_the_file_itself(trace: Path) -> None:
    drawn = picture(trace)
    assert groups(drawn, "hit")[0][1].attrib["fill"] == "url(#hatch)"
    assert drawn.find(f"{SVG}defs/{SVG}pattern[@id='hatch']/{SVG}path") is not None


def test_the_legend_shows_every_shape_with_its_word(trace: Path) -> None:
    drawn = picture(trace)
    legend = drawn.find(f"{SVG}g[@class='legend']")
    assert legend is not None
    shown = {group.attrib["class"]: shape(group) for group in legend.iterfind(f"{SVG}g")}
    used = ["prefill", "decode", "hit", "preemption", "finish", "waits", "batch"]
    assert shown == {kind: shape(groups(drawn, kind)[0]) for kind in used}
    assert "finished: S stop, L length, A abort, E error" in [text.text for text in legend.iterfind(f"{SVG}text")]


def test_the_picture_says_what_it_shows_and_brings_its_own_background(trace: Path) -> None:
    drawn = picture(trace)
    assert drawn.attrib["role"] == "img"
    named = {child.attrib.get("id"): child.text for child in drawn}
    says = [named[name] for name in drawn.attrib["aria-labelledby"].split()]
    assert says[0] == "Step trace run.jsonl: 3 requests, 7 steps, 1 preemption, 2 prefix-cache hits (80 tokens)"
    assert "Recorded by mini_vllm 0.1.0, torch 2.13.0; 8 blocks of 16 tokens" in str(says[1])
    paper = drawn.find(f"{SVG}rect")
    assert paper is not None
    assert [paper.attrib[name] for name in ("width", "height", "fill")] == ["100%", "100%", "#ffffff"]


@pytest.mark.parametrize("columns", [None, range(3, 6)])
def test_everything_is_drawn_between_the_axis_and_the_charts(trace: Path, columns: range | None) -> None:
    drawn = picture(trace, columns)
    roof = drawn.findall(f"{SVG}g[@class='tokens']/{SVG}path")[1].attrib["d"]
    left, upper, right = map(float, re.findall(r"[\d.]+", roof))
    step_word, *ticks = drawn.findall(f"{SVG}g[@class='axis']/{SVG}text")
    assert [tick.text for tick in ticks] == (["4"] if columns else ["0", "2", "4", "6"])
    shapes = [centre(group) for kind in ("prefill", "decode", "hit", "preemption") for group in groups(drawn, kind)]
    lines = [re.findall(r"[\d.]+", group[1].attrib["d"]) for kind in ("waits", "batch") for group in groups(drawn, kind)]
    ends = [(float(x), float(y)) for first, y, last in lines for x in (first, last)]
    assert all(left < x < right <= number(drawn, "width") for x, _ in shapes + ends)
    band = drawn.find(f"{SVG}g[@class='row']/{SVG}rect[@class='band']")
    assert band is not None
    assert 0 < number(band, "y") - number(step_word, "y") < 16, "the first row is under the axis"
    assert all(number(step_word, "y") < y < upper < number(drawn, "height") for _, y in shapes + ends)


def test_the_charts_have_the_tokens_and_the_free_blocks_of_every_step(tmp_path: Path) -> None:
    steps = [
        step(0, chunk("a", "prefill", 0, 28), chunk("b", "decode", 9, 2), chunk("c", "decode", 9, 2), num_free_blocks=8),
        step(1, chunk("a", "decode", 30), num_free_blocks=2),
    ]
    drawn = picture(write(tmp_path / "run.jsonl", steps))

    def heights(chart: str, path: int) -> list[float]:
        """Of the steps of an area, as parts of the chart's height."""
        foot, top, *areas = (one.attrib["d"] for one in drawn.iterfind(f"{SVG}g[@class='{chart}']/{SVG}path"))
        base, roof = (float(re.findall(r"[\d.]+", line)[1]) for line in (foot, top))
        return [round((base - float(level)) / (base - roof), 3) for level in re.findall(r"V([\d.]+)H", areas[path])]

    assert heights("tokens", 0) == [1, pytest.approx(1 / 32, abs=0.001)]
    assert heights("tokens", 1) == [0.125, pytest.approx(1 / 32, abs=0.001)]
    assert heights("free-blocks", 0) == [1, 0.25]
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"most: 32 of 64", "least: 2 of 8"} <= set(texts)


def test_ids_are_text_whatever_is_in_them(tmp_path: Path, lab: Lab) -> None:
    evil = '<script>alert("1")</script>&\x1b[31m\x00\u202e\ud800'
    path = write(tmp_path / "run.jsonl", [step(0, chunk(evil, "prefill", 0, 3)), step(1, chunk(evil, "decode", 3))])
    code, printed = lab("timeline", path)
    assert code == 0
    assert "\x1b" not in printed
    text = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "<script" not in text
    drawn = ET.fromstring(text)
    assert {element.tag for element in drawn.iter()}.isdisjoint({"script", f"{SVG}script"})
    assert 'request <script>alert("1")</script>&\\x1b[31m\\x00\\u202e\\ud800: prefill of 3' in title(groups(drawn, "prefill")[0])


def test_a_long_id_is_cut_and_whole_in_the_tooltip(tmp_path: Path) -> None:
    long, wide = "x" * 300, "\u8acb" * 40
    steps = [step(0, chunk(long, "prefill", 0), chunk(wide, "prefill", 0))]
    names = groups(picture(write(tmp_path / "run.jsonl", steps)), "name")
    assert [name.findtext(f"{SVG}text") for name in names] == ["x" * 19 + "\u2026", "\u8acb" * 9 + "\u2026"]
    assert long in title(names[0])


def test_an_id_that_comes_again_is_another_request(tmp_path: Path) -> None:
    ended = [{"request": "a", "reason": "length", "blocks_freed": [0]}]
    steps = [step(0, chunk("a", "prefill", 0, 4), finished=ended), step(1, chunk("a", "prefill", 0, 4), finished=ended)]
    names = groups(picture(write(tmp_path / "run.jsonl", steps)), "name")
    assert [title(name).split("; ", 1)[1] for name in names] == [
        "steps 0 to 0; finished: length",
        "steps 1 to 1; finished: length",
    ]


def test_a_long_run_is_an_overview_of_one_width_with_a_line_for_each_run_of_decodes(tmp_path: Path) -> None:
    decodes = [step(number, *[chunk("b", "decode", 55 + number)] * (number != 1000)) for number in range(7, 2000)]
    drawn = picture(write(tmp_path / "run.jsonl", STEPS + decodes))
    assert number(drawn, "width") < 2700
    assert [title(group) for group in groups(drawn, "decode")] == [
        "steps 1 to 3, request a: 3 decodes of 3 tokens at positions 16 to 18",
        "steps 6 to 999, request b: 994 decodes of 994 tokens at positions 61 to 1054",
        "steps 1001 to 1999, request b: 999 decodes of 999 tokens at positions 1056 to 2054",
    ]
    assert len(groups(drawn, "prefill")) == 4
    assert "An overview" in drawn.findtext(f"{SVG}desc", "")
