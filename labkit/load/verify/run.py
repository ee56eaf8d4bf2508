"""Runs what is verified: a load for each TP size, then the logits where there are values and room for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.checkpoints.headers import BITS
from labkit.checkpoints.known_models import Model, check_ranks, resolve
from labkit.load.trace import Trace
from labkit.load.trace.coverage import Finding, verify, whole
from labkit.load.trace.quiet import quiet
from labkit.load.trace.records import LoadRefused
from labkit.load.verify.report import Comparison, Load, NotVerified, Report
from labkit.system.errors import UserError

if TYPE_CHECKING:
    from labkit.load.verify.layers import Reference

SIZES = (1, 2, 4, 8)
"""The TP sizes that are tried where none is named."""

SHARE = 0.6
"""What two copies of the model in float32 may take of the memory that is available."""


def parse_sizes(text: str) -> tuple[int, ...]:
    """``1,2,4,8``.

    Raises:
        NotVerified: it is no list of whole numbers from 1 up.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise NotVerified(f"--tp {text} is no list of TP sizes; say it as 1,2,4,8")
    return tuple(dict.fromkeys(int(word) for word in words))


def verify_model(
    model: str | Path,
    sizes: Sequence[int] | None = None,
    arch: str | None = None,
    against: Path | None = None,
    logits: bool | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Loads a model at every TP size through the real vLLM and says what is wrong with it.

    Args:
        model: a directory with config.json and safetensors; a known name, or a directory with config.json alone, for shapes of
            the Llama family.
        sizes: the TP sizes; by default those of SIZES that fit the model.
        arch: ``module:Class``, the class to load it with in place of vLLM's own.
        against: a checkpoint known to be right, for transformers to load; by default the model itself.
        logits: whether to compare the logits; by default where there are values, and room for them.
        trust_remote_code: whether code that lies beside the checkpoint may be run.

    Raises:
        NotVerified: the model cannot be read or built or split so, or vLLM is not installed.
    """
    try:
        found = replace(resolve(model), arch=arch, trust_remote_code=trust_remote_code)
        for size in sizes or ():
            check_ranks(found.config, size, range(size))
        if against is not None:
            resolve(against)
    except UserError as error:
        raise NotVerified(str(error)) from error
    if importlib.util.find_spec("vllm") is None:
        raise NotVerified("vLLM is not installed in this environment; run ./lab verify, which installs the pinned version first")
    progress("importing vLLM")
    with quiet():
        import torch
        import vllm

        from labkit.load.trace import build, live
    with quiet():
        reference, why_not = _reference(found, sizes or SIZES, against, logits, progress)
        loads: list[Load] = []
        with build.group_of_one():
            for size in sizes or SIZES:
                try:
                    check_ranks(found.config, size, range(size))
                except UserError as error:
                    loads.append(Load(size, not_tried=str(error).partition(";")[0], fits=False))
                    continue
                loads.append(_load(found, size, live.trace, has_values=not loads, progress=progress))
        traces = [load.trace for load in loads if load.trace]
        comparison = None
        if reference:
            comparison, why_not = _compared(found, loads, reference, progress)
        return Report(
            model=found.name,
            architecture=found.architecture,
            built=build.class_name(found),
            vllm=vllm.__version__,
            torch=torch.__version__,
            loads=tuple(loads),
            comparison=comparison,
            not_compared=why_not,
            asked=bool(logits) or against is not None,
            notes=tuple(dict.fromkeys(note for trace in traces for note in trace.not_run)),
        )


def _load(found: Model, size: int, trace: Callable[..., Trace], has_values: bool, progress: Callable[[str], None]) -> Load:
    """One TP size. Values are checked at the first: what is copied where is the same question for shapes, and for all others."""
    device = "cpu" if found.files and has_values and _fits(found, copies=1) else "meta"
    try:
        try:
            traced = trace(found, size, tuple(range(size)), device, progress)
        except LoadRefused:
            raise
        except UserError:
            if device == "cpu" or not found.files or not _fits(found, copies=1):
                raise
            # Bloom, for one, needs numbers while it is built, and torch's meta device has none.
            traced = trace(found, size, tuple(range(size)), "cpu", progress)
    except LoadRefused as error:
        return Load(size, refused=str(error))
    except UserError as error:
        return Load(size, not_tried=str(error))
    findings, skipped = _sorted(verify(traced), found)
    return Load(size, traced, tuple(findings), skipped)


def _sorted(findings: list[Finding], found: Model) -> tuple[list[Finding], dict[str, str]]:
    """What is a fault, and what a rule that somebody wrote down has left out."""
    tied = bool(found.config.get("tie_word_embeddings"))
    skipped = {
        finding.name: "config.json says tie_word_embeddings: the embedding serves for it"
        for finding in findings
        if tied and finding.fault == "cut off" and finding.name == "lm_head.weight" and finding.part == whole(finding.shape)
    }
    return [finding for finding in findings if finding.name not in skipped], skipped


def _reference(
    found: Model, sizes: Sequence[int], against: Path | None, logits: bool | None, progress: Callable[[str], None]
) -> tuple[Reference | None, str | None]:
    """What transformers computes, or why that is not asked."""
    if logits is False:
        return None, "--no-logits"
    if not found.files:
        return None, "there are no weights, only shapes"
    if 1 not in sizes:
        return None, "that needs TP 1"
    if importlib.util.find_spec("transformers") is None:
        return None, "transformers is not installed in this environment"
    if logits is None and not _fits(found, copies=2):
        return None, "two copies of it in float32 would not fit into this machine's memory; --logits tries all the same"
    from labkit.load.verify import layers

    try:
        return layers.run_reference(found, against, progress), None
    except layers.CannotCompare as error:
        return None, str(error)


def _compared(
    found: Model, loads: list[Load], reference: Reference, progress: Callable[[str], None]
) -> tuple[Comparison | None, str | None]:
    """vLLM beside the reference, or why it is not."""
    from labkit.load.verify import layers

    trace = next((load.trace for load in loads if load.tp_size == 1), None)
    if trace is None:
        return None, "there is no load at TP 1"
    try:
        return layers.compare(found, trace, reference, progress), None
    except layers.CannotCompare as error:
        return None, str(error)


def _fits(found: Model, copies: int) -> bool:
    """Whether so many copies of the model in float32 fit into the memory that is available."""
    import psutil  # type: ignore[import-untyped]  # comes with vLLM

    bits = sum(8 * (tensor.bytes[1] - tensor.bytes[0]) * 32 // min(32, BITS[tensor.dtype]) for tensor in found.stored.values())
    return bool(copies * bits / 8 < SHARE * psutil.virtual_memory().available)
