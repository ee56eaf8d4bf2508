"""What lab 02 and its neighbours teach about the pinned vLLM, asserted: after a bump, what fails names the page to rewrite.

``scripts/README.md`` has the procedure. The words that vLLM says of bad checkpoints are held by test_both_loaders.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import vllm
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import DEFAULT_VOCAB_PADDING_SIZE, UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.model_executor.models import llama, minicpm
from vllm.model_executor.models.utils import WeightsMapper

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "labs" / "lab-02-trace-weight-loading" / "README.md"
GRADUATION = ROOT / "labs" / "lab-04-graduate-to-vllm" / "README.md"
MODELS = Path(llama.__file__).parent


class Fact(NamedTuple):
    """Something a section of lab 02's README says.

    Attributes:
        section: its heading.
        said: the fact, in a few words.
        holds: whether it holds in the vLLM that is installed.
    """

    section: str
    said: str
    holds: Callable[[], bool]


def model_files(containing: str) -> int:
    return sum(containing in path.read_text(encoding="utf-8") for path in MODELS.glob("*.py"))


def without_dots() -> WeightsMapper:
    return WeightsMapper(orig_to_new_stacked={"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)})


ROWS = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}

FACTS = [
    Fact("Requirements", "vLLM is 0.32.0", lambda: vllm.__version__ == "0.32.0"),
    Fact(
        "The path of one tensor: `k_proj` on rank 1 of 2",
        "Llama's mapping rows are LlamaModel.hf_to_vllm_mapper, five of them",
        lambda: llama.LlamaModel.hf_to_vllm_mapper.orig_to_new_stacked == ROWS,
    ),
    Fact(
        "Two forms of the mapping",
        "the rows are orig_to_new_stacked of a WeightsMapper, and llama.py has no stacked_params_mapping any more",
        lambda: (
            isinstance(llama.LlamaModel.hf_to_vllm_mapper, WeightsMapper)
            and "stacked_params_mapping" not in inspect.getsource(llama)
        ),
    ),
    Fact(
        "Two forms of the mapping",
        "most model files have orig_to_new_stacked, older ones stacked_params_mapping, minicpm.py among them",
        lambda: (
            model_files("orig_to_new_stacked") > model_files("stacked_params_mapping = [") > 0
            and "stacked_params_mapping = [" in inspect.getsource(minicpm)
        ),
    ),
    Fact(
        "Two forms of the mapping",
        "without the leading dot, gate_proj ends as gate_gate_up_proj",
        lambda: without_dots().map_name("mlp.gate_proj.weight") == "mlp.gate_gate_up_proj.weight",
    ),
    Fact(
        "The path of one tensor: `k_proj` on rank 1 of 2",
        "vocabularies are padded to 64",
        lambda: DEFAULT_VOCAB_PADDING_SIZE == 64,
    ),
    Fact(
        "How vLLM 0.32.0 handles a bad checkpoint",
        "track_weights_loading exempts what has process_weights_after_loading, and linear layers and embeddings have it",
        lambda: (
            "process_weights_after_loading" in inspect.getsource(DefaultModelLoader.track_weights_loading)
            and all(hasattr(m, "process_weights_after_loading") for m in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod))
        ),
    ),
    Fact(
        "Loads, but generates nonsense: an order of search",
        "--load-format dummy never calls the model's load_weights",
        lambda: "model.load_weights" not in inspect.getsource(DummyModelLoader),
    ),
]


@pytest.mark.parametrize("fact", FACTS, ids=[fact.said for fact in FACTS])
def test_what_the_lab_teaches_holds_in_this_vllm(fact: Fact) -> None:
    assert f"# {fact.section}\n" in LAB.read_text(encoding="utf-8"), f"lab 02's README has no section {fact.section!r}"
    assert fact.holds(), f"rewrite {LAB.relative_to(ROOT)}, section {fact.section!r}: it is no longer so that {fact.said}"


CLAIM = re.compile(r"`?([\w.]+)`?\s+\(`?(vllm/[\w/]+\.py):(\d+)`?\)")


def claims() -> list[tuple[str, str, str, str, int]]:
    """(file of ours, its section or key, name, file of vLLM, line): a name, and in parentheses where it stands."""
    found = []
    pages = ("labs/*/README.md", "labs/*/lab.toml", "docs/*.md", "labkit/load/plugins.py")
    for file in sorted(file for page in pages for file in ROOT.glob(page)):
        text = file.read_text(encoding="utf-8")
        for claim in CLAIM.finditer(text):
            heading = (re.findall(r"^#+ (.+)$", text[: claim.start()], re.MULTILINE) or [""])[-1]
            found.append((str(file.relative_to(ROOT)), heading, claim[1], claim[2], int(claim[3])))
    return found


@pytest.mark.parametrize(("file", "section", "name", "path", "line"), claims())
def test_a_line_of_vllm_that_a_lab_points_to_has_the_name(file: str, section: str, name: str, path: str, line: int) -> None:
    text = (Path(vllm.__file__).parent.parent / path).read_text(encoding="utf-8").splitlines()[line - 1]
    assert name.split(".")[-1] in text, f"rewrite {file}, section {section!r}: {path}:{line} is {text!r}, which has no {name}"


COUNTED = {LAB: 20, GRADUATION: 15, GRADUATION.with_name("lab.toml"): 8, ROOT / "docs" / "glossary.md": 20}
"""Pages that point to many lines, and how many at least."""


@pytest.mark.parametrize("page", [*{*COUNTED, *(ROOT / "docs").glob("*.md")}], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_line_that_a_page_points_to_is_a_claim(page: Path) -> None:
    mentioned = re.findall(r"vllm/[\w/]+\.py:\d+", page.read_text(encoding="utf-8"))
    assert len([claim for claim in claims() if claim[0] == str(page.relative_to(ROOT))]) == len(mentioned)
    assert len(mentioned) > COUNTED.get(page, -1)
