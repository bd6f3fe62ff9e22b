"""Building IR values: shapes are aligned, dtypes promoted, and composite functions spelled with the few that programs know."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from plait.errors import UnsupportedError
from plait.ir import ops
from plait.ir.program import Builder, Node, Space, Type, join_spaces


def _converted(number: float | int | bool, dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float(number)
    if dtype == torch.bool:
        return bool(number)
    if number != number or number in (float("inf"), -float("inf")):
        raise UnsupportedError(f"{number} as a number of {dtype}")
    return int(number)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are computed in: bfloat16, which only tensors are in, is float32 in between."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


# exact functions of numbers that bfloat16 holds give such numbers
_SELECTING = frozenset(["neg", "abs", "sign", "maximum", "minimum", "where"])


@dataclass
class Expressions:
    """Makes IR nodes; types are inferred here and nowhere else."""

    builder: Builder = field(default_factory=Builder, kw_only=True)
    _short: set[Node] = field(default_factory=set, kw_only=True)  # float32 values that bfloat16 holds

    def const(self, number: float | int | bool, dtype: torch.dtype) -> Node:
        """A number that `dtype` can hold; UnsupportedError for one half in an int tensor, which torch would promote."""
        held = _converted(number, dtype)
        if not dtype.is_floating_point and held != number:
            raise UnsupportedError(f"the number {number} beside a tensor of {dtype}")
        return self.builder.node(ops.Const(held), (), Type(Space.DENSE, (), dtype))

    def row_length(self, like: Node) -> Node:
        """Number of entries of a row, as the dtype of `like` and broadcast to its shape."""
        length = self.builder.node(ops.RowLength(), (), Type(Space.ROW, (), like.type.dtype))
        return self.broadcast(length, like.type.shape)

    def cast(self, x: Node, dtype: torch.dtype) -> Node:
        if x.type.dtype == dtype:
            return x
        if isinstance(x.op, ops.Const):
            return self.const(_converted(x.op.value, dtype), dtype)
        return self.builder.node(ops.Cast(), (x,), Type(x.type.space, x.type.shape, dtype))

    def rounded(self, x: Node) -> Node:
        """A float32 value as bfloat16 holds it."""
        result = x if self._is_short(x) else self.cast(self.cast(x, torch.bfloat16), torch.float32)
        self._short.add(result)
        return result

    def _is_short(self, x: Node) -> bool:
        """Whether bfloat16 is known to hold a float32 value: rounding it again would change nothing."""
        if x in self._short:
            return True
        match x.op:
            case ops.Cast():
                return x.inputs[0].type.dtype in (torch.bfloat16, torch.bool)
            case ops.Const(number):
                return torch.tensor(float(number), dtype=torch.bfloat16).item() == number
            case ops.Reshape() | ops.Expand() | ops.Permute() | ops.Slice() | ops.Cat():
                return all(map(self._is_short, x.inputs))
            case ops.Pointwise(fn):
                return fn in _SELECTING and all(map(self._is_short, x.inputs[1:] if fn == "where" else x.inputs))
            case ops.SegmentReduce(reduce, init):
                of_them = reduce in (ops.Reduce.MAX, ops.Reduce.MIN) and init in (0.0, math.inf, -math.inf)
                return of_them and self._is_short(x.inputs[0])
            case ops.InnerReduce(reduce):
                return reduce in (ops.Reduce.MAX, ops.Reduce.MIN) and self._is_short(x.inputs[0])
        return False

    def reshape(self, x: Node, shape: tuple[int, ...]) -> Node:
        if x.type.shape == shape:
            return x
        return self.builder.node(ops.Reshape(), (x,), Type(x.type.space, shape, x.type.dtype))

    def pad(self, x: Node, rank: int) -> Node:
        """Leading inner axes of size 1, up to `rank` axes."""
        missing = rank - len(x.type.shape)
        return self.reshape(x, (1,) * missing + x.type.shape) if missing > 0 else x

    def expand(self, x: Node, shape: tuple[int, ...]) -> Node:
        if x.type.shape == shape:
            return x
        for have, want in zip(x.type.shape, shape, strict=True):
            if have not in (1, want):
                raise UnsupportedError(f"cannot broadcast inner shape {x.type.shape} to {shape}")
        return self.builder.node(ops.Expand(), (x,), Type(x.type.space, shape, x.type.dtype))

    def broadcast(self, x: Node, shape: tuple[int, ...]) -> Node:
        return self.expand(self.pad(x, len(shape)), shape)

    def inner_reduce(self, x: Node, reduce: ops.Reduce, axes: tuple[int, ...]) -> Node:
        shape = tuple(size for axis, size in enumerate(x.type.shape) if axis not in axes)
        return self.builder.node(ops.InnerReduce(reduce, tuple(sorted(axes))), (x,), Type(x.type.space, shape, x.type.dtype))

    def reduce_constant(self, x: Node, reduce: ops.Reduce, init: float) -> Node:
        """segment_reduce of a value that is the same for all entries of a row: n * x for a sum, x for max and min."""
        if reduce is ops.Reduce.PROD:
            raise UnsupportedError("product over entries that are the same for all of a row")
        if x.type.space is Space.DENSE:
            zero = self.builder.node(ops.RowLength(), (), Type(Space.ROW, (), x.type.dtype))
            x = self.pointwise("where", self.pointwise("ge", zero, self.const(0, x.type.dtype)), x, x)
        length = self.row_length(x)
        nonempty = self.pointwise("gt", length, self.const(0, x.type.dtype))
        total = self.pointwise("mul", x, length) if reduce is ops.Reduce.SUM else x
        if reduce is ops.Reduce.SUM and init != 0.0:
            raise UnsupportedError("a sum that starts from another number than 0")
        return self.pointwise("where", nonempty, total, self.const(init, x.type.dtype))

    def pointwise(self, fn: str, *operands: Node) -> Node:
        """fn of operands broadcast to one shape; dtypes must already be right (a bool condition for `where`)."""
        rank = max(len(item.type.shape) for item in operands)
        padded = [self.pad(item, rank) for item in operands]
        shape = tuple(max((item.type.shape[axis] for item in padded), default=1) for axis in range(rank))
        if any(0 in item.type.shape for item in padded):
            shape = tuple(min(item.type.shape[axis] for item in padded) for axis in range(rank))
        inputs = tuple(self.expand(item, shape) for item in padded)
        function = ops.POINTWISE[fn]
        dtype = {"same": inputs[0].type.dtype, "bool": torch.bool, "second": inputs[-1].type.dtype}[function.result]
        return self.builder.node(ops.Pointwise(fn), inputs, Type(join_spaces(inputs), shape, dtype))

    def like(self, x: Node, number: float) -> Node:
        return self.const(number, x.type.dtype)
