"""vLLM's model beside transformers', on the same prompts: the logits, and of those that differ the first module that does.

Which part of which module belongs to which is no guess by names: it is what the traced load copied where.

    checkpoint tensor   model.layers.0.self_attn.k_proj.weight   rows 0:64         transformers: output of k_proj, columns 0:64
    parameter           model.layers.0.self_attn.qkv_proj.weight rows 128:192      vLLM: output of qkv_proj, columns 128:192

Both run on the CPU in float32. What goes into a module is compared before what comes out: where the input differs already, the
fault lies between this module and the one before.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.checkpoints.known_models import Model
from labkit.load.trace.build import said_by
from labkit.load.trace.records import Record, Trace
from labkit.load.verify.report import Comparison, Place

PROMPTS, LENGTH = 2, 24
"""How many prompts, and how many random token ids in each."""

ROUNDING = 1e-3
"""The largest difference that is rounding, as a share of the standard deviation of what transformers computes.

Two libraries add in another order, layer after layer: more than two runs of one engine differ by
(labkit/checkpoints/logits.py). Over the architectures of docs/verified-architectures.md the largest share of one that
is right is in that table.
"""


class CannotCompare(Exception):
    """The logits cannot be compared here; the message is a phrase that says why."""


@dataclass
class Seen:
    """What went through a model's modules: by the module's name its input and its output, (T, features) each.

    ``order`` has the names in the order in which they ran; ``logits`` is (T, V), of every token.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    logits: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """A part of a module's output in both models: its columns there, and which module of transformers' has it."""

    mine: str
    theirs: str
    columns: tuple[int, int]
    their_columns: tuple[int, int]


@dataclass(frozen=True)
class Reference:
    """What transformers computes: of which checkpoint, on which prompts, and all that went through its modules."""

    name: str
    prompts: list[list[int]]
    seen: list[Seen]


def run_reference(model: Model, against: Path | None, progress: Callable[[str], None]) -> Reference:
    """Runs transformers, on the model or on the checkpoint that it is held against.

    Before vLLM builds anything: its wrapper around transformers' classes changes what transformers itself builds from then on.

    Raises:
        CannotCompare: transformers cannot run it; in its words.
    """
    import transformers

    vocabulary = _vocabulary(model)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, vocabulary, (LENGTH,), generator=generator).tolist() for _ in range(PROMPTS)]
    progress(f"running transformers {transformers.__version__}")
    with _silent():
        seen = _run_transformers(against or model.directory, prompts, model.trust_remote_code)
    return Reference(model.name if against is None else str(against), prompts, seen)


def compare(model: Model, trace: Trace, reference: Reference, progress: Callable[[str], None]) -> Comparison:
    """Runs vLLM on the reference's prompts.

    Args:
        trace: the load at TP 1.

    Raises:
        CannotCompare: vLLM cannot serve it here; in its words.
    """
    import transformers

    progress("running vLLM")
    with _silent():
        mine = _run_vllm(model, reference.prompts)
    theirs = reference.seen
    worst, spread = _difference(mine, theirs)
    allowed = ROUNDING * spread
    parts = _parts(trace, mine[0], theirs[0])
    first = None
    if not worst <= allowed:
        first = next((place for one, other in zip(mine, theirs, strict=True) if (place := _first(parts, one, other))), None)
        if first and first.what == "input" and (rows := _rows_into(trace, first.before)):
            first = replace(first, looks_like=f"what filled {first.before}: {', '.join(rows)}")
    return Comparison(reference.name, transformers.__version__, worst, spread, allowed, len(parts), first)


def _vocabulary(model: Model) -> int:
    """How many token ids the config has."""
    held = model.config.get("vocab_size") or (model.config.get("text_config") or {}).get("vocab_size")
    if not isinstance(held, int) or held < 1:
        raise CannotCompare("config.json does not say vocab_size, so there are no prompts")
    return held


# --- the two models -------------------------------------------------------------------------------------------------------------


