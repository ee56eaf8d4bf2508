"""Figure of one tensor's path through vLLM's load_weights: every function that holds it at the moment of the copy.

The tensor arrives through a chain of generators and is passed on through a stack of calls. At the copy both can be inspected: the
calls by their running frames, the generators by their suspended frames.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import FrameType, GeneratorType
from typing import Any
from xml.etree import ElementTree as ET

from labkit.pictures.drawing import FAINT, INK, MARGIN, MUTED, WIDTH, element, label, svg_root, svg_text

TENSOR, RANK, SIZE = "model.layers.0.self_attn.k_proj.weight", 1, 2
NAME, SHAPE, LINE = 372, 700, 37
"""x of the tensor's name and of its shape, and the height of a line, in pixels."""


@dataclass(frozen=True)
class Stop:
    """A function that holds the tensor.

    Attributes:
        function: its qualified name.
        where: file and line in the vLLM package.
        name: the tensor's name there; empty in a parameter's loader.
        taken: the module name that is removed from the front of the name here; else empty.
        shape: of the tensor, or of the remaining slice.
        said: further arguments of the function, as text.
    """

    function: str
    where: str
    name: str
    taken: str
    shape: tuple[int, ...]
    said: str


def record_load_path() -> tuple[str, tuple[Stop, ...]]:
    """Loads Llama-3-8B's shapes with the real vLLM; returns vLLM's version and the path of ``TENSOR`` on ``RANK``."""
    from labkit.load.library_output import silence_logs

    with silence_logs():
        import torch
        import vllm

        from labkit.checkpoints.known_models import resolve
        from labkit.load.trace.real_model import as_rank, build, group_of_one
        from labkit.load.trace.recorder import CopyRecorder

    found: list[tuple[Stop, ...]] = []
    package = Path(vllm.__file__).parent

    class Watched(CopyRecorder):  # type: ignore[no-untyped-call]  # torch's base class has no annotations
        def _record(self, written: torch.Tensor, read: torch.Tensor) -> None:
            super()._record(written, read)
            if self.copies and self.copies[-1].tensor == TENSOR:
                found.append(tuple(_stops(sys._getframe(1), package)))

    with silence_logs(), group_of_one():
        meta, model = torch.device("meta"), resolve("llama-3-8b")
        with as_rank(RANK, SIZE):
            built, _ = build(model, torch.bfloat16, meta)
        tensors: Any = ((name, torch.empty(shape, dtype=torch.bfloat16, device=meta)) for name, shape in model.shapes.items())
        with Watched(dict(built.named_parameters())) as recorder:
            built.load_weights(recorder.watch(tensors))  # type: ignore[operator]
    return vllm.__version__, found[0]


def _stops(copy: FrameType, package: Path) -> Iterator[Stop]:
    """Yields the stops from the generator next to the checkpoint to the frame that copies."""
    running = [frame for frame in _callers(copy) if Path(frame.f_code.co_filename).is_relative_to(package)]
    consumer = next(number for number, frame in enumerate(running) if isinstance(frame.f_locals.get("weights"), GeneratorType))
    waiting = [
        frame
        for frame in _upstream(running[consumer].f_locals["weights"])
        if Path(frame.f_code.co_filename).is_relative_to(package)
    ]
    modules = [type(f.f_locals["module"]) for f in reversed(running) if f.f_code.co_name == "_load_module"]
    entered = iter([kind.__name__ for kind, _ in groupby(modules)][1:])
    for frame in [*reversed(waiting), *reversed(running[: consumer + 1])]:
        if stop := _stop(frame, package):
            yield replace(stop, said=f"on to the {next(entered)}") if stop.taken else stop


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame:
        yield frame
        frame = frame.f_back


def _upstream(source: Any) -> Iterator[FrameType]:
    """Yields the frames of a chain of generators, the last one first; objects of itertools between them are skipped."""
    while source is not None:
        if isinstance(source, GeneratorType) and (frame := source.gi_frame):
            yield frame
            source = frame.f_locals.get("weights", frame.f_locals.get(".0"))
        else:
            source = next((held for held in gc.get_referents(source) if hasattr(held, "__next__")), None)


