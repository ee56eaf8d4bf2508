"""The result of a verification as text; the lines fit 80 columns, except for names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from labkit.load.trace.boxes import describe_box, whole
from labkit.load.trace.coverage import Finding
from labkit.load.verify.report import FINDINGS, NOT_VERIFIED, VERIFIED, Comparison, FirstDifference, LoadResult, Report

MAX_KINDS = 12
"""The number of kinds of finding that are printed for a TP size; the JSON has every finding."""


def report_lines(report: Report) -> Iterator[str]:
    """The report, line by line."""
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
    skipped = {name: reason for load in report.loads for name, reason in load.skipped.items()}
    if skipped:
        yield ""
    for name, reason in skipped.items():
        yield f"skipped: {name}, {reason}"
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
        kinds.setdefault(re.sub(r"\d+", "#", f"{_kind(finding)} {finding.name}") + str(finding.shape), []).append(finding)
    for first, *more in list(kinds.values())[:MAX_KINDS]:
        yield f"  {_finding_text(first)}"
        if more:
            names = len({finding.name for finding in more} - {first.name})
            yield f"    and {len(more)} more like it" + (f", in {names} other layers or names" if names else ", on other ranks")
    if len(kinds) > MAX_KINDS:
        yield f"  and {len(kinds) - MAX_KINDS} more kinds; --json FILE has all {len(findings)}"


def _kind(finding: Finding) -> str:
    """The finding's name in docs/verify.md; ``cut off`` is divided into ``truncated`` and, for a whole tensor, ``never used``."""
    if finding.fault == "cut off":
        return "never used" if finding.part == whole(finding.shape) else "truncated"
    return "doubled" if finding.fault == "twice" else finding.fault


def _finding_text(finding: Finding) -> str:
    kind = _kind(finding)
    part, size = describe_box(finding.part, finding.shape), "x".join(map(str, finding.shape))
    if kind == "never used":
        return f"never used: {finding.name} ({size}): vLLM ignored it without a message"
    if kind == "truncated":
        return f"truncated: {part} of {finding.name} ({size}) were read by no rank"
    if kind == "doubled":
        return f"doubled: {part} of {finding.name} ({size}) were written more than once on rank {finding.tp_rank}"
    return str(finding)


def _logits(comparison: Comparison, model: str) -> Iterator[str]:
    reference = "" if comparison.reference == model else f" with {comparison.reference}"
    verdict = "the same as" if comparison.same else "NOT the same as"
    yield (
        f"logits: {verdict} transformers {comparison.transformers}{reference}: largest difference {comparison.largest:.2g}, "
        f"rounding explains {comparison.allowed:.1g}"
    )
    if comparison.first:
        yield from _first_difference(comparison.first)
    elif not comparison.same:
        yield "  no module could be named: no module that both have for the same weights differs"


def _first_difference(first: FirstDifference) -> Iterator[str]:
    part = "" if first.part == first.module else f", in the part {first.part}"
    yield f"  first difference: the {first.what} of {first.module}{part}"
    yield f"  largest difference there: {first.largest:.2g}; the values' standard deviation is {first.spread:.2g}"
    if first.what == "input":
        yield f"  {first.before or 'no module'} before it agrees: the fault is in what the class computes between the two"
    if first.looks_like:
        yield f"  {first.looks_like}"
    elif first.what == "output":
        yield "  its input agrees: its weights are wrong, or what the module computes with them"
