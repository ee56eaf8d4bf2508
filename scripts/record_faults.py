"""Writes lab 02's table of faulty checkpoints: each fault of ``./lab break``, loaded by the real vLLM and by mini_vllm.

Run it in an environment that has the pinned vLLM, and check the changes:

    python scripts/record_faults.py
    git diff labs/lab-02-trace-weight-loading/README.md
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "labs" / "lab-02-trace-weight-loading" / "README.md"

sys.path.insert(0, str(ROOT))

from recordings import TINY, write_checkpoint  # noqa: E402
from vllm.config import LoadConfig  # noqa: E402
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # noqa: E402

from labkit.checkpoints.faults import FAULTS, inject_fault  # noqa: E402  # found only with the line above
from labkit.checkpoints.known_models import implied_shapes  # noqa: E402
from labkit.checkpoints.logits import compare  # noqa: E402
from labkit.load.trace import Trace, trace_load  # noqa: E402
from labkit.load.trace.coverage import Finding, find_faults  # noqa: E402
from labkit.system.errors import UserError  # noqa: E402
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json  # noqa: E402
from mini_vllm.loading.loader import LoadError  # noqa: E402
from mini_vllm.models.llama import LlamaForCausalLM  # noqa: E402
from mini_vllm.parallel import TPGroup, tp_group  # noqa: E402

BEGIN, END = "<!-- faults: scripts/record_faults.py writes what is between these two lines -->\n", "<!-- end of faults -->\n"
HEAD = "| fault | what is wrong | vLLM 0.32.0 | `--verify` and `diagnose` | mini_vllm's strict loader | `./lab logits` |\n"
MAX_MESSAGE = 140
"""Characters of a loader's message that go into the table; three dots replace the rest."""


@dataclass(frozen=True)
class Outcome:
    """The results for one faulty checkpoint.

    Attributes:
        vllm: the message of the real vLLM where it refused the load; empty where it loaded without a message.
        findings: the faults that ``find_faults`` finds in the trace of all ranks, if vLLM loaded it.
        strict: kind and name of each fault that mini_vllm's strict loader reports; the same on every rank.
        unreadable: its message for a checkpoint that it cannot open.
        logits: the largest difference from the source, where mini_vllm serves the checkpoint.
        differs: whether that is more than rounding.
        greedy: the number of greedy answers that differ, and of all.
    """

    vllm: str
    findings: tuple[Finding, ...]
    strict: tuple[tuple[str, str], ...]
    unreadable: str
    logits: float | None
    differs: bool
    greedy: tuple[int, int] | None

    def cells(self) -> tuple[str, str, str, str]:
        """The last four columns of the table."""
        return (
            quoted(self.vllm) if self.vllm else "**silent**",
            "refused before" if self.vllm else "; ".join(dict.fromkeys(map(_found, self.findings))) or "nothing",
            quoted(self.unreadable) if self.unreadable else _kinds(self.strict) or "nothing",
            self._logits(),
        )

    def _logits(self) -> str:
        if self.logits is None or self.greedy is None:
            return "not served"
        if not self.differs:
            return "the same"
        return f"**differ** by {self.logits:.2g}; {self.greedy[0]} of {self.greedy[1]} answers part"


