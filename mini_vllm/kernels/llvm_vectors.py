"""LLVM instructions for the innermost loops: they hold sums in registers, where numba's own code writes each sum to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import zip_longest
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

REGISTERS = 32 if llvm.get_host_cpu_features().get("avx512f") else 8
"""How many vectors of 16 float32 the registers hold; with AVX2 a vector takes two of the 16 registers."""

BYTE, INT32, INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Array(NamedTuple):
    """An array argument of an :func:`llvm_loop`: LLVM pointer to the numbers, sizes as LLVM integers, and numba's dtype."""

    data: Any
    shape: list[Any]
    dtype: Any


def llvm_loop(emit: Callable[..., None]) -> Any:
    """Makes a numba function that returns nothing; ``emit(builder, *arguments)`` emits the function's instructions in order.

    ``emit`` gets an array as :class:`Array`, a constant as a Python int, and any other integer as an LLVM value.
    """

    @wraps(emit)
    def definition(typing_context: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def value(kind: Any, argument: Any) -> Any:
                if not isinstance(kind, types.Array):
                    return getattr(kind, "literal_value", argument)
                array = context.make_array(kind)(context, builder, argument)
                return Array(array.data, cgutils.unpack_tuple(builder, array.shape), kind.dtype)

            emit(builder, *map(value, kinds, arguments))
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return intrinsic(prefer_literal=True)(definition)


def call_llvm(builder: Any, name: str, *arguments: Any, returns: Any = ir.VoidType()) -> Any:  # noqa: B008
    """Emits a call of the LLVM intrinsic ``llvm.<name>``; returns the call's LLVM value."""
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), arguments)


class Vectors:
    """Emits LLVM instructions on integers (LLVM values or Python ints), and on vectors of ``lanes`` float32."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(ir.FloatType(), lanes)

    def times(self, number: Any, other: Any) -> Any:
        """Emits the product of two integers."""
        return self.builder.mul(_integer(number), _integer(other))

    def plus(self, number: Any, other: Any) -> Any:
        """Emits the sum of two integers."""
        return self.builder.add(_integer(number), _integer(other))

    def offset(self, array: Array, *index: Any) -> Any:
        """Emits the position of ``array[index]`` in the data of a contiguous array; indices left out are 0."""
        total, *rest = index
        for size, number in zip_longest(array.shape[1:], rest, fillvalue=0):
            total = self.plus(self.times(total, size), number)
        return total

    def address(self, data: Any, index: Any, kind: Any) -> Any:
        """Emits a pointer to the number ``data[index]``, with ``kind`` as the type that it points to."""
        return self.builder.bitcast(self.builder.gep(data, [index]), kind.as_pointer())

    def load(self, data: Any, index: Any, kind: Any = None) -> Any:
        """Emits the load of a vector that begins at ``data[index]``: of float32, or of the vector type ``kind``."""
        kind = kind or self.vector
        number = kind.element
        align = number.width // 8 if isinstance(number, ir.IntType) else {"float": 4, "half": 2}[str(number)]
        return self.builder.load(self.address(data, index, kind), align=align)

    def store(self, vector: Any, data: Any, index: Any) -> None:
        """Emits the store of a vector of float32, from ``data[index]`` on."""
        self.builder.store(vector, self.address(data, index, self.vector), align=4)

    def splat(self, data: Any, index: Any) -> Any:
        """Emits the load of one float32, ``data[index]``, into all lanes."""
        number = self.builder.load(self.builder.gep(data, [index]))
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, INT32(0))
        return self.shuffle(one, one, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Emits a vector of ``lanes``, which are indices into the concatenation of the vectors a and b."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, self.lanes), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Emits a * b + c of three vectors."""
        return call_llvm(self.builder, f"fmuladd.v{self.lanes}f32", a, b, c, returns=self.vector)

    def prefetch(self, data: Any, index: Any) -> None:
        """Emits a prefetch of the cache line of ``data[index]``."""
        # 0: for reading; 2: to the second-level cache, because the first level stalls when many lines are in flight; 1: data.
        call_llvm(self.builder, "prefetch.p0i8", self.address(data, index, BYTE), INT32(0), INT32(2), INT32(1))


def _integer(number: Any) -> Any:
    return INT64(number) if isinstance(number, int) else number
