"""What was verified, as data, as text and as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from labkit.load.trace.coverage import Finding, whole
from labkit.load.trace.page import html as draw_page
from labkit.load.trace.records import Trace, in_words
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.foreign_text import printable

WHOLE, FINDINGS, COULD_NOT = 0, 1, 2
"""The exit status: all that was asked for was verified and held; something is wrong; it could not be verified."""

MOST_LINES = 12
"""So many kinds of finding are spelled out for a TP size; the JSON has every one."""


class NotVerified(UserError):
    """It could not be verified; the message is a sentence that says why and what to try."""

    status = COULD_NOT


@dataclass(frozen=True)
class Load:
    """The load at one TP size, on all its ranks.

    Attributes:
        tp_size: over how many ranks.
        trace: what was copied where; None where vLLM refused, or it was not tried.
        findings: what is wrong with it.
        skipped: checkpoint tensors that no rank read, by a rule that names them; each with the rule.
        refused: what vLLM's loader said where it refused.
        not_tried: why there was no load to judge.
        fits: whether the model can be split so; a size that does not fit need not be tried.
    """

    tp_size: int
    trace: Trace | None = None
    findings: tuple[Finding, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None
    not_tried: str | None = None
    fits: bool = True

    @property
    def verdict(self) -> Literal["whole", "not whole", "refused", "not tried"]:
        """In a word."""
        if self.not_tried:
            return "not tried"
        if self.refused:
            return "refused"
        return "not whole" if self.findings else "whole"


@dataclass(frozen=True)
class Place:
    """Where two models first compute something else.

    Attributes:
        module: the module of vLLM's model, ``model.layers.1.self_attn.qkv_proj``.
        part: which part of its output, in the checkpoint's words, ``model.layers.1.self_attn.k_proj``.
        what: ``output``, or ``input``: then the fault is between the module before and this one.
        before: the module before it, which agrees; None where it is the first.
        largest: the largest difference.
        spread: the standard deviation of what transformers computes there.
        looks_like: what the values look like, in words; None where nothing was recognised.
    """

    module: str
    part: str
    what: Literal["output", "input"]
    before: str | None
    largest: float
    spread: float
    looks_like: str | None = None


@dataclass(frozen=True)
class Comparison:
    """vLLM beside transformers, both in float32 on the CPU, on the same random prompts.

    Attributes:
        reference: what transformers loaded: the checkpoint itself, or the one that it is held against.
        transformers: its version.
        largest: the largest difference of a log-probability; NaN if one is.
        spread: the standard deviation of transformers' log-probabilities.
        allowed: the largest difference that rounding accounts for.
        compared: how many parts of modules were compared one by one.
        first: the first place that differs; None where the two agree, or no module could be told.
    """

    reference: str
    transformers: str
    largest: float
    spread: float
    allowed: float
    compared: int
    first: Place | None

    @property
    def same(self) -> bool:
        """Whether the two compute the same, but for rounding."""
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Report:
    """All that was verified of one checkpoint.

    Attributes:
        model: what the user called it.
        architecture: what its config asks for.
        built: the class that loaded it.
        vllm, torch: the versions.
        loads: one for each TP size.
        comparison: the logits beside transformers'; None where they were not compared.
        not_compared: why they were not.
        asked: whether the comparison was asked for, so that its want is no success.
        notes: what else could not be done here, a sentence for each.
    """

    model: str
    architecture: str
    built: str
    vllm: str
    torch: str
    loads: tuple[Load, ...]
    comparison: Comparison | None = None
    not_compared: str | None = None
    asked: bool = False
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """The exit status: WHOLE, FINDINGS or COULD_NOT."""
        verdicts = {load.verdict for load in self.loads}
        if verdicts & {"not whole", "refused"} or (self.comparison and not self.comparison.same):
            return FINDINGS
        missed = any(load.not_tried and load.fits for load in self.loads) or (self.asked and self.comparison is None)
        return WHOLE if "whole" in verdicts and not missed else COULD_NOT

    def to_json(self) -> str:
        """One object; ``status`` is the exit status, ``loads`` has every finding of every TP size."""
        loads = [
            {
                "tp_size": load.tp_size,
                "verdict": load.verdict,
                "checkpoint_tensors": len(load.trace.checkpoint_shapes) if load.trace else None,
                "parameters": len(load.trace.parameter_shapes) if load.trace else None,
                "device": load.trace.device if load.trace else None,
                "findings": [asdict(finding) | {"text": str(finding)} for finding in load.findings],
                "skipped": dict(load.skipped),
                "said": load.refused or load.not_tried,
            }
            for load in self.loads
        ]
        head = {name: getattr(self, name) for name in ("model", "architecture", "built", "vllm", "torch")}
        compared = asdict(self.comparison) | {"same": self.comparison.same} if self.comparison else None
        whole_report: dict[str, Any] = {"status": self.status, **head, "loads": loads, "logits": _finite(compared)}
        whole_report |= {"not_compared": self.not_compared, "notes": list(self.notes)}
        return json.dumps(whole_report, indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """A value for JSON, which has no word for NaN and for an infinity: null stands for both, however deep they lie."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(report: Report, json_file: Path | None, page: Path | None) -> Iterator[Path]:
    """Writes what is asked for: the report as JSON, and the page of the first load with a finding, else of the largest.

    Raises:
        NotVerified: a file cannot be written, or there is no load to draw.
    """
    if json_file:
        atomic_write(json_file, report.to_json())
        yield json_file
    if page:
        traced = [load for load in report.loads if load.trace]
        chosen = next((load for load in traced if load.findings), traced[-1] if traced else None)
        if chosen is None or chosen.trace is None:
            raise NotVerified(f"there is no load to draw on {page}; see above why there was none")
        atomic_write(page, draw_page(chosen.trace, chosen.findings))
        yield page


