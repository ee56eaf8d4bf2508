"""``./lab timeline``: what a step trace says, and that the picture says the same, cell by cell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from history_model import HistoryModel
from rich.cells import cell_len

from labkit.cli import main as cli
from labkit.pictures.timeline import draw, read
from labkit.pictures.timeline.read import Chunk, Finish, Header, Preemption, Step
from mini_vllm import LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig

HEADER = {
    "format": "mini_vllm step trace",
    "version": 1,
    "recorded_by": "mini_vllm 0.1.0, torch 2.13.0",
    "block_size": 16,
    "num_blocks": 8,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
}
EVENTS = (("chunks", Chunk), ("preempted", Preemption), ("finished", Finish))
SVG = "{http://www.w3.org/2000/svg}"
Lab = Callable[..., tuple[int, str]]


def chunk(request: str, kind: str, start: int, num_tokens: int = 1, **more: Any) -> dict[str, Any]:
    fixed = {"cached_tokens": 0, "blocks_taken": [], "samples": True}
    return {"request": request, "kind": kind, "start": start, "num_tokens": num_tokens} | fixed | more


def step(number: int, *chunks: dict[str, Any], **more: Any) -> dict[str, Any]:
    fixed = {"seconds": 0.0125, "preempted": [], "finished": [], "num_waiting": 0, "num_free_blocks": 5, "evicted": 0}
    return {"step": number, "chunks": list(chunks)} | fixed | more


STEPS = [
    step(
        0,
        chunk("a", "prefill", 0, 16, blocks_taken=[0]),
        chunk("b", "prefill", 32, 24, cached_tokens=32, blocks_taken=[1, 2, 3, 4], samples=False),
    ),
    step(1, chunk("a", "decode", 16, blocks_taken=[5]), chunk("b", "prefill", 56, 4), num_waiting=1, evicted=2),
    step(2, chunk("a", "decode", 17), preempted=[{"request": "b", "blocks_freed": [1, 2, 3, 4]}]),
    step(3, chunk("a", "decode", 18), finished=[{"request": "a", "reason": "stop", "blocks_freed": [0, 5]}]),
    step(4, chunk("b", "prefill", 48, 13, cached_tokens=48, blocks_taken=[1])),
    step(5),
    step(6, chunk("b", "decode", 61), finished=[{"request": "c", "reason": "abort", "blocks_freed": []}]),
]
"""Request a runs to its end; b is preempted, comes back, is left out of step 5 and goes on; c is aborted while it waits."""


def write(path: Path, steps: list[dict[str, Any]], **header: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in [HEADER | header, *steps]), encoding="utf-8")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "run.jsonl", STEPS)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    """Types ``./lab timeline ...``; gives the exit status and what was printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lab", "timeline", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def picture(path: Path, columns: range | None = None) -> ET.Element:
    return ET.fromstring(draw(read(path), path.name, columns))


def groups(drawn: ET.Element, kind: str) -> list[ET.Element]:
    return [found for row in drawn.iterfind(f"{SVG}g[@class='row']") for found in row.iterfind(f"{SVG}g[@class='{kind}']")]


def title(group: ET.Element) -> str:
    return group.findtext(f"{SVG}title", "")


def number(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


def centre(group: ET.Element) -> tuple[float, float]:
    """Where a cell's shape is, measured on the shape."""
    shape = group[1]
    if shape.tag == f"{SVG}circle":
        return number(shape, "cx"), number(shape, "cy")
    if shape.tag == f"{SVG}rect":
        return number(shape, "x") + number(shape, "width") / 2, number(shape, "y") + number(shape, "height") / 2
    x, y, dx, dy = map(float, re.findall(r"-?[\d.]+", shape.attrib["d"])[:4])  # the cross: M x y l dx dy
    return x + dx / 2, y + dy / 2


def places(drawn: ET.Element, kind: str) -> list[tuple[str, float]]:
    """The request and the step that each shape of a kind stands at, by the labels of the axes: nothing but the coordinates."""
    _, *labels = drawn.iterfind(f"{SVG}g[@class='axis']/{SVG}text")
    ticks = [(number(text, "x"), int(text.text or "")) for text in labels]
    (x0, step0), (x1, step1) = ticks[0], ticks[-1]
    bands = {text.text: number(text, "y") - 4 for name in groups(drawn, "name") for text in name.iterfind(f"{SVG}text")}
    found = []
    for x, y in map(centre, groups(drawn, kind)):
        request = min(bands, key=lambda name: abs(bands[name] - y))
        assert abs(bands[request] - y) < 16, "inside the row"
        found.append((str(request), round(step0 + (x - x0) * (step1 - step0) / (x1 - x0), 2)))
    return sorted(found)


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
    code, printed = lab(path)
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


def test_part_of_a_run_is_drawn_with_who_was_there_before(trace: Path, lab: Lab) -> None:
    code, _ = lab(trace, "--steps", "3:4")
    assert code == 0
    drawn = ET.parse(trace.with_suffix(".svg")).getroot()
    assert [len(groups(drawn, kind)) for kind in ("prefill", "decode", "preemption", "finish", "waits")] == [1, 1, 0, 1, 1]
    assert [name.findtext(f"{SVG}text") for name in groups(drawn, "name")] == ["a", "b"]
    later = groups(picture(trace, range(4, 7)), "name")
    assert [name.findtext(f"{SVG}text") for name in later] == ["b", "c"], "a has ended before"
    assert "Steps 3 to 4 are drawn." in drawn.findtext(f"{SVG}desc", "")


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("7:9", "--steps 7:9 has none of the steps of this trace, which are 0 to 6"),
        ("5:2", "--steps 5:2 has none of the steps of this trace, which are 0 to 6"),
        ("5", "--steps 5 is no range; give the first and the last step: --steps 100:200"),
    ],
)
def test_steps_that_are_not_there_are_a_sentence(trace: Path, lab: Lab, steps: str, sentence: str) -> None:
    assert lab(trace, "--steps", steps) == (1, f"lab: {sentence}\n")
    assert not trace.with_suffix(".svg").exists()


