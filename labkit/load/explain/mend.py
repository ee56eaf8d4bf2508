"""Proposes rows for a checkpoint and a class that do not meet, and tries them on meta through the real load."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.checkpoints.headers import Shape
from labkit.checkpoints.known_models import Model
from labkit.load.explain.rows import Rows, propose
from labkit.load.trace.coverage import verify
from labkit.load.trace.quiet import quiet
from labkit.load.trace.records import LoadRefused, Trace

if TYPE_CHECKING:
    from labkit.load.explain.survey import Survey

SHOWN = 6
"""So many names of a kind are shown."""

OF_ANOTHER_PART = ("vision", "visual", "image", "audio", "whisper", "speech", "mm_", "multi_modal", "mlp_ar")
"""Words in the names of what a text-only class has no place for."""


@dataclass(frozen=True)
class Attempt:
    """Rows, and what came of them: nothing is left where the load is whole."""

    rows: Rows
    left: tuple[str, ...]
    trace: Trace | None


@dataclass(frozen=True)
class Mended:
    """What was found out about a checkpoint and its class.

    Attributes:
        model: the checkpoint.
        survey: what each of its tensors met with.
        as_it_is: the load without any row.
        attempts: the rows that were tried, in turn, until one made the load whole.
    """

    model: Model
    survey: Survey
    as_it_is: Attempt
    attempts: tuple[Attempt, ...]

    @property
    def mend(self) -> Attempt | None:
        """The rows that make it whole; without any, where it is whole as it is."""
        return next((attempt for attempt in (self.as_it_is, *self.attempts) if not attempt.left), None)


def mend(model: Model, progress: Callable[[str], None] = lambda text: None) -> Mended:
    """Looks at a checkpoint and its class on meta; tries rows until the load is whole or there are none left.

    Raises:
        UserError: the class cannot be built.
    """
    progress("importing vLLM")
    with quiet():
        from labkit.load.explain import survey
    with quiet():
        progress("giving the tensors to the class one by one")
        found = survey.look(model)
        as_it_is = _try(model, Rows())
        attempts: list[Attempt] = []
        if as_it_is.left:
            for rows in propose(found.homeless, found.wanted, found.placed):
                progress(f"trying {len(rows.arguments())} kinds of rows")
                attempts.append(_try(model, rows))
                if not attempts[-1].left:
                    break
    return Mended(model, found, as_it_is, tuple(attempts))


def _try(model: Model, rows: Rows) -> Attempt:
    """The real load at TP 1 on meta, with the rows before the class's own: as in its hf_to_vllm_mapper."""
    from vllm.model_executor.models.utils import WeightsMapper

    from labkit.load.trace import live

    mapper: Any = WeightsMapper(**rows.arguments())
    try:
        trace = live.trace(model, 1, (0,), "meta", lambda text: None, change=mapper.apply)
    except LoadRefused as error:
        return Attempt(rows, (str(error),), None)
    dropped = {name for name in model.shapes if mapper.map_name(name) is None}
    left = tuple(str(finding) for finding in verify(trace) if not (finding.fault == "cut off" and finding.name in dropped))
    return Attempt(rows, left, trace)


def lines(found: Mended) -> Iterator[str]:
    """What was found, line by line."""
    survey, names = found.survey, found.model
    yield f"{names.name}: {names.architecture}, {len(names.shapes)} checkpoint tensors"
    if not found.as_it_is.left:
        yield "this checkpoint loads whole as it is, on meta at TP 1: the error is of another, another version, or a rank"
        return
    for what, shown in (
        ("without a home", survey.homeless),
        ("of a shape that does not fit", survey.misfits),
        ("passed over without a word", dict.fromkeys(survey.skipped)),
    ):
        yield from _names(what, list(shown))
    for name, said in list(survey.misfits.items())[:SHOWN]:
        yield f"    {name} {names.shapes[name]}: {said}"
    yield from _names("parameters that are not filled", list(survey.empty))
    tried = found.mend or min(found.attempts, key=lambda attempt: len(attempt.left), default=None)
    yield from _nearest(survey, tried.rows.nearest if tried else {})
    if hint := _of_another_class(survey.homeless):
        yield f"  {hint}"
    if tried is None:
        yield (
            "no row would mend this: no name without a home is like one that is looked for"
            if survey.homeless
            else "no row would mend this: every name has its place; what is missing or unfit is so on disk, or in the config"
        )
        return
    yield "rows for the class's hf_to_vllm_mapper:"
    yield from (f"  {line}" for line in str(tried.rows).splitlines())
    if tried.rows.drops:
        yield "  None leaves a tensor out: right for one that nothing computes with, and garbage for a scale, a bias or a layer"
    if not tried.left:
        count = len(tried.trace.parameter_shapes) if tried.trace else 0
        yield f"tried on meta through the real class: WHOLE, all {count} parameters filled once"
        return
    yield f"tried on meta through the real class: NOT whole with them, {len(tried.left)} left:"
    yield from (f"  {left}" for left in tried.left[:SHOWN])


def _names(what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"  {len(names)} {what}: {', '.join(names[:SHOWN])}{more}"


def _nearest(survey: Survey, matched: Mapping[str, str]) -> Iterator[str]:
    """Of the first names without a home the nearest that is looked for; where there is none, the nearest parameter there is."""
    for name in list(survey.homeless)[:SHOWN]:
        if name in matched:
            yield f"    {name} {survey.homeless[name]} is nearest to {matched[name]}"
        elif near := difflib.get_close_matches(name, survey.parameters, n=1, cutoff=0.4):
            yield f"    {name} {survey.homeless[name]} is nearest to {near[0]} {survey.parameters[near[0]]}, which is filled"


def _of_another_class(homeless: dict[str, Shape]) -> str | None:
    foreign = [name for name in homeless if any(word in name.lower() for word in OF_ANOTHER_PART)]
    if foreign:
        return (
            f"{foreign[0]} is of a part that sees or hears: config.json names a class for text alone, "
            "and the checkpoint is of another; look at the architectures of the model it came from"
        )
    return None
