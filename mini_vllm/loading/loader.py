"""The strict loader: plans every copy, reports everything that is wrong in one error, and only then copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError
from mini_vllm.loading.mapping import StackedRow, translate


class LoadError(CheckpointError):
    """A checkpoint and a model that do not fit; the message lists every tensor that is wrong, with target and both shapes."""


@dataclass(frozen=True)
class Copy:
    """One checkpoint tensor and the rows of the parameter that it fills."""

    tensor: str
    parameter: str
    start: int
    stop: int


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, rows: Sequence[StackedRow], ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Fills every row of every parameter exactly once.

    Args:
        model: its modules say in ``shards`` (see layers/linear.py) which rows belong to which checkpoint tensor.
        checkpoint: where the tensors come from.
        rows: the model's mapping rows.
        ignored: which tensors may be left over.

    Raises:
        LoadError: a tensor has no home, the wrong shape or a rival; a parameter stays empty. Nothing has been copied then.
    """
    parameters = dict(model.named_parameters())
    unfilled = {(name, shard): span for name, p in parameters.items() for shard, span in _spans(model, name, p.shape[0]).items()}
    copies: dict[tuple[str, str | int | None], Copy] = {}
    problems: list[str] = []
    for tensor in checkpoint:
        if ignored(tensor):
            continue
        target = translate(tensor, rows)
        if target in copies:
            problems.append(f"{tensor} and {copies[target].tensor} both go to {_words(target)}")
        elif target not in unfilled:
            problems.append(f"{tensor} goes to {_words(target)}, which the model does not have")
        else:
            start, stop = unfilled.pop(target)
            copies[target] = copy = Copy(tensor, target[0], start, stop)
            shape, wanted = checkpoint.shape(tensor), (stop - start, *parameters[copy.parameter].shape[1:])
            if shape != wanted:
                problems.append(f"{tensor} is {shape}, and rows {start}:{stop} of {copy.parameter} are {wanted}")
    problems += [f"{_words(target)} is in no tensor of the checkpoint" for target in unfilled]
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise LoadError(
            f"the checkpoint in {checkpoint.folder} does not fit the model, {len(problems)} faults:\n  "
            + "\n  ".join(shown)
            + "\ncompare config.json with the checkpoint's shapes; nothing was loaded"
        )
    for copy in copies.values():
        parameters[copy.parameter].data[copy.start : copy.stop].copy_(checkpoint[copy.tensor])


def _spans(model: nn.Module, parameter: str, num_rows: int) -> dict[str | int | None, tuple[int, int]]:
    """Shard id -> rows, of one parameter; None -> all of them when it is not fused."""
    owner = model.get_submodule(parameter.rpartition(".")[0])
    return dict(getattr(owner, "shards", {None: (0, num_rows)}))


def _words(target: tuple[str, str | int | None]) -> str:
    parameter, shard = target
    return parameter if shard is None else f"{parameter} [{shard}]"