def test_the_terminal_says_the_same_in_80_columns(trace: Path, lab: Lab) -> None:
    code, printed = lab(trace)
    assert code == 0
    assert [line.rstrip() for line in printed.splitlines()] == [
        "recorded by mini_vllm 0.1.0, torch 2.13.0",
        "request  prefill  cached  generated  preempted  steps   ended",
        "a             16       0          4          0  0 to 3  stop",
        "b             41      80          3          1  0 to 6  not yet",
        "c              0       0          0          0  6 to 6  abort",
        "3 requests, 7 steps, 1 preemption, 2 prefix-cache hits (80 tokens)",
        "prefill: tokens computed before a decode, again after each preemption",
        f"written: {trace.with_suffix('.svg')}",
    ]


def test_numbers_as_large_as_they_get_fit_80_columns(tmp_path: Path, lab: Lab) -> None:
    chunks = [chunk("\u8acb" * 40, "prefill", 0, 131072, cached_tokens=131072), chunk("[bold]", "prefill", 0)]
    _, printed = lab(write(tmp_path / "run.jsonl", [step(100000, *chunks), step(199999)]))
    lines = printed.splitlines()
    assert all(cell_len(line.rstrip()) <= 80 for line in lines[1:4])
    assert lines[2].rstrip().endswith("100000 to 199999  not yet")
    assert lines[3].startswith("[bold] ")


def test_the_picture_goes_where_it_is_told(trace: Path, lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.svg"
    assert lab(trace, "--output", other)[1].endswith(f"written: {other}\n")
    assert ET.parse(other).getroot().tag == f"{SVG}svg"
    assert not trace.with_suffix(".svg").exists()


def test_a_trace_is_never_overwritten(tmp_path: Path, lab: Lab) -> None:
    path = write(tmp_path / "run.svg", STEPS)
    before = path.read_bytes()
    assert lab(path) == (
        1,
        f"lab: the picture is SVG and would be written to {path}; name a file with the suffix .svg by --output\n",
    )
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_picture(trace: Path, lab: Lab, file_size_limit: Callable[[int], None]) -> None:
    trace.with_suffix(".svg").write_text("old", encoding="utf-8")
    file_size_limit(1000)
    code, printed = lab(trace)
    assert (code, printed) == (
        1,
        f"lab: cannot write {trace.with_suffix('.svg')}: File too large; name a file in a folder of yours\n",
    )
    assert trace.with_suffix(".svg").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in trace.parent.iterdir()) == ["run.jsonl", "run.svg"]


@pytest.mark.parametrize("kept", [-3, -40, -65])
def test_a_cut_last_line_is_said_and_the_rest_is_drawn(trace: Path, lab: Lab, kept: int) -> None:
    trace.write_bytes(trace.read_bytes()[:kept])
    code, printed = lab(trace)
    assert code == 0
    assert f"line 8 of {trace} is incomplete: the run ended while writing it; the steps before it are drawn" in printed
    drawn = ET.parse(trace.with_suffix(".svg")).getroot()
    assert "6 steps" in drawn.findtext(f"{SVG}title", "")
    assert "The run ended while line 8 was written" in drawn.findtext(f"{SVG}desc", "")


def test_a_line_that_is_cut_inside_a_character_is_cut_too(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", STEPS)
    path.write_bytes(path.read_bytes() + '{"step": 7, "chunks": [{"request": "\u8acb'.encode()[:-1])
    assert (len(read(path).steps), read(path).cut_line) == (7, 9)


def test_a_last_line_without_its_newline_is_whole(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-1])
    assert (len(read(trace).steps), read(trace).cut_line) == (7, None)


def test_what_is_added_to_the_format_later_is_ignored(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [step(0, chunk("a", "prefill", 0))])
    later = write(tmp_path / "later.jsonl", [step(0, chunk("a", "prefill", 0, lora="x"), power=3)], model="llama")
    assert read(later) == read(plain)


