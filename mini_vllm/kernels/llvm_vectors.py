"""LLVM instructions for the innermost loops: numba would keep each sum in memory, these keep it in registers.

An intrinsic's ``generate(context, builder, signature, arguments)`` emits its loop with them, one instruction after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

REGISTERS = 32 if llvm.get_host_cpu_features().get("avx512f") else 8
"""Vectors of 16 float32 that fit into the registers; with AVX2 a vector takes two."""

BYTE, INT32 = ir.IntType(8), ir.IntType(32)


class Vectors:
    """Emits the instructions of one intrinsic, on integers and on vectors of float32.

    Args:
        context, builder, signature, arguments: numba's, of the intrinsic's ``generate``.
        lanes: float32 in a vector.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, lanes: int) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        self.lanes = lanes
        self.vector = ir.VectorType(ir.FloatType(), lanes)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self._multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT32, INT32, INT32])
        self._prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

    def array(self, argument: int) -> Any:
        """The argument with this index, an array."""
        return self.context.make_array(self.signature.args[argument])(self.context, self.builder, self.arguments[argument])

    def size(self, argument: int, dimension: int) -> Any:
        """An array's size along a dimension."""
        return self.builder.extract_value(self.array(argument).shape, dimension)

    def times(self, number: Any, other: Any) -> Any:
        """Product of integers; the second may be Python's."""
        return self.builder.mul(number, number.type(other) if isinstance(other, int) else other)

    def plus(self, number: Any, other: Any) -> Any:
        """Sum of integers; the second may be Python's."""
        return self.builder.add(number, number.type(other) if isinstance(other, int) else other)

    def address(self, data: Any, index: Any, kind: Any) -> Any:
        """Pointer to this kind at the number with this index."""
        return self.builder.bitcast(self.builder.gep(data, [index]), kind.as_pointer())

    def load(self, data: Any, index: Any, kind: Any = None) -> Any:
        """Loads a vector, of float32 unless another kind is given."""
        kind = kind or self.vector
        return self.builder.load(self.address(data, index, kind), align=_bytes_of(kind.element))

    def store(self, vector: Any, data: Any, index: Any) -> None:
        """Stores a vector of float32."""
        self.builder.store(vector, self.address(data, index, self.vector), align=4)

    def splat(self, data: Any, index: Any) -> Any:
        """Loads one float32 into all lanes."""
        number = self.builder.load(self.builder.gep(data, [index]))
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, INT32(0))
        return self.shuffle(one, one, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """These lanes of the concatenation of two vectors."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, self.lanes), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c."""
        return self.builder.call(self._multiply_add, [a, b, c])

    def prefetch(self, data: Any, index: Any) -> None:
        """Prefetches the cache line of the number with this index."""
        # 0: for reading; 2: into the second-level cache, as the first level stalls when many lines are in flight; 1: data.
        self.builder.call(self._prefetch, [self.address(data, index, BYTE), INT32(0), INT32(2), INT32(1)])


def _bytes_of(kind: Any) -> int:
    return kind.width // 8 if isinstance(kind, ir.IntType) else {"float": 4, "half": 2}[str(kind)]
