"""HTML page and SVG picture of a trace: geometry against numbers computed by hand, captions, names as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from captured import CAPTURED, captured, page
from hypothesis import given
from hypothesis import strategies as st

from labkit.load.trace import EXAMPLE_TENSORS, MappingRow, Record, Trace, select_parameters_of
from labkit.load.trace.coverage import find_faults
from labkit.load.trace.picture import captions, draw_svg
from labkit.load.trace.picture.layout import Figure, sections, short_name
from labkit.system.errors import UserError

ALL = sorted(path.stem for path in CAPTURED.glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"
QKV = "model.layers.0.self_attn.qkv_proj.weight"
CUT = "model.layers.1.self_attn.o_proj.weight"


def figure(trace: Trace, name: str, what: str = "parameter") -> Figure:
    every = [figure for section in sections(trace, find_faults(trace)) for figure in section.figures]
    (found,) = [figure for figure in every if figure.name == name and figure.what == what]
    return found


def drawn(trace: Trace, name: str, rank: int) -> list[tuple[str, int, int]]:
    """Each slice's label, first and last row or column."""
    shown = figure(trace, name)
    (bar,) = [bar for bar in shown.bars if bar.tp_rank == rank]
    return [(piece.label, *shown.along(piece)) for piece in bar.slices]


def sentences(trace: Trace, name: str, rank: int, label: str) -> tuple[str, ...]:
    shown = figure(trace, name)
    (bar,) = [bar for bar in shown.bars if bar.tp_rank == rank]
    (piece,) = [piece for piece in bar.slices if piece.label == label]
    return captions.slice_sentences(shown, bar, piece)


