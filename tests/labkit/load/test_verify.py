"""``./lab verify`` on tiny real checkpoints with the real vLLM and transformers; each case runs in a fork of one process."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forked import forked
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from labkit.checkpoints.faults import inject_fault
from labkit.checkpoints.known_models import KNOWN
from labkit.cli import main as cli
from labkit.load.library_output import silence_logs
from labkit.load.trace import Trace
from labkit.load.verify import FINDINGS, NOT_VERIFIED, VERIFIED, LoadResult, Report, parse_sizes, verify_model
from labkit.load.verify.report import Comparison, FirstDifference, report_lines
from labkit.system.errors import UserError
from labkit.system.labs import load_implementation

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")
pytest.importorskip("transformers", reason="needs transformers, which is not installed in this environment")

ROOT = Path(__file__).parents[3]
SCRIPT = load_implementation(ROOT / "scripts" / "record_verified.py")


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Imported before the first fork."""
    with silence_logs():
        import vllm.entrypoints.llm

        from labkit.load.verify import comparison  # noqa: F401

        assert vllm.entrypoints.llm.LLM


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    SCRIPT.make("LlamaForCausalLM", directory)
    return directory


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Any:
    def make(fault: str) -> Path:
        inject_fault(llama, fault, tmp_path / fault)
        return tmp_path / fault

    return make


def verified(model: Path | str, sizes: tuple[int, ...] = (1,), **settings: Any) -> dict[str, Any]:
    """Returns the report's JSON, with its text under ``text``."""

    def run() -> dict[str, Any]:
        report = verify_model(model, sizes, **settings)
        return json.loads(report.to_json()) | {"text": "\n".join(report_lines(report))}  # type: ignore[no-any-return]

    return forked(run)  # type: ignore[no-any-return]


# --- loads ----------------------------------------------------------------------------------------------------------------------


def test_a_whole_checkpoint_is_whole_at_every_size_and_computes_what_transformers_does(llama: Path) -> None:
    report = verified(llama, (1, 2, 4))
    assert report["status"] == VERIFIED
    assert [(load["tp_size"], load["verdict"], load["device"]) for load in report["loads"]] == [
        (1, "whole", "cpu"),
        (2, "whole", "meta"),
        (4, "whole", "meta"),
    ]
    assert report["logits"]["same"]
    assert report["logits"]["largest"] < report["logits"]["allowed"] / 10
    # Of 21 tensors: 2 layers of q, k, v, o, gate, up, down and 2 norms, the embedding and the last norm; the head is not called.
    assert report["logits"]["compared"] == 20
    assert report["text"].splitlines()[-1] == "VERIFIED"


@pytest.mark.parametrize(
    ("fault", "kind", "name"),
    [
        ("missing-k", "missing: rows 128:192 of ", "self_attn.qkv_proj.weight"),
        ("wide-o", "truncated: columns 128:160 of ", "self_attn.o_proj.weight"),
        ("unread-bias", "never used: ", "self_attn.q_proj.bias"),
        ("fused-beside-parts", "doubled: rows 0:256 of ", "self_attn.qkv_proj.weight"),
    ],
)
def test_faults_that_vllm_does_not_report_are_found(fault: str, kind: str, name: str, broken: Any) -> None:
    report = verified(broken(fault), (1, 2), logits=False)
    assert report["status"] == FINDINGS
    assert [load["verdict"] for load in report["loads"]] == ["not whole", "not whole"]
    assert f"  {kind}model.layers.1.{name} (" in report["text"]


def test_a_refused_load_is_a_finding_with_vllms_message(broken: Any) -> None:
    report = verified(broken("unmapped-name"), (1, 2))
    assert report["status"] == FINDINGS
    assert [load["verdict"] for load in report["loads"]] == ["refused", "refused"]
    assert "There is no module or parameter named 'layers.1.mlp.fc1' in LlamaModel" in report["text"]
    assert "./lab explain explains the message" in report["text"]


def test_a_config_and_weights_that_disagree(llama: Path, tmp_path: Path) -> None:
    """One layer fewer in config.json than on disk, and one more."""
    for layers, said in ((1, "no module or parameter named 'layers.1'"), (3, "were not initialized from checkpoint")):
        folder = tmp_path / str(layers)
        folder.mkdir()
        config = json.loads((llama / "config.json").read_text()) | {"num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").symlink_to(llama / "model.safetensors")
        report = verified(folder, logits=False)
        assert report["status"] == FINDINGS
        assert said in report["loads"][0]["message"]


def test_shapes_alone_say_so() -> None:
    report = verified("llama-3-8b", (1, 8))
    assert report["status"] == VERIFIED
    assert report["not_compared"] == "there are no weights, only shapes"
    assert "by shapes alone" in report["text"]
    assert "291 checkpoint tensors into 195 parameters on each of 8 ranks" in report["text"]


