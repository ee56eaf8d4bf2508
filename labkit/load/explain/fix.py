"""Searches for mapping rows with which a checkpoint loads whole: proposes rows, and tries them in vLLM's load on meta."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.checkpoints.known_models import Model
from labkit.load.explain.mapper_rows import MapperRows, propose_rows
from labkit.load.library_output import silence_logs
from labkit.load.trace.coverage import find_faults
from labkit.load.trace.records import VllmLoadError

if TYPE_CHECKING:
    from labkit.load.explain.single_loads import SingleLoads

MAX_NAMES = 6
OTHER_MODALITIES = ("vision", "visual", "image", "audio", "whisper", "speech", "mm_", "multi_modal", "mlp_ar")
"""Words in the names of tensors that a text-only class has no module for."""


@dataclass(frozen=True)
class Attempt:
    """A load with additional mapping rows: its faults (or vLLM's refusal) as text, and its number of parameters, 0 if refused."""

    rows: MapperRows
    remaining: tuple[str, ...]
    parameters: int = 0


@dataclass(frozen=True)
class FixSearch:
    """The result of a search for a fix.

    Attributes:
        tensors: the results of loading each tensor by itself.
        unchanged: the load without additional rows.
        attempts: the loads with proposed rows, in the order in which they were tried; none is tried after a whole one.
    """

    model: Model
    tensors: SingleLoads
    unchanged: Attempt
    attempts: list[Attempt]

    @property
    def fix(self) -> Attempt | None:
        """The first attempt whose load is whole: ``unchanged`` if no rows are needed, None if there is no such attempt."""
        return next((attempt for attempt in (self.unchanged, *self.attempts) if not attempt.remaining), None)


def find_fix(model: Model, progress: Callable[[str], None] = lambda text: None) -> FixSearch:
    """Loads a checkpoint on meta at TP 1, tries mapping rows until a load is whole or none is left; returns all attempts.

    Raises UserError if vLLM's class for the model cannot be built.
    """
    progress("importing vLLM")
    with silence_logs():
        from labkit.load.explain.single_loads import load_each_tensor
    with silence_logs():
        progress("loading the tensors one by one")
        tensors = load_each_tensor(model)
        search = FixSearch(model, tensors, _try(model, MapperRows()), [])
        for rows in propose_rows(tensors.unmatched, tensors.fillers, tensors.loaded):
            if not search.fix:
                progress(f"trying rows for {', '.join(rows.arguments())}")
                search.attempts.append(_try(model, rows))
    return search


def _try(model: Model, rows: MapperRows) -> Attempt:
    """Loads at TP 1 on meta through vLLM's class; ``rows`` rename the tensors before the class's hf_to_vllm_mapper does."""
    from vllm.model_executor.models.utils import WeightsMapper

    from labkit.load.trace import real_load

    mapper: Any = WeightsMapper(**rows.arguments())
    try:
        trace = real_load.trace(model, 1, (0,), "meta", lambda text: None, rename=mapper.apply)
    except VllmLoadError as error:
        return Attempt(rows, (str(error),))
    dropped = {name for name in model.shapes if mapper.map_name(name) is None}
    faults = (each for each in find_faults(trace) if not (each.fault == "cut off" and each.name in dropped))
    return Attempt(rows, tuple(map(str, faults)), len(trace.parameter_shapes))


def fix_lines(search: FixSearch) -> Iterator[str]:
    """The lines that ``./lab explain`` prints for a search."""
    tensors, model = search.tensors, search.model
    yield f"{model.name}: {model.architecture}, {len(model.shapes)} checkpoint tensors"
    if not search.unchanged.remaining:
        yield "this checkpoint loads whole without a fix, on meta at TP 1: the error is from another checkpoint, version or rank"
        return
    yield from _names("unmatched", tensors.unmatched)
    yield from _names("of a wrong shape", tensors.wrong_shape)
    yield from _names("ignored without a message", tensors.ignored)
    for name, message in list(tensors.wrong_shape.items())[:MAX_NAMES]:
        yield f"    {name} {model.shapes[name]}: {message}"
    yield from _names("parameters that are not filled", tensors.unfilled)
    best = search.fix or min(search.attempts, key=lambda attempt: len(attempt.remaining), default=None)
    yield from _nearest_names(tensors, best)
    if foreign := [name for name in tensors.unmatched if any(word in name.lower() for word in OTHER_MODALITIES)]:
        yield (
            f"  {foreign[0]} belongs to an image or audio module: the checkpoint is of a multimodal model, and config.json names "
            "a class for text alone; compare its architectures with those of the original model"
        )
    if best is None:
        matched = "every name is matched; the tensors on disk are missing or of a wrong shape, or config.json is wrong"
        unmatched = "no unmatched tensor name resembles a parameter that is not filled"
        yield f"no mapping row fixes this: {unmatched if tensors.unmatched else matched}"
        return
    yield "rows for the class's hf_to_vllm_mapper:"
    yield from (f"  {line}" for line in str(best.rows).splitlines())
    if best.rows.drops:
        yield "  None leaves a tensor out: right for one that no module uses, wrong for a scale, a bias or a layer"
    if not best.remaining:
        yield f"tried on meta through the real class: WHOLE, all {best.parameters} parameters filled once"
        return
    yield f"tried on meta through the real class: NOT WHOLE, {len(best.remaining)} faults remain:"
    yield from (f"  {fault}" for fault in best.remaining[:MAX_NAMES])


def _names(kind: str, names: Iterable[str]) -> Iterator[str]:
    if shown := list(names):
        more = f", and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
        yield f"  {len(shown)} {kind}: {', '.join(shown[:MAX_NAMES])}{more}"


def _nearest_names(tensors: SingleLoads, best: Attempt | None) -> Iterator[str]:
    """For each of the first unmatched names, a line with the name that ``best`` matched it with, else the nearest parameter."""
    matched = best.rows.matched if best else {}
    for name, shape in list(tensors.unmatched.items())[:MAX_NAMES]:
        if name in matched:
            yield f"    {name} {shape} is nearest to {matched[name]}"
        elif near := difflib.get_close_matches(name, tensors.parameters, n=1, cutoff=0.4):
            yield f"    {name} {shape} is nearest to {near[0]} {tensors.parameters[near[0]]}, which is already filled"