class Page(HTMLParser):
    """The tags of the page, and the JSON in it, as a browser parses them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, Any] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}) and not self.data:
            self.data = json.loads(data)

    def slices(self) -> Iterator[dict[str, Any]]:
        for section in self.data["sections"]:
            for figure in section["figures"]:
                for bar in figure["bars"]:
                    yield from bar["slices"]


# Llama-3-8B has 32 query heads and 8 kv heads of 128: 4096 + 1024 + 1024 rows.


def test_qkv_on_one_rank() -> None:
    assert drawn(captured("llama-3-8b-tp1"), QKV, 0) == [("q_proj", 0, 4096), ("k_proj", 4096, 5120), ("v_proj", 5120, 6144)]


def test_qkv_on_two_ranks_and_on_sixteen() -> None:
    two, sixteen = captured("llama-3-8b-tp2"), captured("llama-3-8b-one-layer-tp16")
    for rank in range(2):
        assert drawn(two, QKV, rank) == [("q_proj", 0, 2048), ("k_proj", 2048, 2560), ("v_proj", 2560, 3072)]
    for rank in range(16):  # two ranks to a kv head: each holds 2 query heads and a whole kv head
        assert drawn(sixteen, QKV, rank) == [("q_proj", 0, 256), ("k_proj", 256, 384), ("v_proj", 384, 512)]


def test_a_parameter_that_ranks_cut_along_columns_is_drawn_along_columns() -> None:
    trace = captured("llama-3-8b-tp2")
    down = figure(trace, "model.layers.0.mlp.down_proj.weight")
    assert (down.length, down.unit) == (7168, "columns")
    assert captions.figure_caption(down) == "bars show 7168 columns, because the ranks divide columns"
    assert drawn(trace, down.name, 1) == [("down_proj", 0, 7168)]
    assert figure(captured("llama-3-8b-tp1"), down.name).unit == "rows"


def test_the_arithmetic_follows_from_the_trace() -> None:
    two, sixteen, tiny = captured("llama-3-8b-tp2"), captured("llama-3-8b-one-layer-tp16"), captured("tiny-tp2")
    assert sentences(two, QKV, 1, "v_proj") == (
        "8 heads * 128 = 1024 rows.",
        "1024 rows / 2 ranks = 512.",
        "Rank 1 reads from row 1 * 512 = 512.",
        "It is written from row 2560 = 2048 (q_proj) + 512 (k_proj) above it.",
    )
    assert sentences(two, QKV, 1, "q_proj")[0] == "32 heads * 128 = 4096 rows."
    assert sentences(sixteen, QKV, 5, "k_proj") == (
        "8 heads * 128 = 1024 rows.",
        "1024 rows are 8 parts of 128; 16 ranks / 8 parts = 2 ranks to a part.",
        "Rank 5 reads part 5 // 2 = 2, from row 2 * 128 = 256.",
        "It is written from row 256 = 256 rows of q_proj above it.",
    )
    # 131 rows are padded to 3 * 64 = 192, 96 to a rank
    assert sentences(tiny, "lm_head.weight", 1, "lm_head")[:2] == (
        "A rank holds 96 rows; rank 1 reads from row 1 * 96 = 96.",
        "The tensor ends at 131: 131 - 96 = 35 rows are left to read.",
    )
    assert drawn(tiny, "lm_head.weight", 1) == [("lm_head", 0, 35), ("padding", 35, 96)]
    assert captions.figure_caption(figure(two, QKV)) == "bars show 3072 rows = 2048 (q_proj) + 512 (k_proj) + 512 (v_proj)"


@pytest.mark.parametrize("name", ALL)
def test_every_equation_is_true_and_every_start_is_the_records(name: str) -> None:
    trace = captured(name)
    equations = 0
    for section in sections(trace, find_faults(trace)):
        for shown in section.figures:
            for bar in shown.bars:
                for piece in bar.slices:
                    for sentence in captions.slice_sentences(shown, bar, piece):
                        bare = re.sub(r"\([a-z_.]+\)| rows of [a-z_.]+| (?:rows|columns|ranks|parts|heads)\b", "", sentence)
                        for left, right in re.findall(r"(\d+(?: (?://|[-+*/]) \d+)+) = (\d+)", bare):
                            assert eval(left) == int(right), sentence
                            equations += 1
                        if piece.record and "reads" in sentence:
                            starts = {start for start, _ in piece.record.source}
                            assert int(re.findall(r"\d+", sentence)[-1]) in starts
    assert equations or trace.records[0].tp_size == 1


@pytest.mark.parametrize("name", ALL)
def test_every_record_is_on_the_page_once_and_every_finding_is_marked(name: str) -> None:
    trace = captured(name)
    found = Page(page(trace))
    assert found.data["records"] == [json.loads(json.dumps(record.as_dict())) for record in trace.records]
    slices = list(found.slices())
    assert sorted(piece["record"] for piece in slices if "record" in piece) == list(range(len(trace.records)))
    assert sum(piece["kind"] == "padding" for piece in slices) == len(trace.fills)
    assert found.data["findings"] == [str(finding) for finding in find_faults(trace)]
    assert {number for piece in slices for number in piece.get("faults", ())} == set(range(len(find_faults(trace))))


@pytest.mark.parametrize("name", ALL)
def test_slices_in_a_lane_do_not_overlap_and_cover_the_bar(name: str) -> None:
    trace = captured(name)
    for section in sections(trace, find_faults(trace)):
        for shown in section.figures:
            for bar in shown.bars:
                first = [shown.along(piece) for piece in bar.slices if piece.lane == 0]
                assert [start for start, _ in first] == [0, *(stop for _, stop in first[:-1])]
                assert first[-1][1] == shown.length
                assert {piece.lane for piece in bar.slices} == set(range(bar.lanes))


def kinds(trace: Trace, name: str, what: str = "parameter") -> list[tuple[str, int, int, int]]:
    shown = figure(trace, name, what)
    return [(piece.kind, piece.lane, *shown.along(piece)) for piece in shown.bars[0].slices]


def test_faults_are_slices_of_their_own() -> None:
    qkv = QKV.replace("layers.0", "layers.1")
    missing = captured("fault-k-proj-missing")
    assert kinds(missing, qkv) == [("copy", 0, 0, 64), ("missing", 0, 64, 96), ("copy", 0, 96, 128)]
    assert sentences(missing, qkv, 0, "v_proj")[-1] == "It is written from row 96 = 64 (q_proj) + 32 (missing) above it."
    twice = captured("fault-stored-twice")
    assert ("twice", 2, 0, 128) in kinds(twice, qkv)
    wide = captured("fault-o-proj-too-wide")
    assert kinds(wide, CUT, "checkpoint tensor") == [("read", 0, 0, 128), ("cut off", 0, 128, 160)]
    (copy,) = figure(wide, CUT).bars[0].slices
    assert captions.slice_labels(figure(wide, CUT), copy)[0] == "o_proj[:, 0:64], cut off"


def one(tensor: str, **changes: Any) -> Trace:
    """A trace of one record, (4, 2) into (4, 2)."""
    box = ((0, 4), (0, 2))
    given = {"mapping": None, "file": None, "bytes": None, "dtype": None} | changes
    record = Record(
        tensor=tensor, shape=(4, 2), parameter=tensor, parameter_shape=(4, 2), parameter_dtype="float32",
        destination=box, source=box, tp_rank=0, tp_size=1, **given,
    )  # fmt: skip
    return Trace("0.32.0", "2.13.0", "meta", tensor, (record,), {tensor: (4, 2)}, {tensor: (4, 2)})


def test_rounded_values_are_named_on_the_slice() -> None:
    trace = replace(one("a.q_proj.weight"), rounded=("a.q_proj.weight",))
    (bar,) = figure(trace, "a.q_proj.weight").bars
    assert captions.slice_labels(figure(trace, "a.q_proj.weight"), bar.slices[0])[0] == "q_proj, rounded"


def test_experts_run_along_the_bar_and_their_rows_down_it() -> None:
    name = "model.layers.0.mlp.experts.w13_weight"
    spans = [((expert, expert + 1), (3 * half, 3 * half + 3), (0, 4)) for expert in range(2) for half in range(2)]
    records = tuple(
        Record(
            tensor=f"model.layers.0.mlp.experts.{span[0][0]}.w{1 + 2 * place % 4}.weight", shape=(3, 4), dtype=None, file=None,
            bytes=None, mapping=MappingRow(".w1", ".w13_weight", "w1"), parameter=name, parameter_shape=(2, 6, 4),
            parameter_dtype="bfloat16", destination=span, source=((0, 3), (0, 4)), tp_rank=0, tp_size=1,
        )
        for place, span in enumerate(spans)
    )  # fmt: skip
    shown = figure(Trace("0", "2", "meta", "moe", records, {}, {name: (2, 6, 4)}), name)
    assert [(shown.along(piece), shown.down(piece)) for piece in shown.bars[0].slices] == [
        ((0, 1), (0.0, 0.5)),
        ((0, 1), (0.5, 1.0)),
        ((1, 2), (0.0, 0.5)),
        ((1, 2), (0.5, 1.0)),
    ]
    assert shown.bars[0].lanes == 1
    assert short_name(records[3].tensor) == "1.w3"


def test_a_scalar_and_an_empty_parameter_can_be_drawn() -> None:
    scale = replace(one("a.scale"), records=(), checkpoint_shapes={}, parameter_shapes={"a.scale": (), "a.none": (0, 2)})
    ((scalar, empty),) = [section.figures for section in sections(scale, find_faults(scale))]
    assert [piece.kind for piece in scalar.bars[0].slices] == ["missing"]
    assert (scalar.along(scalar.bars[0].slices[0]), empty.bars[0].slices) == ((0, 1), ())
    ET.fromstring(draw_svg(scale, find_faults(scale)))


def test_two_stacks_of_layers_keep_their_names() -> None:
    trace = replace(
        one("vision.blocks.3.fc.weight"),
        parameter_shapes={"vision.blocks.3.fc.weight": (4, 2), "model.layers.3.fc.weight": (4, 2)},
    )
    assert [section.title for section in sections(trace, [])] == ["vision.blocks 3", "model.layers 3"]


def test_parts_are_the_layers_and_what_is_outside_them() -> None:
    titles = [section.title for section in sections(captured("llama-3-8b-tp2"), [])]
    assert titles == ["embeddings", *(f"layer {number}" for number in range(32)), "norm and head"]


HOSTILE_NAME = '</script><script>document.title="taken"</script><!-- <img src=x onerror=alert(1)> & " \' \x00 \ud800.weight'


def test_hostile_names_stay_text() -> None:
    trace = one(HOSTILE_NAME, file=HOSTILE_NAME, mapping=MappingRow(HOSTILE_NAME, HOSTILE_NAME, HOSTILE_NAME))
    text = page(trace)
    found = Page(text)
    assert found.data["records"][0]["tensor"] == HOSTILE_NAME
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script", "script"]
    assert text.count("</script") == 2
    text.encode()
    picture = draw_svg(trace, find_faults(trace))
    picture.encode()
    root = ET.fromstring(picture)
    assert not [node for node in root.iter() if node.tag in (f"{SVG}script", f"{SVG}img")]


@given(st.text())
def test_any_name_makes_a_picture_that_can_be_read(name: str) -> None:
    trace = one(name)
    assert Page(page(trace)).data["records"][0]["tensor"] == name
    ET.fromstring(draw_svg(trace, find_faults(trace)).encode())


def test_nothing_is_loaded_from_anywhere() -> None:
    text = page(captured("fault-o-proj-too-wide"))
    assert not re.search(r"https?://|@import|url\(", text)
    tags = Page(text).tags
    assert not [attributes for _, attributes in tags if {"src", "href"} & set(attributes)]
    policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    picture = draw_svg(captured("tiny-tp2"), [])
    assert set(re.findall(r"https?://[^\"]*", picture)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\((.)", picture)) == {"#"}


def test_eight_ranks_of_every_layer_stay_small() -> None:
    layer = captured("llama-3-8b-one-layer-tp8")
    text = layer.to_json()

    def number(value: str, count: int) -> str:
        return value.replace("layers.0.", f"layers.{count}.")

    records = [record for record in layer.records if "layers.0." not in record.parameter]
    inside = [record for record in layer.records if "layers.0." in record.parameter]
    for count in range(32):
        records += [replace(r, tensor=number(r.tensor, count), parameter=number(r.parameter, count)) for r in inside]
    shapes = {number(name, count): shape for count in range(32) for name, shape in layer.parameter_shapes.items()}
    stored = {number(name, count): shape for count in range(32) for name, shape in layer.checkpoint_shapes.items()}
    whole = replace(Trace.from_json(text), records=tuple(records), checkpoint_shapes=stored, parameter_shapes=shapes)
    assert len(whole.records) == 8 * 291
    assert find_faults(whole) == []
    assert len(page(whole).encode()) < 2_000_000


def rectangles(picture: str, kind: str) -> list[tuple[float, float]]:
    groups = [group for group in ET.fromstring(picture).iter(f"{SVG}g") if group.get("class") == kind]
    found = [group.find(f"{SVG}rect") for group in groups]
    return [(float(rect.attrib["x"]), float(rect.attrib["width"])) for rect in found if rect is not None]


def test_the_still_picture_is_in_true_proportion() -> None:
    trace = select_parameters_of(captured("llama-3-8b-tp2"), EXAMPLE_TENSORS[:1])
    picture = draw_svg(trace, [])
    # 704 of the 800 pixels are the bar's, after 16 of margin and 64 for the rank: 2048 of 3072 rows
    # are 469.33 of them, 512 are 117.33
    assert rectangles(picture, "copy") == [(80, 469.33), (549.33, 117.33), (666.67, 117.33)] * 2
    root = ET.fromstring(picture)
    assert (root.get("role"), root.get("width"), root.get("aria-labelledby")) == ("img", "800", "trace-title trace-desc")
    titles = {node.get("id"): node.text for node in root if node.get("id")}
    assert titles["trace-title"] == "Weight load of llama-3-8b"
    assert str(titles["trace-desc"]).endswith("no fault was found.")


@pytest.mark.parametrize("name", [name for name in ALL if "tp1" not in name])
def test_the_still_picture_has_every_record_and_every_fault(name: str) -> None:
    trace = captured(name)
    findings = find_faults(trace)
    picture = draw_svg(trace, findings)
    assert len(rectangles(picture, "copy")) == len(trace.records)
    assert len(rectangles(picture, "padding")) == len(trace.fills)
    for kind in ("missing", "twice", "cut off"):
        assert len(rectangles(picture, kind.replace(" ", "-"))) == sum(finding.fault == kind for finding in findings)
    hatched = [rect for rect in ET.fromstring(picture).iter(f"{SVG}rect") if rect.get("fill") == "url(#fault)"]
    slices = [
        piece for section in sections(trace, findings) for shown in section.figures for bar in shown.bars for piece in bar.slices
    ]
    assert len(hatched) == sum(bool(piece.faults) for piece in slices)
    description = next(node.text for node in ET.fromstring(picture) if node.tag == f"{SVG}desc")
    assert all(str(finding) in str(description) for finding in findings)


def test_select_parameters_of_keeps_all_records_of_the_parameters() -> None:
    trace = captured("tiny-tp2")
    small = select_parameters_of(trace, ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
    assert {short_name(record.tensor) for record in small.records} == {"gate_proj", "up_proj", "lm_head"}
    assert [fill.parameter for fill in small.fills] == ["lm_head.weight"]
    assert find_faults(small) == []
    with pytest.raises(UserError, match="has no tensor 'nope'"):
        select_parameters_of(trace, ["nope"])


@pytest.fixture
def trace_tiny(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs ``./lab trace`` on a captured load instead of vLLM; returns exit status, output, and an entry for each load."""
    traced: list[str] = []

    def load(*_: object, **__: object) -> Trace:
        traced.append("load")
        return captured("tiny-tp2")

    monkeypatch.setattr("labkit.system.environment.ensure", lambda _: None)
    monkeypatch.setattr("labkit.load.trace.trace_load", load)
    return lambda *arguments: (*lab("trace", "tiny", *arguments), traced)


def test_the_command_writes_both(trace_tiny: Any, tmp_path: Path) -> None:
    status, *_ = trace_tiny("--tp", "2", "--all-ranks", "--html", str(tmp_path / "a.html"), "--svg", str(tmp_path / "a.svg"))
    assert status == 0
    trace = captured("tiny-tp2")
    assert (tmp_path / "a.html").read_text() == page(trace)
    assert (tmp_path / "a.svg").read_text() == draw_svg(select_parameters_of(trace, EXAMPLE_TENSORS), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.svg"]


def test_a_wrong_output_path_is_refused_before_the_load(
    trace_tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, file, sentence in [
        ("--html", "a.txt", "should end in .html; name it a.html"),
        ("--svg", "a.html", "should end in .svg; name it a.svg"),
        ("--svg", "absent/a.svg", "there is no folder"),
    ]:
        status, output, traced = trace_tiny(option, str(tmp_path / file))
        assert (status, traced) == (1, [])
        assert sentence in output
    assert list(tmp_path.iterdir()) == []