def show(report: Report, console: Console) -> None:
    """Prints the report; fits 80 columns but for names."""
    for line in lines(report):
        console.print(printable(line, keep="\n"), markup=False, soft_wrap=True)


def lines(report: Report) -> Iterator[str]:
    """The report, line by line."""
    yield f"{report.model}: {report.architecture}, loaded by {report.built}"
    yield f"vLLM {report.vllm}, torch {report.torch}"
    yield ""
    for load in report.loads:
        yield f"TP {load.tp_size:<3} {load.verdict:<10} {_about(load)}"
    for load in report.loads:
        yield from _findings(load)
    skipped = {name: rule for load in report.loads for name, rule in load.skipped.items()}
    if skipped:
        yield ""
    for name, rule in skipped.items():
        yield f"skipped: {name}, {rule}"
    yield ""
    yield from _logits(report)
    for note in report.notes:
        yield f"not done: {note}"
    yield {
        WHOLE: "VERIFIED" if report.comparison else "VERIFIED, by shapes alone: swapped or permuted rows would not show",
        FINDINGS: "FINDINGS: this checkpoint and this class do not belong together as they are",
        COULD_NOT: "NOT VERIFIED: see above what was not done, and why",
    }[report.status]


def _about(load: Load) -> str:
    if load.trace is None:
        return load.not_tried or "vLLM's loader stopped; see below"
    tensors, parameters = len(load.trace.checkpoint_shapes), len(load.trace.parameter_shapes)
    ranks = "1 rank" if load.tp_size == 1 else f"each of {load.tp_size} ranks"
    how = "shapes" if load.trace.device == "meta" else "every value checked"
    return f"{tensors} checkpoint tensors into {parameters} parameters on {ranks}; {how}"


def _findings(load: Load) -> Iterator[str]:
    if load.refused:
        yield ""
        yield f"TP {load.tp_size}: {load.refused}"
        yield "  ./lab explain says what that means, and what would mend it"
    if not load.findings:
        return
    yield ""
    yield f"TP {load.tp_size}:"
    kinds: dict[str, list[Finding]] = {}
    for finding in load.findings:
        kinds.setdefault(re.sub(r"\d+", "#", f"{_kind(finding)} {finding.name}") + str(finding.shape), []).append(finding)
    for alike in list(kinds.values())[:MOST_LINES]:
        yield f"  {_said(alike[0])}"
        if more := alike[1:]:
            names = len({finding.name for finding in more} - {alike[0].name})
            yield f"    and {len(more)} more like it" + (f", in {names} other layers or names" if names else ", on other ranks")
    if len(kinds) > MOST_LINES:
        yield f"  and {len(kinds) - MOST_LINES} more kinds; --json FILE has all {len(load.findings)}"


def _kind(finding: Finding) -> str:
    """The finding's word; what no rank read is either a part of a tensor, or a tensor that nothing uses."""
    if finding.fault == "cut off":
        return "never used" if finding.part == whole(finding.shape) else "truncated"
    return "doubled" if finding.fault == "twice" else finding.fault


def _said(finding: Finding) -> str:
    kind = _kind(finding)
    part, size = in_words(finding.part, finding.shape), "x".join(map(str, finding.shape))
    if kind == "never used":
        return f"never used: {finding.name} ({size}): vLLM skipped it without a word"
    if kind == "truncated":
        return f"truncated: {part} of {finding.name} ({size}) were read by no rank"
    if kind == "doubled":
        return f"doubled: {part} of {finding.name} ({size}) were written more than once on rank {finding.tp_rank}"
    return str(finding)


def _logits(report: Report) -> Iterator[str]:
    found = report.comparison
    if found is None:
        yield f"logits: not compared: {report.not_compared}"
        return
    than = f"transformers {found.transformers}" + ("" if found.reference == report.model else f" with {found.reference}")
    bound = f"largest difference {found.largest:.2g}, rounding accounts for {found.allowed:.1g}"
    if found.same:
        yield f"logits: the same as {than}: {bound}"
        return
    yield f"logits: NOT the same as {than}: {bound}"
    if found.first is None:
        yield "  no single module could be named: none of the modules that both have by the same weights differs"
        return
    first = found.first
    of = "" if first.part == first.module else f", the part of it that is {first.part}"
    yield f"  first difference: the {first.what} of {first.module}{of}"
    yield f"  it is off by {first.largest:.2g}, where the values' standard deviation is {first.spread:.2g}"
    if first.what == "input":
        yield f"  {first.before or 'nothing'} before it agrees: the fault is in what the class does between the two"
        if first.looks_like:
            yield f"  {first.looks_like}"
    elif first.looks_like:
        yield f"  {first.looks_like}"
    else:
        yield "  what goes into it agrees: its weights are others, or what it does with them"
