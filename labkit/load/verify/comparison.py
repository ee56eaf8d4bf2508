"""Compares vLLM's model with transformers' on the same prompts: first the logits, then module by module.

The traced load determines which part of which module to compare; no names are guessed.

    checkpoint tensor   model.layers.0.self_attn.k_proj.weight   rows 0:64         transformers: output of k_proj, columns 0:64
    parameter           model.layers.0.self_attn.qkv_proj.weight rows 128:192      vLLM: output of qkv_proj, columns 128:192

A module's input is compared before its output: where the input differs already, the fault is between this module and the one
before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import Tensor

from labkit.checkpoints.known_models import Model
from labkit.load.trace.boxes import Span
from labkit.load.trace.records import Record, Trace
from labkit.load.verify.model_runs import MAX_PROMPT, Activations, run_transformers, run_vllm
from labkit.load.verify.report import Comparison, FirstDifference
from labkit.system.errors import UserError

PROMPTS = 2
"""The number of prompts, each of MAX_PROMPT random token ids."""

ROUNDING = 1e-3
"""The largest difference that is rounding, as a share of the standard deviation of transformers' values.

The two libraries add in different orders in every layer, so this share is larger than the one for two runs of one engine
(labkit/checkpoints/logits.py). docs/verified-architectures.md records the largest share of a correct architecture.
"""


@dataclass(frozen=True)
class SharedOutput:
    """Columns of a module's output in vLLM's model (``mine``) that a module of transformers' model (``theirs``) computes too."""

    mine: str
    theirs: str
    columns: Span
    their_columns: Span

    def of(self, mine: Activations, theirs: Activations) -> tuple[Tensor, Tensor]:
        """The values of vLLM's and of transformers' columns, each (T, columns)."""
        return mine.outputs[self.mine][:, slice(*self.columns)], theirs.outputs[self.theirs][:, slice(*self.their_columns)]


@dataclass(frozen=True)
class Reference:
    """The checkpoint that transformers ran, the prompts' token ids, and the activations of each prompt."""

    name: str
    prompts: list[list[int]]
    activations: list[Activations]


