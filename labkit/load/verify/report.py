"""The result of a verification, as data and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from labkit.load.trace.coverage import Finding
from labkit.load.trace.picture import draw_html
from labkit.load.trace.records import Trace
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError

VERIFIED, FINDINGS, NOT_VERIFIED = 0, 1, 2
"""Exit status: everything requested was verified without findings; there are findings; it could not be verified."""


@dataclass(frozen=True)
class LoadResult:
    """The load at one TP size, on all its ranks.

    Attributes:
        tp_size: the number of ranks.
        trace: the copies; None where vLLM refused the load, or it was not tried.
        findings: the faults.
        skipped: checkpoint tensors that no rank read for a known reason; each with the reason.
        refused: the message of vLLM's loader where it refused the load.
        not_tried: the reason why there is no load.
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
        part: the module of transformers' model, which is a part of it, ``model.layers.1.self_attn.k_proj``.
        what: ``output``, or ``input``: then the fault is between ``before`` and this module.
        before: the module before it, whose values agree; None where it is the first.
        largest: the largest difference.
        spread: the standard deviation of transformers' values there.
        looks_like: a description of the values; None where nothing was recognized.
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
        transformers: the version of transformers.
        largest: the largest difference of a log-probability; NaN if one is.
        spread: the standard deviation of transformers' log-probabilities.
        allowed: the largest difference that rounding explains.
        compared: the number of module outputs that were compared one by one.
        first: the first difference; None where the two agree, or no module could be named.
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
        """Whether the two compute the same, except for rounding."""
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Report:
    """The result for one checkpoint.

    Attributes:
        model: the directory or known name that the user gave.
        architecture: the architecture in its config.
        built: the class that loaded it.
        vllm, torch: the versions.
        loads: one for each TP size.
        comparison: the logits compared with transformers'; None where they were not compared.
        not_compared: the reason why they were not.
        asked: whether the user asked for the comparison; then the checkpoint is not verified without it.
        notes: what else could not be done in this installation, a sentence for each.
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
                "skipped": dict(load.skipped),
                "message": load.refused or load.not_tried,
            }
            for load in self.loads
        ]
        names = ("status", "model", "architecture", "built", "vllm", "torch")
        logits = asdict(self.comparison) | {"same": self.comparison.same} if self.comparison else None
        values = {name: getattr(self, name) for name in names} | {"loads": loads, "logits": _finite(logits)}
        values |= {"not_compared": self.not_compared, "notes": list(self.notes)}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities by None, because JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report: Report, json_file: Path | None, page: Path | None) -> Iterator[Path]:
    """Writes the report as JSON, and the page of the first load with a finding, else of the largest; yields the paths.

    Raises UserError where a file cannot be written, or there is no load to draw.
    """
    if json_file:
        atomic_write(json_file, report.to_json())
        yield json_file
    if page:
        drawn = [(load.trace, load.findings) for load in report.loads if load.trace]
        if not drawn:
            raise UserError(f"there is no load to draw on {page}; the lines above say why", NOT_VERIFIED)
        atomic_write(page, draw_html(*next((load for load in drawn if load[1]), drawn[-1])))
        yield page
