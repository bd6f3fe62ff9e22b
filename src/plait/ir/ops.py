"""Every operator of a fused region, as frozen data. The whole grammar of a `Program` is this file.

A value lives in a space (`plait.ir.program.Space`) and has an inner shape of static ints, the shape of one row without the
leading axis: a tensor [E, H, C] is a value on EDGE with inner shape (H, C); a tensor [E] has inner shape ().
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reduce(enum.Enum):
    """How entries are combined. A mean is a sum and a division by `RowLength`."""

    SUM = "sum"
    PROD = "prod"
    MAX = "max"
    MIN = "min"


# --- leaves: what is read from memory --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadEdge:
    """() -> EDGE: entry `edge_id[k]` of tensor input `slot` [E, ...]: the user's own edge order."""

    slot: int


@dataclass(frozen=True, slots=True)
class LoadRow:
    """() -> ROW: row i of tensor input `slot` [num_rows, ...], i being the row of the program's ordering map."""

    slot: int


@dataclass(frozen=True, slots=True)
class LoadAt:
    """() -> EDGE: row `indices[map][k]` of tensor input `slot` [num_coarse, ...]: a gather by another index map."""

    slot: int
    map: int


@dataclass(frozen=True, slots=True)
class LoadDense:
    """() -> DENSE: the whole of tensor input `slot`, the same for every edge and row (weights, scalars, seeds)."""

    slot: int


@dataclass(frozen=True, slots=True)
class Const:
    """() -> DENSE: a number; its dtype stands in the node's type."""

    value: float | int | bool


@dataclass(frozen=True, slots=True)
class RowLength:
    """() -> ROW: number of entries of the row, in the dtype of the node's type."""


# --- one value from others, row by row -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pointwise:
    """n values -> one value: function `fn` of `POINTWISE`, elementwise. All inputs have the same inner shape.

    The space is EDGE if any input is on EDGE, else ROW if any is, else DENSE: a row value meeting an edge value is read by
    every edge of the row (a gather by the ordering map), and that needs no operator.
    """

    fn: str


@dataclass(frozen=True, slots=True)
class Cast:
    """x -> x in the dtype of the node's type (bool counts as 0 and 1)."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """x -> the same elements, in row-major order, with the inner shape of the node's type."""


@dataclass(frozen=True, slots=True)
class Expand:
    """x -> axes of size 1 repeated to the inner shape of the node's type (same number of axes)."""


@dataclass(frozen=True, slots=True)
class Permute:
    """x -> inner axes in the order `axes`: out.shape[a] = x.shape[axes[a]]."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """x -> entries start, start + step, ... (as many as the type says) of inner axis `axis`."""

    axis: int
    start: int
    step: int


@dataclass(frozen=True, slots=True)
class Cat:
    """n values -> one value: joined along inner axis `axis`."""

    axis: int


@dataclass(frozen=True, slots=True)
class InnerReduce:
    """x -> inner axes `axes` reduced and removed (no axis is kept with size 1)."""

    reduce: Reduce
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Uniform:
    """(seed) -> EDGE: floats in [0, 1) of the inner shape, from a counter: key = (seed, edge position, element number).

    The edge position is the one in the user's order (`edge_id[k]`), so that no ordering and no schedule can change a draw;
    the element number counts the inner shape in row-major order. seed: DENSE int64, inner shape (). The bits are those of
    `plait.segment.counter_uniform`.
    """


@dataclass(frozen=True, slots=True)
class Product:
    """(value [F], weight: DENSE [F, G]) -> EDGE [G]: the row vector times the matrix, edge by edge.

    A row value is read by every edge of its row. Every entry is a sum over F in order, one fused multiply-add each from 0 on:
    the same bits wherever a program computes it.
    """


# --- between spaces --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentReduce:
    """EDGE -> ROW: the entries of every row reduced, in the ordering's order; a row without entries gives `init`.

    sum: init + the entries. max and min: the entries only, NaN wins as in torch; with `include_init` the value `init` takes
    part like one more entry.
    """

    reduce: Reduce
    init: float
    include_init: bool = False


@dataclass(frozen=True, slots=True)
class TotalReduce:
    """EDGE or ROW -> DENSE: the sum over all edges or all rows, in a fixed order that no thread count changes."""


@dataclass(frozen=True, slots=True)
class TotalProduct:
    """(a [F], b [G]) -> DENSE [F, G]: the sum over all edges of a[f] * b[g], as `TotalReduce`: a weight's gradient.

    Both are edge or row values; a row value counts once for every edge of its row.
    """


Op = (
    LoadEdge
    | LoadRow
    | LoadAt
    | LoadDense
    | Const
    | RowLength
    | Pointwise
    | Cast
    | Reshape
    | Expand
    | Permute
    | Slice
    | Cat
    | InnerReduce
    | Uniform
    | Product
    | SegmentReduce
    | TotalReduce
    | TotalProduct
)

LEAVES = (LoadEdge, LoadRow, LoadAt, LoadDense, Const, RowLength)
LOADS = (LoadEdge, LoadRow, LoadAt, LoadDense)
TOTALS = (TotalReduce, TotalProduct)


@dataclass(frozen=True, slots=True)
class Function:
    """A row of `POINTWISE`: number of inputs, and what the dtype of the result is ("same", "bool", or "second": of input 1)."""

    arity: int
    result: str = "same"


# Small on purpose: composites (leaky_relu, silu, elu, softplus, ...) are spelled with these when a region is lowered.
POINTWISE: dict[str, Function] = {
    "add": Function(2),
    "sub": Function(2),
    "mul": Function(2),
    "div": Function(2),  # true division of floats
    "maximum": Function(2),  # NaN wins, as in torch
    "minimum": Function(2),
    "pow": Function(2),
    "atan2": Function(2),
    "neg": Function(1),
    "abs": Function(1),
    "sign": Function(1),
    "reciprocal": Function(1),
    "sqrt": Function(1),
    "rsqrt": Function(1),
    "exp": Function(1),
    "expm1": Function(1),
    "log": Function(1),
    "log1p": Function(1),
    "sin": Function(1),
    "cos": Function(1),
    "tanh": Function(1),
    "sigmoid": Function(1),
    "erf": Function(1),
    "floor": Function(1),
    "ceil": Function(1),
    "round": Function(1),  # half to even, as in torch
    "trunc": Function(1),
    "eq": Function(2, "bool"),
    "ne": Function(2, "bool"),
    "lt": Function(2, "bool"),
    "le": Function(2, "bool"),
    "gt": Function(2, "bool"),
    "ge": Function(2, "bool"),
    "isnan": Function(1, "bool"),
    "logical_and": Function(2, "bool"),
    "logical_or": Function(2, "bool"),
    "logical_not": Function(1, "bool"),
    "where": Function(3, "second"),  # (bool condition, a, b)
}
