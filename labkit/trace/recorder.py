"""Records which part of which tensor is copied into which parameter, by watching torch's ``copy_``.

Nothing of vLLM's inside is used: a loader, however it is built, ends in ``parameter[...].copy_(tensor[...])``. Views share
their tensor's storage, so storage says who is copied into whom; storage offset and strides say which part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.trace.records import Span, TraceError


@dataclass(frozen=True)
class Copy:
    """One ``copy_`` from a checkpoint tensor into a parameter: their names, the parts, and vLLM's mark on the tensor."""

    tensor: str
    parameter: str
    destination: tuple[Span, ...]
    source: tuple[Span, ...]
    shard: str | int | None


FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor, torch.ops.aten.zero_.default)


class CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the base class has no annotations
    """Active as a context manager; ``copies`` grows while the load runs inside it, and ``fills``: parts filled with a number.

    Args:
        parameters: name -> parameter, contiguous.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[Copy] = []
        self.fills: list[tuple[str, tuple[Span, ...]]] = []
        self.parameters = dict(parameters)
        self.tensors: dict[str, Tensor] = {}  # kept alive: a freed storage would be reused, and taken for another tensor's
        self._owners = {parameter.untyped_storage(): name for name, parameter in self.parameters.items()}
        self._sources: dict[torch.UntypedStorage, str] = {}

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Passes the checkpoint's tensors on to the loader, remembering whose storage is whose."""
        for name, tensor in tensors:
            own = tensor.clone() if tensor.untyped_storage() in self._sources else tensor
            self.tensors[name] = own
            self._sources[own.untyped_storage()] = name
            yield name, own

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._record(args[0], args[1])
        elif func in FILLS and (parameter := self._owners.get(args[0].untyped_storage())) and args[0].numel():
            self.fills.append((parameter, span_of(args[0], self.parameters[parameter])))
        return func(*args, **(kwargs or {}))

    def _record(self, written: Tensor, read: Tensor) -> None:
        parameter = self._owners.get(written.untyped_storage())
        if parameter is None:
            return
        destination = span_of(written, self.parameters[parameter])
        name = self._sources.get(read.untyped_storage())
        if name is None:
            raise TraceError(
                f"{destination} of {parameter} is written from a tensor that is no part of a checkpoint tensor; "
                "this loader changes tensors on the way, and its copies cannot be traced back"
            )
        tensor = self.tensors[name]
        self.copies.append(Copy(name, parameter, destination, span_of(read, tensor), getattr(tensor, "shard_id", None)))

    def check_values(self) -> list[str]:
        """Sees that each parameter now holds what its records say, to the bit; parts that were written again later are left out.

        Returns:
            The tensors of which values were changed by the conversion to the parameter's element type.

        Raises:
            TraceError: naming the first record that does not hold.
        """
        rounded = []
        for number, copy in enumerate(self.copies):
            if any(_overlap(copy, later) for later in self.copies[number + 1 :]):
                continue
            parameter = self.parameters[copy.parameter]
            held = parameter[_index(copy.destination)]
            stored = self.tensors[copy.tensor][_index(copy.source)]
            expected = stored.to(parameter)
            if not torch.equal(_bits(held), _bits(expected)):
                raise TraceError(
                    f"{copy.parameter} does not hold {copy.tensor}: its part {list(copy.destination)} differs from "
                    f"the tensor's part {list(copy.source)}; the load changed the values after copying them"
                )
            if stored.dtype != parameter.dtype and not torch.equal(_bits(expected.to(stored)), _bits(stored)):
                rounded.append(copy.tensor)
        return rounded


def span_of(view: Tensor, base: Tensor) -> tuple[Span, ...]:
    """Which part of ``base`` a narrowed view of it is, one span per dimension.

    The offset of a view of a contiguous (R, C) tensor is row * C + column: its quotient by the first stride is the row
    where the view begins, and the remainder, by the second, the column.

    Raises:
        TraceError: ``view`` is transposed or strided, so that no rectangle of ``base`` is it.
    """
    if view.stride() != base.stride():
        raise TraceError(
            f"a view of shape {tuple(view.shape)} with strides {view.stride()} is no rectangle of "
            f"a tensor of shape {tuple(base.shape)} with strides {base.stride()}; its part cannot be told"
        )
    offset = int(view.storage_offset()) - int(base.storage_offset())
    spans = []
    for stride, size in zip(base.stride(), view.shape, strict=True):
        start, offset = divmod(offset, stride)
        spans.append((start, start + size))
    return tuple(spans)


def _overlap(one: Copy, other: Copy) -> bool:
    return one.parameter == other.parameter and all(
        max(a, c) < min(b, d) for (a, b), (c, d) in zip(one.destination, other.destination, strict=True)
    )


def _index(spans: tuple[Span, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in spans)


def _bits(tensor: Tensor) -> Tensor:
    """The tensor as bytes: NaN equals itself."""
    return tensor.detach().contiguous().view(torch.uint8)