# --- whole loads with wrong values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "part", "looks_like"),
    [
        (
            "swapped-kv",
            "k_proj",
            "these are the values that transformers computes in model.layers.1.self_attn.v_proj: the two tensors were swapped",
        ),
        # Of the 32 rows of a head, pairs put side by side leave the first and the last where they are; 4 heads, so 8 of 128.
        ("permuted-qk", "q_proj", "the right values in another order: 120 of 128 rows of the weight are in the wrong place"),
    ],
)
def test_wrong_values_are_traced_to_a_module(fault: str, part: str, looks_like: str, broken: Any, llama: Path) -> None:
    report = verified(broken(fault), against=llama)
    assert report["status"] == FINDINGS
    assert report["loads"][0]["verdict"] == "whole"
    first = report["logits"]["first"]
    assert (first["module"], first["part"]) == ("model.layers.1.self_attn.qkv_proj", f"model.layers.1.self_attn.{part}")
    assert (first["what"], first["looks_like"]) == ("output", looks_like)


CLASSES = '''
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import WeightsMapper


class SwappedRows(LlamaModel):
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_stacked={
        ".q_proj": (".qkv_proj", "q"), ".k_proj": (".qkv_proj", "v"), ".v_proj": (".qkv_proj", "k"),
        ".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)})


class Swapped(LlamaForCausalLM):
    """A mapping with k and v exchanged: every row of every parameter is written once."""

    def _init_model(self, vllm_config, prefix="", **settings):
        return SwappedRows(vllm_config=vllm_config, prefix=prefix, **settings)


class ShortRope(LlamaForCausalLM):
    """The right weights, and a base of rope that is not config.json's."""

    def __init__(self, *, vllm_config, prefix=""):
        rope = vllm_config.model_config.hf_config.rope_parameters
        kept = rope["rope_theta"]
        rope["rope_theta"] = 10.0
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        rope["rope_theta"] = kept


class OnlyOnCuda(LlamaForCausalLM):
    def __init__(self, *, vllm_config, prefix=""):
        import torch

        torch.zeros(1, device="cuda")


nothing = 1
'''


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("classes")
def test_a_wrong_row_in_a_class_of_ones_own_is_named(llama: Path) -> None:
    report = verified(llama, arch="mine:Swapped")
    assert report["built"] == "mine.Swapped"
    assert (report["status"], report["loads"][0]["verdict"]) == (FINDINGS, "whole")
    first = report["logits"]["first"]
    assert (first["module"], first["what"], first["before"]) == (
        "model.layers.0.self_attn.o_proj",
        "input",
        "model.layers.0.self_attn.qkv_proj",
    )
    assert ".k_proj -> .qkv_proj, shard v" in first["looks_like"]


@pytest.mark.usefixtures("classes")
def test_a_fault_between_two_modules_is_located_there(llama: Path) -> None:
    first = verified(llama, arch="mine:ShortRope")["logits"]["first"]
    assert (first["module"], first["what"], first["before"]) == (
        "model.layers.0.self_attn.o_proj",
        "input",
        "model.layers.0.self_attn.qkv_proj",
    )


# --- what cannot be verified ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("mine", "'mine' names no class; say it as MODULE:CLASS"),
        ("mine:Absent", "mine:Absent cannot be imported: AttributeError: module 'mine' has no attribute 'Absent'"),
        (
            "absent:Class",
            "absent:Class cannot be imported: ModuleNotFoundError: No module named 'absent'; Python searches ",
        ),
        ("mine:nothing", "mine:nothing is not a subclass of torch's nn.Module"),
        ("mine:OnlyOnCuda", "it needs a GPU to be built, so try on a machine that has one"),
    ],
)
def test_a_class_that_cannot_be_built(arch: str, said: str, llama: Path) -> None:
    report = verified(llama, arch=arch)
    assert report["status"] == NOT_VERIFIED
    assert said in report["loads"][0]["message"]
    assert "Traceback" not in report["text"]