def run_reference(model: Model, against: Path | None, progress: Callable[[str], None]) -> Reference:
    """Runs transformers on random prompts, with the model's checkpoint or ``against``; returns prompts and activations.

    Call it before vLLM builds a model: vLLM's wrapper of transformers' classes changes what transformers builds afterwards.
    Raises UserError with the reason if transformers cannot run the checkpoint.
    """
    vocabulary = model.config.get("vocab_size") or (model.config.get("text_config") or {}).get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise UserError("config.json has no vocab_size, so no prompts of random token ids can be made; add vocab_size")
    prompts = torch.randint(0, vocabulary, (PROMPTS, MAX_PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    progress(f"running transformers {transformers.__version__}")
    activations = run_transformers(against or model.directory, prompts, model.trust_remote_code)
    return Reference(str(against or model.name), prompts, activations)


def compare(model: Model, trace: Trace | None, reference: Reference, progress: Callable[[str], None]) -> Comparison:
    """Runs vLLM on the reference's prompts, and compares the logits and, if they differ, the modules' inputs and outputs.

    ``trace`` is the load at TP 1. Raises UserError if ``trace`` is None, or if vLLM cannot serve the model.
    """
    if trace is None:
        raise UserError("vLLM did not load the checkpoint at TP 1; correct that load first")
    progress("running vLLM")
    mine, theirs = run_vllm(model, reference.prompts), reference.activations
    size = min(each.logits.shape[-1] for each in (*mine, *theirs))
    one, two = (torch.cat([each.logits[:, :size].log_softmax(-1) for each in runs]) for runs in (mine, theirs))
    largest, spread = float((one - two).abs().max()), float(two.std())
    shared = _shared_outputs(trace, mine[0], theirs[0])
    first = None
    if not largest <= ROUNDING * spread:
        first = next(filter(None, (_first_difference(shared, *pair) for pair in zip(mine, theirs, strict=True))), None)
        if first and first.what == "input":
            # The output of the module before agrees and this input does not: a mapping row may fill the wrong shard.
            rows = {str(r.mapping): None for r in trace.records if r.parameter == f"{first.before}.weight" and r.mapping}
            if len(rows) > 1:
                first = replace(first, looks_like=f"the rows that filled {first.before}: {', '.join(rows)}")
    return Comparison(reference.name, transformers.__version__, largest, spread, ROUNDING * spread, len(shared), first)


def _shared_outputs(trace: Trace, mine: Activations, theirs: Activations) -> list[SharedOutput]:
    """The outputs that both models compute with the same weights, in the order in which vLLM ran its modules."""
    found: dict[SharedOutput, None] = {}
    for record in trace.records:
        name, other = record.parameter.rpartition(".")[0], _their_module(record.tensor, theirs)
        if not record.parameter.endswith(".weight") or other is None or name not in mine.outputs:
            continue
        if columns := _columns(record, mine.outputs[name].shape[-1], theirs.outputs[other].shape[-1]):
            found[SharedOutput(name, other, *columns)] = None
    order = {name: place for place, name in enumerate(mine.outputs)}
    return sorted(found, key=lambda shared: (order[shared.mine], shared.columns))


def _their_module(tensor: str, theirs: Activations) -> str | None:
    """transformers' module that has this tensor, whose name may lack a prefix such as ``model.``; None if not exactly one."""
    module = tensor.rpartition(".")[0]
    ends = [module] if module in theirs.outputs else [name for name in theirs.outputs if name.endswith(f".{module}")]
    return ends[0] if len(ends) == 1 else None


def _columns(record: Record, width: int, their_width: int) -> tuple[Span, Span] | None:
    """The columns of vLLM's and of transformers' output that a record's weights compute; None if weight and outputs do not fit.

    A norm and an embedding (its rows are the vocabulary) have as many output columns as weight columns. A linear layer has as
    many as weight rows, or as tensor columns where the checkpoint has the matrix transposed.
    """
    rows, last = record.parameter_shape[0], record.parameter_shape[-1]
    if len(record.destination) == 1 or (width == their_width == last == record.shape[-1] and rows != width):
        return (0, width), (0, their_width)
    if len(record.destination) != 2 or rows < width:
        return None
    start, stop = record.destination[0]
    there = next((span for span in record.source if span[1] - span[0] == stop - start), (0, 0))
    if record.shape[0] != their_width == record.shape[1]:
        there = record.source[1]
    fits = stop <= width and there[1] <= their_width and there[1] - there[0] == stop - start
    return ((start, stop), there) if fits else None


def _first_difference(outputs: list[SharedOutput], mine: Activations, theirs: Activations) -> FirstDifference | None:
    """The first module whose input or output differs.

    A difference in the output of a module without an input (an embedding) counts only if the next input differs too: one of the
    two models may scale the embedding later.
    """
    before: str | None = None
    found: FirstDifference | None = None
    for shared in outputs:
        if shared.mine not in mine.outputs or shared.theirs not in theirs.outputs:
            continue
        values: dict[Literal["output", "input"], tuple[Tensor | None, Tensor | None]] = {
            "input": (mine.inputs.get(shared.mine), theirs.inputs.get(shared.theirs)),
            "output": shared.of(mine, theirs),
        }
        for what, (one, two) in values.items():
            if one is None or two is None or one.shape != two.shape:
                continue
            if not _agree(one, two):
                looks_like = _recognized(shared, outputs, mine, theirs) if what == "output" else None
                largest, spread = float((one - two).abs().max()), float(two.std())
                found = found or FirstDifference(shared.mine, shared.theirs, what, before, largest, spread, looks_like)
                if what == "input" or shared.mine in mine.inputs:
                    return found
            elif what == "input":
                found = None
        before = shared.mine
    return found


def _agree(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() <= ROUNDING * max(float(two.std()), 1e-12))


def _recognized(shared: SharedOutput, outputs: list[SharedOutput], mine: Activations, theirs: Activations) -> str | None:
    """Words for a wrong output: the values of another part of the module, the right values in another order, zeros; or None."""
    values, expected = shared.of(mine, theirs)
    for other in (each for each in outputs if each.mine == shared.mine and each.theirs != shared.theirs):
        part = other.of(mine, theirs)[1]
        if part.shape == values.shape and _agree(values, part):
            return f"these are the values that transformers computes in {other.theirs}: the two tensors were swapped"
    nearest = torch.cdist(values.T, expected.T).argmin(1)
    if len(set(nearest.tolist())) == len(nearest) and _agree(values, expected[:, nearest]):
        moved = int((nearest != torch.arange(len(nearest))).sum())
        return f"the right values in another order: {moved} of {len(nearest)} rows of the weight are in the wrong place"
    return None if values.any() else "all values are zero"
