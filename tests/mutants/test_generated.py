"""Tests that the labs' tests kill all generated mutants except those in equivalent.toml.

``tox -e mutants-all`` also checks that each mutant in equivalent.toml survives.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from generated import generated
from verdicts import verdicts
from whole import HERE

from labkit.system.labs import Lab, all_labs

EXPLAINED_TOO = os.environ.get("MINI_VLLM_LABS_ALL_MUTANTS") == "1"
LABS = [lab for lab in all_labs() if Path(__file__).with_name(f"lab-{lab.number}").is_dir()]


def explained(lab: Lab) -> dict[tuple[str, str], str]:
    """Returns (before, after) -> the reason in equivalent.toml."""
    file = HERE / f"lab-{lab.number}" / "equivalent.toml"
    data = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {(entry["before"], entry["after"]): entry["because"] for entry in data.get("mutant", [])}


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_no_generated_mutant_survives_unexplained(lab: Lab) -> None:
    known = explained(lab)
    run = {mutant.name: mutant for mutant in generated(lab) if EXPLAINED_TOO or (mutant.before, mutant.after) not in known}
    found = verdicts(lab, {name: mutant.source for name, mutant in run.items()}, quickest_first=True)
    survived = {(run[name].before, run[name].after) for name, verdict in found.items() if verdict.passed}
    print(f"lab {lab.number}: {len(run)} generated mutants run, {len(run) - len(survived)} killed")
    unexplained = [f"{before}\n  became\n{after}" for before, after in survived - set(known)]
    assert not unexplained, "\n\n".join(unexplained)
    killed = [f"{before}\n  became\n{after}" for before, after in set(known) - survived]
    assert not (EXPLAINED_TOO and killed), "these mutants are in equivalent.toml but are killed:\n" + "\n\n".join(killed)


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_at_least_95_in_100_are_killed(lab: Lab) -> None:
    """The test above kills all mutants that are not in equivalent.toml."""
    mutants, known = generated(lab), explained(lab)
    assert set(known) <= {(mutant.before, mutant.after) for mutant in mutants}, (
        "equivalent.toml has a mutant that is no longer generated"
    )
    assert all(known.values())
    assert len(known) <= 0.05 * len(mutants), f"{len(known)} of {len(mutants)} survive"
