"""The result of a verification: as data, as JSON, and as text in lines that fit 80 columns, except for names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from labkit.load.trace.boxes import whole
from labkit.load.trace.coverage import Finding
from labkit.load.trace.picture import draw_html
from labkit.load.trace.records import Trace
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError

VERIFIED, FINDINGS, NOT_VERIFIED = 0, 1, 2
"""Exit statuses: everything requested was verified without findings; there are findings; something could not be verified."""

MAX_KINDS = 12
"""The number of kinds of finding that are printed for a TP size; the JSON has every finding."""


@dataclass(frozen=True)
class LoadResult:
    """The load at one TP size, on all its ranks.

    Attributes:
        trace: the traced load; None if vLLM refused the load, or the load was not tried.
        skipped: checkpoint tensors that no rank read for a reason that is no fault -> the reason.
        refused: the message of vLLM's loader if vLLM refused the load.
        not_tried: the reason why the load was not tried.
        fits: whether the model can be split over so many ranks; a size that does not fit need not be tried.
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
        """The result in one word or two."""
        if self.not_tried:
            return "not tried"
        if self.refused:
            return "refused"
        return "not whole" if self.findings else "whole"


@dataclass(frozen=True)
class FirstDifference:
    """The first place where the two models compute different values.

    Attributes:
        module: the module of vLLM's model, ``model.layers.1.self_attn.qkv_proj``.
        part: the module of transformers' model that computes a part of ``module``, ``model.layers.1.self_attn.k_proj``.
        what: the values that differ: ``output``, or ``input``: then the fault is between ``before`` and ``module``.
        before: the module of vLLM's model that ran before ``module``, with equal values; None if ``module`` is the first.
        spread: the standard deviation of transformers' values there; ``largest`` is the largest difference.
        looks_like: a description of the wrong values; None if they look like nothing known.
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
    """vLLM compared with transformers, both in float32 on the CPU, on the same random prompts.

    Attributes:
        reference: the checkpoint that transformers loaded: the same one, or the one given by ``--against``.
        largest: the largest difference of a log-probability; NaN if a log-probability is NaN.
        spread: the standard deviation of transformers' log-probabilities.
        allowed: the largest difference that rounding explains.
        compared: the number of module outputs that were compared one by one.
        first: the first difference; None if the logits agree, or if no compared module differs.
    """

    reference: str
    transformers: str
    largest: float
    spread: float
    allowed: float
    compared: int
    first: FirstDifference | None

    @property
    def same(self) -> bool:
        """Whether vLLM and transformers compute the same logits, except for rounding."""
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Report:
    """The result of verifying one checkpoint.

    Attributes:
        model: the directory or known name that the user gave.
        built: the full name of the class that loaded the checkpoint.
        not_compared: the reason why the logits were not compared with transformers'; None if they were.
        asked: whether the user requested the comparison; then ``status`` is NOT_VERIFIED if it was not done.
        notes: a sentence for each other step that could not be done in this installation.
    """

    model: str
    architecture: str
    built: str
    vllm: str
    torch: str
    loads: tuple[LoadResult, ...]
    comparison: Comparison | None = None
    not_compared: str | None = None
    asked: bool = False
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """The exit status: VERIFIED, FINDINGS or NOT_VERIFIED."""
        verdicts = {load.verdict for load in self.loads}
        if verdicts & {"not whole", "refused"} or (self.comparison and not self.comparison.same):
            return FINDINGS
        missed = any(load.not_tried and load.fits for load in self.loads) or (self.asked and self.comparison is None)
        return VERIFIED if "whole" in verdicts and not missed else NOT_VERIFIED

    def to_json(self) -> str:
        """Formats the report as one JSON object; ``loads`` has every finding of every TP size."""
        loads = [
            {
                "tp_size": load.tp_size,
                "verdict": load.verdict,
                "checkpoint_tensors": len(load.trace.checkpoint_shapes) if load.trace else None,
                "parameters": len(load.trace.parameter_shapes) if load.trace else None,
                "device": load.trace.device if load.trace else None,
                "findings": [asdict(finding) | {"text": str(finding)} for finding in load.findings],
                "skipped": load.skipped,
                "message": load.refused or load.not_tried,
            }
            for load in self.loads
        ]
        # The standard library reads back NaN and infinities, which JSON has no numbers for, as None.
        compared = self.comparison and asdict(self.comparison) | {"same": self.comparison.same}
        logits = json.loads(json.dumps(compared), parse_constant=lambda word: None)
        names = ("status", "model", "architecture", "built", "vllm", "torch")
        values = {name: getattr(self, name) for name in names} | {"loads": loads, "logits": logits}
        values |= {"not_compared": self.not_compared, "notes": list(self.notes)}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def write_report(report: Report, json_file: Path | None, page: Path | None) -> Iterator[Path]:
    """Writes the report as JSON, and an HTML page of the first load with a finding, else of the last load; yields the paths.

    Raises UserError if a file cannot be written, or if there is no load to draw.
    """
    if json_file:
        atomic_write(json_file, report.to_json())
        yield json_file
    if page:
        drawn = [(load.trace, load.findings) for load in report.loads if load.trace]
        if not drawn:
            raise UserError(f"there is no load to draw in {page}; the lines above say why", NOT_VERIFIED)
        atomic_write(page, draw_html(*next((load for load in drawn if load[1]), drawn[-1])))
        yield page


def report_lines(report: Report) -> Iterator[str]:
    """The lines that ``./lab verify`` prints."""
    yield f"{report.model}: {report.architecture}, loaded by {report.built}"
    yield f"vLLM {report.vllm}, torch {report.torch}"
    yield ""
    for load in report.loads:
        yield f"TP {load.tp_size:<3} {load.verdict:<10} {_summary(load)}"
    for load in report.loads:
        if load.refused:
            yield from ("", f"TP {load.tp_size}: {load.refused}", "  ./lab explain explains the message, and tries to find a fix")
        if load.findings:
            yield from ("", f"TP {load.tp_size}:", *_findings(load.findings))
    skipped = {f"skipped: {name}, {reason}": None for load in report.loads for name, reason in load.skipped.items()}
    yield from ("", *skipped) if skipped else ()
    yield ""
    if report.comparison:
        yield from _logits(report.comparison, report.model)
    else:
        yield f"logits: not compared: {report.not_compared}"
    for note in report.notes:
        yield f"not done: {note}"
    yield {
        VERIFIED: "VERIFIED" if report.comparison else "VERIFIED by shapes alone: swapped or permuted rows would not be found",
        FINDINGS: "FINDINGS: this class does not load and compute this checkpoint correctly",
        NOT_VERIFIED: "NOT VERIFIED: the lines above say what was not done, and why",
    }[report.status]


def _summary(load: LoadResult) -> str:
    if load.trace is None:
        return load.not_tried or "vLLM's loader stopped; see below"
    tensors, parameters = len(load.trace.checkpoint_shapes), len(load.trace.parameter_shapes)
    ranks = "1 rank" if load.tp_size == 1 else f"each of {load.tp_size} ranks"
    checked = "shapes" if load.trace.device == "meta" else "every value checked"
    return f"{tensors} checkpoint tensors into {parameters} parameters on {ranks}; {checked}"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kind = _finding_text(finding).partition(":")[0]
        kinds.setdefault(re.sub(r"\d+", "#", f"{kind} {finding.name}") + str(finding.shape), []).append(finding)
    for first, *more in list(kinds.values())[:MAX_KINDS]:
        yield f"  {_finding_text(first)}"
        if more:
            names = len({finding.name for finding in more} - {first.name})
            yield f"    and {len(more)} more like it" + (f", in {names} other layers or names" if names else ", on other ranks")
    if len(kinds) > MAX_KINDS:
        yield f"  and {len(kinds) - MAX_KINDS} more kinds; --json FILE has all {len(findings)}"


def _finding_text(finding: Finding) -> str:
    """A finding in the words of docs/verify.md: ``doubled`` for ``twice``, ``truncated`` or ``never used`` for ``cut off``."""
    if finding.fault == "cut off" and finding.part == whole(finding.shape):
        return f"never used: {finding.name} ({'x'.join(map(str, finding.shape))}): vLLM ignored it without a message"
    kind = {"cut off": "truncated", "twice": "doubled"}.get(finding.fault, finding.fault)
    return kind + str(finding).removeprefix(finding.fault)


def _logits(comparison: Comparison, model: str) -> Iterator[str]:
    reference = "" if comparison.reference == model else f" with {comparison.reference}"
    verdict = "the same as" if comparison.same else "NOT the same as"
    yield (
        f"logits: {verdict} transformers {comparison.transformers}{reference}: largest difference {comparison.largest:.2g}, "
        f"rounding explains {comparison.allowed:.1g}"
    )
    first = comparison.first
    if first is None:
        if not comparison.same:
            yield "  the first wrong module is unknown: no module that both models run with the same weights differs"
        return
    part = "" if first.part == first.module else f", in the part {first.part}"
    yield f"  first difference: the {first.what} of {first.module}{part}"
    yield f"  largest difference there: {first.largest:.2g}; the values' standard deviation is {first.spread:.2g}"
    if first.what == "input":
        yield f"  the module before ({first.before or 'none'}) agrees: the fault is in what the class computes between the two"
    if first.looks_like:
        yield f"  {first.looks_like}"
    elif first.what == "output":
        yield "  the module's input agrees: its weights are wrong, or the class computes something else with them"
