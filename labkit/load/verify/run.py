"""Runs a verification: a load for each TP size, then the comparison of logits where there are weights and enough memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from labkit.checkpoints.headers import BITS
from labkit.checkpoints.known_models import Model, check_ranks, resolve
from labkit.load.library_output import require_vllm, silence_logs
from labkit.load.trace.boxes import whole
from labkit.load.trace.coverage import find_faults
from labkit.load.trace.records import VllmLoadError
from labkit.load.verify.report import NOT_VERIFIED, LoadResult, Report
from labkit.system.errors import UserError

SIZES = (1, 2, 4, 8)
MEMORY_SHARE = 0.6
"""The largest share of the available memory that the copies of the model in float32 may occupy."""

Progress = Callable[[str], None]


def parse_sizes(text: str) -> tuple[int, ...]:
    """Parses TP sizes such as ``1,2,4,8``; raises UserError where the text is not a list of whole numbers from 1 up."""
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"--tp {text} is no list of TP sizes; write it as 1,2,4,8", NOT_VERIFIED)
    return tuple(dict.fromkeys(map(int, sizes)))


def verify_model(
    model: str | Path,
    sizes: Sequence[int] | None = None,
    arch: str | None = None,
    against: Path | None = None,
    logits: bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda text: None,
) -> Report:
    """Loads a model at every TP size through the real vLLM, compares its logits, and reports what is wrong with it.

    Args:
        model: a directory with config.json and safetensors files; for shapes alone, of the Llama family, a known name or a
            directory with only config.json.
        sizes: the TP sizes; by default those of SIZES that fit the model.
        arch: ``module:Class``, the class to load the model with in place of vLLM's own.
        against: the directory of a correct checkpoint, for transformers to load; by default the model's directory.
        logits: whether to compare the logits; by default if there are weights and enough memory.
        trust_remote_code: whether code in the checkpoint's folder may be run.

    Raises:
        UserError: with status NOT_VERIFIED: the model cannot be read or split over ``sizes``, or vLLM is not installed or usable.
    """
    try:
        found = replace(resolve(model), arch=arch, trust_remote_code=trust_remote_code)
        for size in sizes or ():
            check_ranks(found.config, size, range(size))
        if against is not None:
            resolve(against)
        require_vllm("verify")
        progress("importing vLLM")
        with silence_logs():
            from labkit.load.trace import real_load  # noqa: F401
        with silence_logs():
            return _verify(found, sizes or SIZES, against, logits, progress)
    except UserError as error:
        error.status = NOT_VERIFIED
        raise


def _verify(found: Model, sizes: Sequence[int], against: Path | None, logits: bool | None, progress: Progress) -> Report:
    import torch
    import vllm

    from labkit.load.trace.real_model import class_name, group_of_one
    from labkit.load.verify.comparison import compare, run_reference

    fits = logits or _fits(found, copies=2)
    reasons = {
        "--no-logits": logits is False,
        "there are no weights, only shapes": not found.files,
        "the comparison needs a load at TP 1; add 1 to --tp": 1 not in sizes,
        "two copies in float32 would not fit into this machine's memory; --logits tries it nevertheless": not fits,
    }
    not_compared = next((reason for reason, applies in reasons.items() if applies), None)
    reference = comparison = None
    try:
        if not not_compared:
            reference = run_reference(found, against, progress)
    except UserError as error:
        not_compared = str(error)
    loads: list[LoadResult] = []
    with group_of_one():
        for size in sizes:
            loads.append(_load(found, size, has_values=not any(load.fits for load in loads), progress=progress))
    if reference:
        try:
            comparison = compare(found, next((load.trace for load in loads if load.tp_size == 1), None), reference, progress)
        except UserError as error:
            not_compared = str(error)
    return Report(
        model=found.name,
        architecture=found.architecture,
        built=class_name(found),
        vllm=vllm.__version__,
        torch=torch.__version__,
        loads=tuple(loads),
        comparison=comparison,
        not_compared=not_compared,
        asked=bool(logits) or against is not None,
        notes=tuple(dict.fromkeys(note for load in loads if load.trace for note in load.trace.not_run)),
    )


def _load(found: Model, size: int, has_values: bool, progress: Progress) -> LoadResult:
    """Loads at one TP size. ``has_values``: also checks values, if memory suffices; after one such size, shapes are enough."""
    from labkit.load.trace import real_load

    try:
        check_ranks(found.config, size, range(size))
    except UserError as error:
        return LoadResult(size, not_tried=str(error).partition(";")[0], fits=False)
    # Some classes, such as Bloom's, cannot be built on meta, which has no values: they compute with values while they are built.
    devices = ["meta", "cpu"] if found.files and _fits(found, copies=1) else ["meta"]
    for device in devices[-1:] if has_values else devices:
        try:
            trace = real_load.trace(found, size, range(size), device, progress)
            break
        except VllmLoadError as error:
            return LoadResult(size, refused=str(error))
        except UserError as error:
            failed = LoadResult(size, not_tried=str(error))
    else:
        return failed
    findings = find_faults(trace)
    skipped = {
        finding.name: "because config.json says tie_word_embeddings: the embedding is used in its place"
        for finding in findings
        if found.config.get("tie_word_embeddings") and finding.name == "lm_head.weight"
        if finding.fault == "cut off" and finding.part == whole(finding.shape)
    }
    return LoadResult(size, trace, tuple(finding for finding in findings if finding.name not in skipped), skipped)


def _fits(found: Model, copies: int) -> bool:
    """Whether this many copies of the model in float32 fit into the available memory."""
    import psutil  # type: ignore[import-untyped]  # comes with vLLM

    bits = sum(8 * (tensor.bytes[1] - tensor.bytes[0]) * 32 // min(32, BITS[tensor.dtype]) for tensor in found.stored.values())
    return bool(copies * bits / 8 < MEMORY_SHARE * psutil.virtual_memory().available)