@contextmanager
def _watched(model: nn.Module) -> Iterator[Seen]:
    """Keeps what goes through every module that has parameters of its own."""
    seen, hooks = Seen(), []

    def before(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            tensors = [each for each in args if isinstance(each, Tensor)]
            if tensors and tensors[0].is_floating_point():
                # A norm of vLLM's may be given what is added to its input, and adds it in place.
                added = tensors[1] if len(tensors) == 2 and tensors[1].shape == tensors[0].shape else None
                seen.inputs[name] = _rows(tensors[0] if added is None else tensors[0] + added)

        return keep

    def after(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and out.is_floating_point():
                seen.outputs[name] = _rows(out)
                seen.order.append(name)

        return keep

    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None or hasattr(module, "quant_method"):
            hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _rows(tensor: Tensor) -> Tensor:
    """A copy as (T, features): what has heads or a batch of one has them side by side."""
    flat = tensor.detach().float().clone()
    return flat.reshape(-1, flat.shape[-1]) if flat.dim() != 3 or flat.shape[0] != 1 else flat[0]


def _run_transformers(directory: Path, prompts: list[list[int]], trust_remote_code: bool) -> list[Seen]:
    import transformers

    held = []
    try:
        found = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
        found.train(False)
        with torch.inference_mode():
            for prompt in prompts:
                with _watched(found) as seen:
                    seen.logits = found(torch.tensor([prompt]), use_cache=False).logits[0].float()
                held.append(seen)
    except Exception as error:
        raise CannotCompare(f"transformers {transformers.__version__} cannot run it: {said_by(error)}") from error
    return held


@contextmanager
def _silent() -> Iterator[None]:
    """Holds back what both say while they start: bars, loggers that the engine sets up anew, and C++ that writes to the file."""
    logging.disable(logging.ERROR)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a file descriptor is what is wanted
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(logging.NOTSET)


def _run_vllm(model: Model, prompts: list[list[int]]) -> list[Seen]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the model in this process, where it can be watched
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm: Any = None
    try:
        llm = LLM(
            str(model.directory),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            max_model_len=2 * LENGTH,
            max_num_seqs=1,
            enable_prefix_caching=False,
            disable_log_stats=True,
            trust_remote_code=model.trust_remote_code,
        )
        return [llm.apply_model(_prompted(llm, prompt))[0] for prompt in prompts]
    except Exception as error:
        raise CannotCompare(f"vLLM {vllm.__version__} cannot serve it on this CPU: {said_by(error)}") from error
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def _prompted(llm: Any, prompt: list[int]) -> Callable[[nn.Module], Seen]:
    def run(model: nn.Module) -> Seen:
        import vllm

        hidden: list[Tensor] = []
        whole = model.forward

        def keeping(*args: Any, **kwargs: Any) -> Any:
            out = whole(*args, **kwargs)
            hidden.append(out.detach().clone())
            return out

        model.forward = keeping
        try:
            with _watched(model) as seen:
                params = vllm.SamplingParams(temperature=0, max_tokens=1, detokenize=False)
                llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        finally:
            del model.forward
        with torch.inference_mode():
            seen.logits = model.compute_logits(hidden[0][: len(prompt)]).float()  # type: ignore[operator]
        return seen

    return run


# --- where they part ------------------------------------------------------------------------------------------------------------


def _difference(mine: list[Seen], theirs: list[Seen]) -> tuple[float, float]:
    """The largest difference of a log-probability, NaN if one is, and the standard deviation of transformers'."""
    size = min(seen.logits.shape[-1] for seen in (*mine, *theirs) if seen.logits is not None)
    one, two = (
        torch.cat([seen.logits[:, :size].log_softmax(-1) for seen in all_seen if seen.logits is not None])
        for all_seen in (mine, theirs)
    )
    apart = (one - two).abs().max()
    return float(apart), float(two.std())


def _parts(trace: Trace, mine: Seen, theirs: Seen) -> list[Part]:
    """The parts that both have by the same weights, in the order in which vLLM ran them."""
    found: dict[Part, None] = {}
    for record in trace.records:
        name, other = record.parameter.rpartition(".")[0], _their_name(record.tensor, theirs)
        if not record.parameter.endswith(".weight") or other is None or name not in mine.outputs:
            continue
        columns = _columns(record, mine.outputs[name].shape[-1], theirs.outputs[other].shape[-1])
        if columns:
            found[Part(name, other, *columns)] = None
    order = {name: place for place, name in reversed(list(enumerate(mine.order)))}
    return sorted(found, key=lambda part: (order[part.mine], part.columns))


def _rows_into(trace: Trace, module: str | None) -> list[str]:
    """The mapping rows that filled a fused parameter: where values agree and what follows does not, a shard may be another's."""
    rows = {str(r.mapping): None for r in trace.records if r.parameter == f"{module}.weight" and r.mapping}
    return list(rows) if len(rows) > 1 else []


def _their_name(tensor: str, theirs: Seen) -> str | None:
    """The module of transformers' that has this tensor: its name in the checkpoint may lack the name of the model inside."""
    module = tensor.rpartition(".")[0]
    if module in theirs.outputs:
        return module
    ends = [name for name in theirs.outputs if name.endswith(f".{module}")]
    return ends[0] if len(ends) == 1 else None


def _columns(record: Record, width: int, their_width: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The columns of both outputs that a record stands for; None where its axes are not those of outputs.

    A norm and an embedding (its rows are the vocabulary) put out as many as they have columns. A linear layer puts out its rows;
    where the checkpoint has the matrix the other way round, those are the tensor's columns.
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


def _first(parts: list[Part], mine: Seen, theirs: Seen) -> Place | None:
    """The first part whose input or output differs; an embedding that one of the two scales later does not count."""
    before: str | None = None
    held: Place | None = None
    for part in parts:
        if part.mine not in mine.outputs or part.theirs not in theirs.outputs:
            continue
        one, two = mine.inputs.get(part.mine), theirs.inputs.get(part.theirs)
        if one is not None and two is not None and one.shape == two.shape:
            if not _agree(one, two):
                return held or _place(part, "input", before, one, two)
            held = None
        one, two = mine.outputs[part.mine][:, slice(*part.columns)], theirs.outputs[part.theirs][:, slice(*part.their_columns)]
        if one.shape == two.shape and not _agree(one, two):
            place = _place(part, "output", before, one, two, _recognised(one, part, parts, theirs))
            if part.mine in mine.inputs:
                return held or place
            held = held or place
        before = part.mine
    return held


def _place(part: Part, what: Any, before: str | None, one: Tensor, two: Tensor, looks_like: str | None = None) -> Place:
    return Place(part.mine, part.theirs, what, before, float((one - two).abs().max()), float(two.std()), looks_like)


def _agree(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() <= ROUNDING * max(float(two.std()), 1e-12))


def _recognised(values: Tensor, part: Part, parts: list[Part], theirs: Seen) -> str | None:
    """What a part's values look like: those that transformers computes elsewhere in the same module, or in another order."""
    siblings = {other.theirs: other for other in parts if other.mine == part.mine and other.theirs != part.theirs}
    for name, other in siblings.items():
        expected = theirs.outputs[name][:, slice(*other.their_columns)]
        if expected.shape == values.shape and _agree(values, expected):
            return f"it is what transformers computes in {name}: the two were exchanged"
    expected = theirs.outputs[part.theirs][:, slice(*part.their_columns)]
    nearest = torch.cdist(values.T, expected.T).argmin(1)
    if len(set(nearest.tolist())) == len(nearest) and _agree(values, expected[:, nearest]):
        moved = int((nearest != torch.arange(len(nearest))).sum())
        return f"the right values in another order: {moved} of {len(nearest)} rows of the weight are not in their places"
    if not values.any():
        return "it is zero everywhere"
    return None