def other_architecture(llama: Path, tmp_path: Path, **changes: Any) -> Path:
    config = json.loads((llama / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(llama / "model.safetensors"), tmp_path / "model.safetensors")
    return tmp_path


def test_an_architecture_that_vllm_does_not_know_or_knows_no_more(llama: Path, tmp_path: Path) -> None:
    report = verified(other_architecture(llama, tmp_path, architectures=["LamaForCausalLM"]))
    assert report["status"] == NOT_VERIFIED
    assert "knows no architecture LamaForCausalLM; the nearest it knows: " in report["loads"][0]["message"]


def test_remote_code_is_run_only_where_a_flag_says_so(llama: Path, tmp_path: Path) -> None:
    """The code beside the checkpoint leaves a mark when it runs."""
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyForCausalLM"}
    folder = other_architecture(llama, tmp_path, architectures=["MyForCausalLM"], model_type="mine", auto_map=auto_map)
    mark = tmp_path / "it ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass MyConfig: pass\nclass MyForCausalLM: pass\n")
    report = verified(folder)
    assert report["status"] == NOT_VERIFIED
    assert "config.json names code in the checkpoint's folder (AutoConfig, AutoModelForCausalLM)" in report["text"]
    assert "--trust-remote-code" in report["text"]
    assert not mark.exists()
    assert verified(folder, trust_remote_code=True)["status"] == NOT_VERIFIED
    assert mark.exists()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs a plugin of vLLM whose module cannot be imported."""
    info = tmp_path / "bad_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nbad = bad_plugin:register\n")
    (tmp_path / "bad_plugin.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("bad_plugin", None)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_fails_is_reported(llama: Path) -> None:
    (note,) = verified(llama, logits=False)["notes"]
    assert note == (
        "the plugin bad (bad_plugin:register) failed: ModuleNotFoundError: No module named 'a_package_that_is_not_there'; "
        "vLLM only logs this, and does not know the architectures that the plugin registers"
    )


def test_requested_logits_that_cannot_be_compared_are_not_verified() -> None:
    assert verified("llama-3-8b", logits=True)["status"] == NOT_VERIFIED


def test_tp_sizes() -> None:
    assert parse_sizes("1, 2,4,2") == (1, 2, 4)
    for text in ("", "1,,2", "0", "two"):
        with pytest.raises(UserError, match="write it as 1,2,4,8"):
            parse_sizes(text)
    with pytest.raises(UserError, match="32 query heads cannot be divided over 3 ranks; TP sizes that fit this model: 1, 2, 4"):
        verify_model(KNOWN / "llama-3-8b", (3,))


# --- the command line -----------------------------------------------------------------------------------------------------------


def typed(*arguments: object) -> tuple[int, str]:
    ended = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return ended.exit_code, ended.output


def test_the_command_writes_what_is_asked_for_and_ends_with_the_status(
    llama: Path, broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.system.environment.ensure", lambda *names: None)
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    options = ("--tp", "1,2", "--no-logits", "--json", report, "--html", page)
    code, _ = forked(lambda: typed("verify", broken("wide-o"), *options))
    assert code == FINDINGS
    told = json.loads(report.read_text())
    assert [load["findings"][0]["fault"] for load in told["loads"]] == ["cut off", "cut off"]
    assert "columns 128:160" in page.read_text()
    assert forked(lambda: typed("verify", llama, "--tp", 1, "--no-logits"))[0] == VERIFIED


def test_wrong_arguments_exit_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ["verify", str(tmp_path)],
        ["verify", "llama-3-8b", "--tp", "3"],
        ["verify", "llama-3-8b", "--html", "a.txt"],
    ):
        monkeypatch.setattr(sys, "argv", ["lab", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == NOT_VERIFIED


# --- the table ------------------------------------------------------------------------------------------------------------------

QUICK = ("Qwen3ForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel", "FalconForCausalLM", "PhiForCausalLM")


def test_the_table_is_up_to_date() -> None:
    """Repeats one row of each kind: norms on q and k, a tied head, experts, transposed matrices, sorted heads, the wrapper."""
    page = SCRIPT.PAGE.read_text(encoding="utf-8")
    architectures = re.findall(r"^\| (\w+) \|", page, re.MULTILINE)
    assert [name for name in architectures if name != "architecture"] == list(SCRIPT.CASES)
    rows = {name: next(line for line in page.splitlines() if line.startswith(f"| {name} |")) for name in QUICK}
    table = SCRIPT.table(SCRIPT.rows(QUICK)).splitlines()[2:]
    assert dict(zip(QUICK, table, strict=True)) == rows


# --- the status, and the page of docs -------------------------------------------------------------------------------------------


def test_the_exit_status() -> None:
    """A TP size that does not fit is ignored; a class that could not be built, or requested logits that are missing, are not."""
    trace = Trace("0", "0", "meta", "m", (), {}, {})
    whole, unfit, failed = (
        LoadResult(1, trace),
        LoadResult(3, not_tried="does not fit", fits=False),
        LoadResult(2, not_tried="cannot be built"),
    )
    same, other = (Comparison("m", "5", largest, 1.0, 0.1, 1, None) for largest in (0.01, math.nan))

    def status(*loads: LoadResult, **more: Any) -> int:
        return Report("m", "A", "b", "0", "0", loads, **more).status

    assert status(whole, unfit) == status(whole, comparison=same, asked=True) == VERIFIED
    assert status(whole, failed) == status(unfit) == status(whole, asked=True) == NOT_VERIFIED
    assert status(whole, comparison=other) == status(failed, LoadResult(4, refused="no")) == FINDINGS
    place = FirstDifference("m", "p", "output", None, math.nan, math.inf)
    report = Report("m", "A", "b", "0", "0", (whole,), replace(other, first=place))
    told = json.loads(report.to_json(), parse_constant=lambda word: pytest.fail(word))["logits"]
    assert told["largest"] is told["first"]["largest"] is told["first"]["spread"] is None


def test_the_examples_of_the_page_are_up_to_date() -> None:
    """Except for the digits of rounding errors, which depend on the machine."""
    script = load_implementation(ROOT / "scripts" / "record_verify_examples.py")
    page = script.PAGE.read_text(encoding="utf-8")
    said = {name: forked(example) for name, example in script.EXAMPLES.items()}
    assert page.count("<!-- run: ") == len(said)
    assert _rounded(script.with_examples(page, said)) == _rounded(page)


def _rounded(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?e-\d+", "#", text)