def test_the_engine_writes_the_fields_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    config = EngineConfig(block_size=2, num_blocks=6, max_num_batched_tokens=6, max_model_len=12)
    engine = LLMEngine(HistoryModel(), config, step_trace=path)
    engine.add_request("a", [1, 2, 3, 4, 5], SamplingParams(temperature=0, max_tokens=5))
    engine.add_request("b", [1, 2, 3, 4], SamplingParams(temperature=0, max_tokens=3))
    while engine.has_unfinished_requests():
        engine.step()
    header, *steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(header) == {"format", "version"} | {field.name for field in fields(Header)}
    for kind, written in [(Step, steps), *((kind, [each for step in steps for each in step[name]]) for name, kind in EVENTS)]:
        assert written
        assert all(set(each) == {field.name for field in fields(kind)} for each in written)
    assert len(read(path).steps) == len(steps)


WRONG = [
    (["[1]"], 'is no step trace: its first line is not {"format": "mini_vllm step trace", ...}; give a file that mini_vllm\'s'),
    (["\x00\x01"], "is no step trace: its first line is not"),
    ([HEADER | {"format": "other"}, STEPS[0]], "is no step trace: its first line is not"),
    ([HEADER | {"version": 2}, STEPS[0]], "is written in version 2 of the format, and this ./lab reads version 1; draw it with"),
    ([HEADER], "has a header and no complete step; run at least one request, and let the step end"),
    ([HEADER, STEPS[0], "{oops", STEPS[1]], ", line 3 is not JSON (Expecting property name enclosed in double quotes"),
    ([HEADER, "", STEPS[0]], ", line 2 is not JSON (Expecting value: line 1 column 1 (char 0)); record the run again"),
    ([HEADER, "[" * 100000], ", line 2 is not JSON ("),
    ([HEADER, "[]"], ", line 2 is [] and should be an object; record the run again"),
    ([{k: v for k, v in HEADER.items() if k != "num_blocks"}, STEPS[0]], ', line 1 has no "num_blocks"; record the run again'),
    ([HEADER | {"block_size": 0}, STEPS[0]], ', line 1: "block_size" is 0 and should be an integer from 1 up; record the run'),
    ([HEADER, STEPS[1], STEPS[1]], ", line 3: step 1 comes after step 1; steps rise: record the run again"),
    ([HEADER, step(0, chunk("a", "decode", -1))], ', line 2, chunks[0]: "start" is -1 and should be an integer from 0 up'),
    ([HEADER, step(0, chunk("a", "decode", 10**400))], ', line 2, chunks[0]: "start" is 1000000000'),
    ([HEADER, step(0, chunk("a", "decode", True))], ', line 2, chunks[0]: "start" is true and should be an integer from 0 up'),
    ([HEADER, step(0, chunk("a", "verify", 0))], ', chunks[0]: "kind" is "verify" and should be one of prefill, decode; record'),
    ([HEADER, step(0, chunk("a", "decode", 0, samples=1))], '"samples" is 1 and should be true or false'),
    ([HEADER, step(0, chunk("a", "decode", 0, blocks_taken=[1, "2"]))], '"blocks_taken" is [1, "2"] and should be a list of int'),
    ([HEADER, step(0, chunk(3, "decode", 0))], ', line 2, chunks[0]: "request" is 3 and should be a text'),  # type: ignore[arg-type]
    ([HEADER, step(0, preempted=["a"])], ', line 2, preempted[0] is "a" and should be an object; record the run again'),
    (
        [HEADER, step(0, finished=[{"request": "a", "reason": "tired", "blocks_freed": []}])],
        'finished[0]: "reason" is "tired" and should be one of stop, length, abort, error',
    ),
    ([HEADER, step(0, seconds=float("nan"))], ', line 2: "seconds" is NaN and should be a number from 0 up'),
    ([HEADER, step(0) | {"chunks": {}}], ', line 2: "chunks" is {} and should be a list; record the run again'),
]


@pytest.mark.parametrize(("lines", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_with_its_place(tmp_path: Path, lab: Lab, lines: list[Any], sentence: str) -> None:
    path = tmp_path / "run.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    code, printed = lab(path)
    assert code == 1
    assert printed.startswith(f"lab: {path}")
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not path.with_suffix(".svg").exists()


def test_a_file_without_a_whole_line_is_a_sentence(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("", encoding="utf-8")
    assert lab(path) == (1, f"lab: {path} is empty; a step trace begins with a header: record the run again\n")
    path.write_text(json.dumps(HEADER)[:50], encoding="utf-8")
    assert lab(path)[1].startswith(f"lab: {path} has no complete line; a step trace begins with a header")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "none.jsonl"
    where = "give a file that mini_vllm's step tracer wrote; LLM(MODEL, step_trace=FILE) writes one"
    sentence = f"lab: cannot read {path}: No such file or directory; {where}\n"
    assert lab(path) == (1, sentence)
    assert lab(tmp_path)[1].startswith(f"lab: cannot read {tmp_path}: Is a directory; give a file")