def main() -> None:
    """Makes every fault, loads it at TP 1 and TP 2, and writes the table into the lab's README."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        good = good_checkpoint(Path(folder, "good"))
        for name in FAULTS:
            alone, ranks = (outcome(good, name, Path(folder, f"{name}-tp{tp_size}"), tp_size) for tp_size in (1, 2))
            if without_numbers(alone) != without_numbers(ranks):
                sys.exit(f"{name} is not the same at TP 1 and TP 2, and the table has one row for both:\n{alone}\n{ranks}")
            rows.append(row(name, alone))
            print(rows[-1], flush=True)
    README.write_text(with_table(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


def good_checkpoint(folder: Path) -> Path:
    """Writes the tiny Llama that all faults are made in."""
    folder.mkdir()
    write_checkpoint(folder, TINY, implied_shapes(TINY))
    return folder


def outcome(good: Path, name: str, folder: Path, tp_size: int) -> Outcome:
    """Makes one fault in a copy of ``good`` and loads it with both loaders, on all ranks."""
    inject_fault(good, name, folder)
    return loaded(folder, good, tp_size)


def loaded(folder: Path, good: Path, tp_size: int) -> Outcome:
    """Loads a checkpoint with both loaders, on all ranks."""
    refusal, trace = vllm_loads(folder, tp_size)
    findings = tuple(find_faults(trace)) if trace else ()
    each = []
    for rank in range(tp_size):
        with tp_group(TPGroup(rank, tp_size)):
            each.append(strict_loads(folder))
    if len(set(each)) != 1:
        raise AssertionError(f"the ranks do not see the same: {each}")
    strict, unreadable = each[0]
    difference = None if strict or unreadable else compare(folder, good)
    greedy = difference and (sum(place is not None for place in difference.first_differing), len(difference.first_differing))
    return Outcome(
        refusal,
        findings,
        strict,
        unreadable,
        difference and difference.largest,
        bool(difference and not difference.is_rounding),
        greedy,
    )


def vllm_loads(folder: Path, tp_size: int) -> tuple[str, Trace | None]:
    """Loads with the real vLLM: returns its message where it refuses the load, else the trace of all ranks."""
    loader = DefaultModelLoader(LoadConfig(use_tqdm_on_load=False))
    try:
        for _ in loader._get_weights_iterator(DefaultModelLoader.Source(str(folder), None)):
            pass
        return "", trace_load(folder, tp_size, range(tp_size), "cpu")
    except UserError as error:
        if not error.__cause__:
            raise
        return _message(error.__cause__, folder), None
    except Exception as error:
        return _message(error, folder), None


def strict_loads(folder: Path) -> tuple[tuple[tuple[str, str], ...], str]:
    """Loads with mini_vllm: returns the kinds and names of its faults, and its message for a checkpoint that it cannot open."""
    try:
        LlamaForCausalLM.from_checkpoint(read_json(folder / "config.json"), Checkpoint(folder))
    except LoadError as error:
        return tuple(sorted((fault.kind, fault.name) for fault in error.faults)), ""
    except CheckpointError as error:
        return (), _message(error, folder)
    return (), ""


def _message(error: BaseException, folder: Path) -> str:
    """Formats an error without the folder's path and without file sizes (they depend on it), and sorts the names of a set."""
    if not str(error):
        return type(error).__name__
    words = " ".join(str(error).replace(f"{folder}/", "").replace(str(folder), "DIR").split())
    words = re.sub(r"\b\d{6,}\b", "...", words)
    words = re.sub(r"\{([^{}]*)\}", lambda found: "{" + ", ".join(sorted(found[1].split(", "))) + "}", words)
    return f"{type(error).__name__}: {words.split(' The available parameters')[0]}"


def quoted(words: str) -> str:
    """Formats a message for a cell, cut to MAX_MESSAGE characters."""
    if words.isidentifier():
        return f"`{words}` with an empty message"
    short = words if len(words) <= MAX_MESSAGE else f"{words[: MAX_MESSAGE - 3]}..."
    return f"`{short.replace('|', '/').replace('`', chr(39))}`"


def _found(finding: Finding) -> str:
    """Formats a finding: ``missing``: qkv_proj, rows 128:192; without the part where it is the whole tensor."""
    axes = ("rows", "columns") if len(finding.shape) == 2 else ("elements",)
    cut = [f"{axis} {a}:{b}" for axis, (a, b), size in zip(axes, finding.part, finding.shape, strict=True) if (a, b) != (0, size)]
    return f"`{finding.fault}`: {_short(finding.name)}" + "".join(f", {words}" for words in cut)


def _kinds(faults: tuple[tuple[str, str], ...]) -> str:
    """Formats faults: ``truncated``: k_proj, v_proj; only the number where there are many."""
    parts = []
    for kind, group in groupby(faults, key=lambda fault: fault[0]):
        names = [_short(name) for _, name in group]
        parts.append(f"`{kind}`: " + (", ".join(names) if len(names) <= 3 else f"{len(names)} names"))
    return "; ".join(parts)


def _short(name: str) -> str:
    """``k_proj`` of model.layers.1.self_attn.k_proj.weight."""
    *_, module, kind = name.split(".")
    return module if kind == "weight" else f"{module}.{kind}"


def without_numbers(outcome: Outcome) -> tuple[object, ...]:
    """The part of an outcome that is the same at every TP size."""
    findings = {(finding.fault, finding.name) for finding in outcome.findings}
    strict, unreadable, *logits = astuple(outcome)[2:]
    return re.sub(r"\d+", "#", outcome.vllm), findings, strict, unreadable, logits


def row(name: str, of: Outcome) -> str:
    """One line of the table."""
    return f"| {' | '.join((f'`{name}`', FAULTS[name].title, *of.cells()))} |\n"


def with_table(text: str, rows: list[str]) -> str:
    """Replaces the text between the README's markers by these rows."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + HEAD + "|---|---|---|---|---|---|\n" + "".join(rows) + END + rest.split(END)[1]


def rows_in(text: str) -> Iterator[tuple[str, str]]:
    """The rows of a README by the name of the fault."""
    for line in text.split(BEGIN)[1].split(END)[0].splitlines(keepends=True)[2:]:
        yield line.split("`")[1], line


if __name__ == "__main__":
    main()