def _stop(frame: FrameType, package: Path) -> Stop | None:
    """Returns the stop of a frame; None for a function that only passes the tensor on."""
    local, function = frame.f_locals, frame.f_code.co_qualname.split(".<locals>")[0]
    known: dict[str, Callable[[], tuple[str, str, Any, str]]] = {
        "WeightsMapper.apply": lambda: (
            local["out_name"],
            "",
            local["data"],
            f"shard_id = {local['shard_id']!r}" if local["shard_id"] else "no row has this name",
        ),
        "AutoWeightsLoader._groupby_prefix": lambda: (local["parts"][1], local["parts"][0], local["weights_data"], ""),
        "QKVParallelLinear.load_weights": lambda: (
            local["name"],
            "",
            local["loaded_weight"],
            f"param.weight_loader(..., {local['shard_id']!r}), param {tuple(local['param'].shape)}",
        ),
        "QKVParallelLinear.weight_loader_v2": lambda: (
            "",
            "",
            local["loaded_weight"],
            f"shard_offset {local['shard_offset']}, shard_size {local['shard_size']}",
        ),
        "_ColumnvLLMParameter.load_qkv_weight": lambda: (
            "",
            "",
            local["loaded_weight"],
            f"self.data[{_rows(local['shard_offset'], local['shard_size'])}]"
            f".copy_(tensor[{_rows(local['shard_id_int'] * local['shard_size'], local['shard_size'])}])",
        ),
    }
    if function not in known or (function == "AutoWeightsLoader._groupby_prefix" and "parts" not in local):
        return None
    name, taken, tensor, said = known[function]()
    where = f"{Path(frame.f_code.co_filename).relative_to(package.parent).as_posix()}:{frame.f_lineno}"
    return Stop(function, where, name, taken, tuple(tensor.shape), said)


def _rows(start: int, count: int) -> str:
    return f"{start}:{start + count}"


def draw_load_path(version: str, stops: Sequence[Stop]) -> str:
    """Draws a line for each stop, from the checkpoint down to the copy."""
    title = f"The path of k_proj through load_weights, rank {RANK} of {SIZE}"
    about = " ".join(f"{stop.function}, {stop.where}: {stop.name} {stop.said}." for stop in stops)
    root = svg_root(title, f"{TENSOR}, recorded in vLLM {version}. {about}", "path")
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    label(
        root,
        f"Recorded in vLLM {version} at the moment of the copy: every function that holds the tensor, and the name it has there.",
        MARGIN,
        47,
    )
    y = 62.0
    for heading, x in (("in vLLM", MARGIN + 22), ("name of the tensor, arguments", NAME), ("shape", SHAPE)):
        label(root, heading, x, y + 10, 11, INK, font_weight="bold")
    y += 18
    first = Stop("the checkpoint", "", TENSOR, "", stops[0].shape, "")
    for number, (stop, before) in enumerate(zip([first, *stops], [first, first, *stops], strict=False)):
        _line(root, number, stop, before, y)
        y += LINE
    return svg_text(root, WIDTH, y + 8)


def _line(root: ET.Element, number: int, stop: Stop, before: Stop, y: float) -> None:
    element(root, "path", d=f"M{MARGIN} {y}H{WIDTH - MARGIN}", stroke=FAINT)
    if number:
        element(
            root,
            "path",
            d=f"M{MARGIN + 4} {y - 9}V{y + 5}M{MARGIN} {y + 1}L{MARGIN + 4} {y + 7}L{MARGIN + 8} {y + 1}",
            stroke=MUTED,
            fill="none",
        )
    middle = y + (16 if stop.where else 23)
    label(root, stop.function, MARGIN + 22, middle, 12, INK, font_weight="bold")
    label(root, stop.where, MARGIN + 22, y + 30, 11, font_family="ui-monospace, monospace")
    if stop.name:
        text = element(root, "text", None, x=NAME, y=y + (16 if stop.said else 23), font_size=12, fill=INK)
        if stop.taken:
            element(text, "tspan", f"{stop.taken}.", fill=MUTED, text_decoration="line-through")
        parts, was = stop.name.split("."), before.name.split(".")
        for place, part in enumerate(parts):
            changed = not stop.taken and len(parts) == len(was) and part != was[place]
            element(text, "tspan", part + ("." if place < len(parts) - 1 else ""), **({"font_weight": "bold"} if changed else {}))
    if stop.said:
        label(root, stop.said, NAME, y + (30 if stop.name else 23), 11, INK if not stop.name else MUTED)
    weight = "bold" if stop.shape != before.shape else "normal"
    label(root, f"({', '.join(map(str, stop.shape))})", SHAPE, y + 23, 12, INK, font_weight=weight)
