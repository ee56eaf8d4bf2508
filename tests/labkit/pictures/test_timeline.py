"""``./lab timeline``: the command, its summary, and the step traces that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from history_model import HistoryModel
from rich.cells import cell_len
from step_traces import HEADER, STEPS, SVG, Lab, chunk, groups, picture, step, write

from labkit.pictures.timeline import read
from labkit.pictures.timeline.read import Chunk, Finish, Header, Preemption, Step
from mini_vllm import LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig

EVENTS = (("chunks", Chunk), ("preempted", Preemption), ("finished", Finish))


def test_part_of_a_run_is_drawn_with_who_was_there_before(trace: Path, lab: Lab) -> None:
    code, _ = lab("timeline", trace, "--steps", "3:4")
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
    assert lab("timeline", trace, "--steps", steps) == (1, f"lab: {sentence}\n")
    assert not trace.with_suffix(".svg").exists()


def test_the_terminal_says_the_same_in_80_columns(trace: Path, lab: Lab) -> None:
    code, printed = lab("timeline", trace)
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
    _, printed = lab("timeline", write(tmp_path / "run.jsonl", [step(100000, *chunks), step(199999)]))
    lines = printed.splitlines()
    assert all(cell_len(line.rstrip()) <= 80 for line in lines[1:4])
    assert lines[2].rstrip().endswith("100000 to 199999  not yet")
    assert lines[3].startswith("[bold] ")


def test_the_picture_goes_where_it_is_told(trace: Path, lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.svg"
    assert lab("timeline", trace, "--output", other)[1].endswith(f"written: {other}\n")
    assert ET.parse(other).getroot().tag == f"{SVG}svg"
    assert not trace.with_suffix(".svg").exists()


def test_a_trace_is_never_overwritten(tmp_path: Path, lab: Lab) -> None:
    path = write(tmp_path / "run.svg", STEPS)
    before = path.read_bytes()
    assert lab("timeline", path) == (
        1,
        f"lab: the picture is SVG and would be written to {path}; name a file with the suffix .svg by --output\n",
    )
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_picture(trace: Path, lab: Lab, file_size_limit: Callable[[int], None]) -> None:
    trace.with_suffix(".svg").write_text("old", encoding="utf-8")
    file_size_limit(1000)
    code, printed = lab("timeline", trace)
    assert (code, printed) == (
        1,
        f"lab: cannot write {trace.with_suffix('.svg')}: File too large; name a file in a folder of yours\n",
    )
    assert trace.with_suffix(".svg").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in trace.parent.iterdir()) == ["run.jsonl", "run.svg"]


@pytest.mark.parametrize("kept", [-3, -40, -65])
def test_a_cut_last_line_is_said_and_the_rest_is_drawn(trace: Path, lab: Lab, kept: int) -> None:
    trace.write_bytes(trace.read_bytes()[:kept])
    code, printed = lab("timeline", trace)
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
    for kind, written in [(Step, steps), *((kind, [each for line in steps for each in line[name]]) for name, kind in EVENTS)]:
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
    code, printed = lab("timeline", path)
    assert code == 1
    assert printed.startswith(f"lab: {path}")
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not path.with_suffix(".svg").exists()


def test_a_file_without_a_whole_line_is_a_sentence(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("", encoding="utf-8")
    assert lab("timeline", path) == (1, f"lab: {path} is empty; a step trace begins with a header: record the run again\n")
    path.write_text(json.dumps(HEADER)[:50], encoding="utf-8")
    assert lab("timeline", path)[1].startswith(f"lab: {path} has no complete line; a step trace begins with a header")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "none.jsonl"
    where = "give a file that mini_vllm's step tracer wrote; LLM(MODEL, step_trace=FILE) writes one"
    sentence = f"lab: cannot read {path}: No such file or directory; {where}\n"
    assert lab("timeline", path) == (1, sentence)
    assert lab("timeline", tmp_path)[1].startswith(f"lab: cannot read {tmp_path}: Is a directory; give a file")
