"""The figures in the labs' READMEs: drawn again from a run of today they are the same, and what they show is so."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from figures.engine_run import BLOCK_SIZE, BUDGET, PROMPTS, record_run
from figures.load_path import record_load_path

from labkit.system.labs import ROOT, load_implementation

script = load_implementation(ROOT / "scripts" / "record_figures.py")


@pytest.mark.parametrize("place", script.FIGURES)
def test_a_figure_is_what_a_run_of_today_gives(place: str) -> None:
    drawn = script.FIGURES[place]()
    assert drawn == (ROOT / "labs" / place).read_text("utf-8"), "run scripts/record_figures.py, and look at what has changed"


@pytest.mark.parametrize("place", script.FIGURES)
def test_a_figure_is_shown_and_needs_nothing_else(place: str) -> None:
    lab, name = place.split("/")
    assert f"]({name})" in (ROOT / "labs" / lab / "README.md").read_text("utf-8")
    root = ET.parse(ROOT / "labs" / place).getroot()
    assert root.get("width") == "800"
    references = [value for each in root.iter() for key, value in each.items() if key.endswith("href") or "url(" in value]
    assert all(value.startswith("url(#") for value in references)
    told = root.find("{http://www.w3.org/2000/svg}desc")
    assert told is not None
    assert len(told.text or "") > 100


def test_the_run_shows_a_cut_prompt_and_shared_blocks() -> None:
    """Worked out by hand: a's five tokens leave three of the budget of eight, so b's nine are cut at 3; d begins like b for 8."""
    calls = record_run()
    assert [(row.request, row.position) for row in calls[0].rows] == [("a", i) for i in range(5)] + [("b", i) for i in range(3)]
    assert [row.request for row in calls[0].rows if row.sampled] == ["a"]
    assert max(len(call.rows) for call in calls) == BUDGET
    shared = next(call for call in calls if call.cached)
    assert shared.cached == {"d": 8}
    assert shared.tables["d"][:2] == shared.tables["b"][:2]
    for call in calls:
        for row in call.rows:
            block = call.tables[row.request][row.position // BLOCK_SIZE]
            assert row.slot == block * BLOCK_SIZE + row.position % BLOCK_SIZE
    computed = {(row.request, row.position) for call in calls for row in call.rows}
    assert len(computed) == sum(len(call.rows) for call in calls), "a position was computed twice"
    assert {name for name, _ in computed} == set(PROMPTS)


def test_the_way_goes_from_the_checkpoint_to_the_copy() -> None:
    """Each line that is named is a line of the function that is named, and takes off the front or renames, never more."""
    from pathlib import Path

    import vllm

    _, stops = record_load_path()
    assert [stop.taken for stop in stops if stop.taken] == ["model", "layers", "0", "self_attn", "qkv_proj"]
    assert stops[0].shape == (1024, 4096)
    assert stops[-1].shape == (512, 4096)
    last, line = stops[-1].where.split(":")
    text = (Path(vllm.__file__).parent.parent / last).read_text("utf-8").splitlines()[int(line) - 1]
    assert "copy_(" in text
