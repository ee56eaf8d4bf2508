"""Records which part of which tensor is copied into which parameter, by intercepting torch's ``copy_``.

No internals of vLLM are used: every loader ends in ``parameter[...].copy_(tensor[...])``. A view shares its tensor's storage, so
the storage identifies the tensor and the parameter; storage offset and strides identify the part (boxes.py).

Some loaders make new tensors first: Falcon's and Bloom's sort interleaved heads, GPT-2's transposes matrices. The recorder stores
the pieces that each new tensor was made of, and records a copy from the new tensor as copies from those pieces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.load.trace.boxes import Box, box_of, box_pairs, common, inside, reshaped, split, whole
from labkit.system.errors import UserError

MAX_COPIES = 200_000  # a load in more pieces is not traced: its loader copies single numbers


@dataclass(frozen=True)
class Copy:
    """One ``copy_`` from a part of a checkpoint tensor (``source``) into a part of a parameter (``destination``).

    ``shard`` is the attribute ``shard_id`` that vLLM's WeightsMapper set on the tensor, or None. ``changed``: the loader copied
    new values computed from the tensor's, such as ``weight + 1``; a cast, transpose or slice does not count. ``views``: tensor
    views of destination and source, elements in the same order.
    """

    tensor: str
    parameter: str
    destination: Box
    source: Box
    shard: str | int | None
    changed: bool = False
    views: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Origin:
    """The source of a storage's elements: ``base`` is the checkpoint tensor ``name``, or a tensor made of ``pieces``.

    A piece is a box in ``base`` and the tensor that the box was made from; ``changed`` says that values were changed then.
    """

    base: Tensor
    name: str | None = None
    pieces: tuple[tuple[Box, Tensor], ...] = ()
    changed: bool = False


FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor, torch.ops.aten.zero_.default)
COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
CAT, STACK = torch.ops.aten.cat.default, torch.ops.aten.stack.default


class CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the base class has no annotations
    """Records ``copies``, and ``fills`` (parts filled with a number), while it is active as a context manager.

    Args:
        parameters: name -> parameter, contiguous.
        other_tensors: returns the model's other tensors by name: its buffers, and parameters that the loader creates when it
            finds their checkpoint tensor. Once such a tensor is written, the recorder treats it as a parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor], other_tensors: Callable[[], Mapping[str, Tensor]] = dict) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[Copy] = []
        self.fills: list[tuple[str, Box]] = []
        self.parameters = dict(parameters)
        self.tensors: dict[str, Tensor] = {}  # keeps each storage from being freed and reused for another tensor
        self._other_tensors = other_tensors
        self._owners = {tensor.untyped_storage(): name for name, tensor in self.parameters.items()}
        self._origins: dict[torch.UntypedStorage, Origin] = {}

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yields the checkpoint's (name, tensor) pairs for the loader, and registers the storage of each tensor."""
        for name, tensor in tensors:
            own = tensor.clone() if tensor.untyped_storage() in self._origins else tensor
            self.tensors[name] = own
            self._origins[own.untyped_storage()] = Origin(own, name)
            yield name, own

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._record(args[0], args[1])
            if args[1].device.type == "meta" != args[0].device.type:
                return args[0]  # the loader created this parameter on another device; meta has no values to copy
        elif func in FILLS and (parameter := self._owners.get(args[0].untyped_storage())) and args[0].numel():
            base = self.parameters[parameter]
            self.fills += ((parameter, box) for _, box, _, _ in box_pairs(args[0], base, args[0], base))
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage() not in self._origins:
            self._derive(func, made, *args)
        return made

    def _derive(self, func: Any, made: Tensor, *args: Any) -> None:
        """Registers the origin of ``made`` if each element of ``made`` comes from one element of a checkpoint tensor."""
        if func in (CAT, STACK):
            axis = (args[1] if len(args) > 1 else 0) % made.dim()
            parts = [part.unsqueeze(axis) if func is STACK else part for part in args[0]]
            if all(part.untyped_storage() in self._origins for part in parts):
                spans, box = pairwise(accumulate((part.shape[axis] for part in parts), initial=0)), whole(tuple(made.shape))
                boxes = ((*box[:axis], span, *box[axis + 1 :]) for span in spans)
                self._origins[made.untyped_storage()] = Origin(made, pieces=tuple(zip(boxes, parts, strict=True)))
            return
        known = [each for each in args if isinstance(each, Tensor) and each.untyped_storage() in self._origins]
        if len(known) == 1 and known[0].shape == made.shape and made.untyped_storage() not in self._owners:
            pieces = ((whole(tuple(made.shape)), known[0]),)
            self._origins[made.untyped_storage()] = Origin(made, pieces=pieces, changed=func not in COPIES)

    def _record(self, written: Tensor, read: Tensor) -> None:
        if not written.numel():
            return
        origin = self._origins.get(read.untyped_storage())
        parameter = self._owners.get(written.untyped_storage()) or (self._new_owner(written) if origin else None)
        if parameter is None:
            return
        read = read.expand(written.shape)
        if origin is None:
            raise UserError(
                f"{box_of(written, self.parameters[parameter])} of {parameter} is written from a tensor that is no part of a "
                "checkpoint tensor; this loader changes tensors on the way, and its copies cannot be traced back"
            )
        self.copies += self._traced(parameter, written, read, origin, changed=False)
        if len(self.copies) > MAX_COPIES:
            raise UserError(
                f"the load copies more than {MAX_COPIES:,} pieces (the last one into {parameter}), so nothing is traced; its "
                "loader copies single numbers: copy whole rows or slices in load_weights"
            )

    def _new_owner(self, written: Tensor) -> str | None:
        """Registers ``written`` as a parameter if it is one of the model's other tensors; returns its name, else None."""
        for name, tensor in self._other_tensors().items():
            if tensor.untyped_storage() == written.untyped_storage():
                self.parameters[name] = tensor
                self._owners[tensor.untyped_storage()] = name
                return name
        return None

    def _traced(self, parameter: str, written: Tensor, read: Tensor, origin: Origin, changed: bool) -> Iterator[Copy]:
        """Yields one ``copy_`` as copies of boxes of checkpoint tensors into boxes of the parameter."""
        changed = changed or origin.changed
        for one, one_box, two, two_box in box_pairs(written, self.parameters[parameter], read, origin.base):
            if origin.name is not None:
                shard = getattr(self.tensors[origin.name], "shard_id", None)
                yield Copy(origin.name, parameter, one_box, two_box, shard, changed, (one, two))
                continue
            mine, theirs = reshaped(one, two_box), reshaped(two, two_box)
            if mine is None or theirs is None or not _in_order(theirs, origin.base):
                yield from (copy for pair in split(one, two) for copy in self._traced(parameter, *pair, origin, changed))
                continue
            for place, piece in origin.pieces:
                if (box := common(two_box, place)) is not None:
                    source = self._origins[piece.untyped_storage()]
                    yield from self._traced(parameter, inside(mine, box, two_box), inside(piece, box, place), source, changed)

    def check_values(self) -> list[str]:
        """Checks bit by bit that the destination of each copy has the source's values; skips overwritten and ``changed`` copies.

        Returns the names of tensors whose values the conversion to the parameter's element type changed. Raises UserError at the
        first difference.
        """
        rounded = []
        later: dict[str, list[Box]] = defaultdict(list)
        for copy in reversed(self.copies):
            again = any(common(copy.destination, other) is not None for other in later[copy.parameter])
            later[copy.parameter].append(copy.destination)
            if again or copy.changed:
                continue
            written, read = copy.views
            expected = read.to(self.parameters[copy.parameter])
            if not torch.equal(_bits(written), _bits(expected)):
                raise UserError(
                    f"{copy.parameter} does not hold {copy.tensor}: its part {list(copy.destination)} differs from "
                    f"the tensor's part {list(copy.source)}; the load changed the values after copying them"
                )
            if read.dtype != expected.dtype and not torch.equal(_bits(expected.to(read)), _bits(read)):
                rounded.append(copy.tensor)
        return list(dict.fromkeys(reversed(rounded)))


def _in_order(view: Tensor, base: Tensor) -> bool:
    """Whether the axes of a view are those of its base, in the same order and with the same strides."""
    return all(size == 1 or mine == theirs for size, mine, theirs in zip(view.shape, view.stride(), base.stride(), strict=True))


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, flat, because NaN values are not equal to each other and their bytes are."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
