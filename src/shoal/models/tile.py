"""The products that attention is made of, in registers: a few rows by two vectors.

Written as vector instructions, because a compiler does not keep a tile of sums in registers by
itself: 250 GFLOP/s a core in fp32 where plain loops reach 35. For use inside compiled loops
(:mod:`shoal.models.native`), on flat fp32 arrays.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shoal.models.native import has

ROWS = 6  # of a tile; with two vectors a row the sums take 12 registers of 16 or 32
_LANES = 16 if has("avx512f") else 8  # numbers of a vector; other processors split it
WIDTH = 2 * _LANES  # columns of a tile
_HALVES = (0, _LANES)

_FLOAT, _INT, _PLACE = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, _LANES)


class _Emit:
    """Instructions on the arguments of one call."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._context, self.builder = context, builder
        self._signature, self.arguments = signature, arguments

    def start(self, index: int) -> Any:
        """Where an array begins."""
        made = self._context.make_array(self._signature.args[index])
        return made(self._context, self.builder, self.arguments[index]).data

    def place(self, start: Any, *offsets: Any) -> Any:
        """The address so many numbers behind another."""
        for offset in offsets:
            offset = _INT(offset) if isinstance(offset, int) else offset
            start = self.builder.gep(start, [offset])
        return start

    def load(self, start: Any, *offsets: Any) -> Any:
        """A vector."""
        address = self.builder.bitcast(self.place(start, *offsets), _VECTOR.as_pointer())
        return self.builder.load(address, align=4)

    def store(self, vector: Any, start: Any, *offsets: Any) -> None:
        address = self.builder.bitcast(self.place(start, *offsets), _VECTOR.as_pointer())
        self.builder.store(vector, address, align=4)

    def spread(self, address: Any) -> Any:
        """A vector full of one number."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        number = self.builder.load(address, align=4)
        one = self.builder.insert_element(undefined, number, _PLACE(0))
        first = ir.Constant(ir.VectorType(_PLACE, _LANES), [0] * _LANES)
        return self.builder.shuffle_vector(one, undefined, first)

    def call(self, name: str, *vectors: Any) -> Any:
        """An intrinsic function of LLVM's."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(vectors))
        insert: Any = cgutils.get_or_insert_function
        function = insert(self.builder.module, kind, f"llvm.{name}.v{_LANES}f32")
        return self.builder.call(function, vectors)


def _multiply(
    context: Any, c: Any, c_at: Any, a: Any, a_at: Any, row: Any, step: Any, b: Any, n: Any
) -> Any:
    """Add to ``ROWS`` rows of ``WIDTH`` numbers: c[r, w] += sum over k < n of a[r, k] b[k, w].

    c starts at ``c_at``; a[r, k] is at ``a_at + r row + k step``; c and b have rows of ``WIDTH``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emit(context, builder, signature, arguments)
        _, c_at, _, a_at, row, step, _, n = arguments
        c, a, b = emit.place(emit.start(0), c_at), emit.place(emit.start(2), a_at), emit.start(6)
        allocate: Any = cgutils.alloca_once
        sums = {(r, h): allocate(builder, _VECTOR) for r in range(ROWS) for h in _HALVES}
        for (r, half), total in sums.items():
            builder.store(emit.load(c, r * WIDTH + half), total)
        with cgutils.for_range(builder, n) as loop:
            b_row = builder.mul(loop.index, _INT(WIDTH))
            own = {half: emit.load(b, b_row, half) for half in _HALVES}
            a_column = builder.mul(loop.index, step)
            for r in range(ROWS):
                number = emit.spread(emit.place(a, a_column, builder.mul(row, _INT(r))))
                for half in _HALVES:
                    total = sums[r, half]
                    builder.store(emit.call("fma", number, own[half], builder.load(total)), total)
        for (r, half), total in sums.items():
            emit.store(builder.load(total), c, r * WIDTH + half)
        return context.get_dummy_value()

    arguments = (c, types.intp, a, types.intp, types.intp, types.intp, b, types.intp)
    return types.void(*arguments), generate


def _scale(context: Any, c: Any, c_at: Any, b: Any, b_at: Any) -> Any:
    """Multiply ``WIDTH`` numbers of c by those of b."""
    return _on_a_row(c, b, lambda emit, *both: emit.builder.fmul(*both))


def _lift(context: Any, c: Any, c_at: Any, b: Any, b_at: Any) -> Any:
    """Raise ``WIDTH`` numbers of c to those of b where these are larger."""
    return _on_a_row(c, b, lambda emit, *both: emit.call("maxnum", *both))


def _on_a_row(c: Any, b: Any, operation: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emit(context, builder, signature, arguments)
        for half in _HALVES:
            own, other = ((emit.start(index), arguments[index + 1], half) for index in (0, 2))
            emit.store(operation(emit, emit.load(*own), emit.load(*other)), *own)
        return context.get_dummy_value()

    return types.void(c, types.intp, b, types.intp), generate


multiply: Any = intrinsic(_multiply)
scale: Any = intrinsic(_scale)
lift: Any = intrinsic(_lift)
