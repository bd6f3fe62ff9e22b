"""`plait::gather`, `segment_reduce`, `take`, `uniform`, `dropout`, and products by type: real torch operators, so that a graph
runs after every pass.

Each has an eager kernel in plain torch (any device), a fake kernel and, where a gradient exists, an autograd formula written in
these same operators and aten; differentiating twice therefore works in eager mode.

Legend: N coarse rows, E fine rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import _constrain_range_for_size

from plait import grouped, segment

_LIBRARY = torch.library.Library("plait", "DEF")
# wrap: entries in [-N, 0) count from the end, as in x[index]; without it they are an error, as in x.index_select(0, index)
_LIBRARY.define("gather(Tensor x, Tensor index, bool wrap=False) -> Tensor")
_LIBRARY.define(
    "segment_reduce(Tensor values, Tensor index, SymInt num_rows, str reduce, float init=0., bool include_init=False, "
    "bool wrap=False) -> Tensor"
)
# some rows of one domain as rows of another: `rows` are distinct, and nothing is pointed at by them (see `passes.domains`)
_LIBRARY.define("take(Tensor x, Tensor rows) -> Tensor")
_LIBRARY.define("put(Tensor x, Tensor rows, SymInt num_rows) -> Tensor")
_LIBRARY.define("uniform(Tensor seed, SymInt num_rows, SymInt[] inner_shape, ScalarType dtype) -> Tensor")
_LIBRARY.define("dropout(Tensor x, float p) -> Tensor")
# see `plait.grouped`; wrap: of rows, as above
_LIBRARY.define("pairs(Tensor? rows, Tensor types, SymInt num_types) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define("grouped_mm(Tensor x, Tensor? rows, Tensor weight, Tensor indptr, bool wrap=False) -> Tensor")
_LIBRARY.define("grouped_total(Tensor x, Tensor? rows, Tensor y, Tensor indptr, bool wrap=False) -> Tensor")

# of a matrix [R, K], for each of its R K entries in memory order: its row, its column
_LIBRARY.define("matrix_rows(Tensor matrix) -> Tensor")
_LIBRARY.define("matrix_columns(Tensor matrix) -> Tensor")


def wrapped(index: Tensor, num_rows: int) -> Tensor:
    """Entries in [-num_rows, 0) made non-negative."""
    return torch.where(index < 0, index + num_rows, index)


def _gather(x: Tensor, index: Tensor, wrap: bool = False) -> Tensor:
    return segment.gather(x, wrapped(index, x.shape[0]) if wrap else index)


def _segment_reduce(
    values: Tensor,
    index: Tensor,
    num_rows: int,
    reduce: str,
    init: float = 0.0,
    include_init: bool = False,
    wrap: bool = False,
) -> Tensor:
    index = wrapped(index, num_rows) if wrap else index
    return segment.segment_reduce(values, index, num_rows, reduce=reduce, init=init, include_init=include_init)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Rows back in their places, zeros in the others."""
    return x.new_zeros((num_rows, *x.shape[1:])).index_copy(0, rows, x)


def _uniform(seed: Tensor, num_rows: int, inner_shape: list[int], dtype: torch.dtype) -> Tensor:
    """Draws in [0, 1), [num_rows, *inner_shape]; row r is drawn for position r (see `segment.counter_uniform`)."""
    position = torch.arange(num_rows, device=seed.device)
    return segment.counter_uniform(seed, position, tuple(inner_shape), dtype)


def _dropout(x: Tensor, p: float) -> Tensor:
    """Training dropout that the compiler has not decided about yet; it never reaches a run."""
    return torch.native_dropout(x, p, True)[0]


def _grouped_mm(x: Tensor, rows: Tensor | None, weight: Tensor, indptr: Tensor, wrap: bool = False) -> Tensor:
    return grouped.grouped_mm(x, wrapped(rows, x.shape[0]) if wrap and rows is not None else rows, weight, indptr)


def _grouped_total(x: Tensor, rows: Tensor | None, y: Tensor, indptr: Tensor, wrap: bool = False) -> Tensor:
    return grouped.grouped_total(x, wrapped(rows, x.shape[0]) if wrap and rows is not None else rows, y, indptr)


def _matrix_rows(matrix: Tensor) -> Tensor:
    return torch.arange(matrix.shape[0], device=matrix.device)[:, None].expand(matrix.shape).reshape(-1)


def _matrix_columns(matrix: Tensor) -> Tensor:
    return torch.arange(matrix.shape[1], device=matrix.device).expand(matrix.shape).reshape(-1)


_KERNELS: dict[str, Callable[..., Any]] = {
    "gather": _gather,
    "segment_reduce": _segment_reduce,
    "take": _take,
    "put": _put,
    "uniform": _uniform,
    "dropout": _dropout,
    "pairs": grouped.pairs,
    "grouped_mm": _grouped_mm,
    "grouped_total": _grouped_total,
    "matrix_rows": _matrix_rows,
    "matrix_columns": _matrix_columns,
}
for _name, _kernel in _KERNELS.items():
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")


def _fake_gather(x: Tensor, index: Tensor, wrap: bool = False) -> Tensor:
    return x.new_empty((index.shape[0], *x.shape[1:]))


def _fake_segment_reduce(
    values: Tensor,
    index: Tensor,
    num_rows: int,
    reduce: str,
    init: float = 0.0,
    include_init: bool = False,
    wrap: bool = False,
) -> Tensor:
    return values.new_empty((num_rows, *values.shape[1:]))


def _fake_put(x: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    return x.new_empty((num_rows, *x.shape[1:]))


def _fake_uniform(seed: Tensor, num_rows: int, inner_shape: list[int], dtype: torch.dtype) -> Tensor:
    return seed.new_empty((num_rows, *inner_shape), dtype=dtype)


def _fake_dropout(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


def _fake_pairs(rows: Tensor | None, types: Tensor, num_types: int) -> tuple[Tensor, Tensor, Tensor]:
    num_pairs: Any = types.shape[0]
    shape_env = torch._guards.detect_fake_mode(types).shape_env  # type: ignore[union-attr]
    is_empty = isinstance(num_pairs, int) and num_pairs == 0  # a size that is not known yet must not be asked
    if rows is not None and not is_empty and shape_env is not None:
        num_pairs = shape_env.create_unbacked_symint()
        _constrain_range_for_size(num_pairs, max=types.shape[0] if isinstance(types.shape[0], int) else None)
    pair, row = (types.new_empty(size, dtype=torch.int64) for size in (types.shape[0], num_pairs))
    return pair, row, types.new_empty(num_types + 1, dtype=torch.int64)


def _fake_grouped_mm(x: Tensor, rows: Tensor | None, weight: Tensor, indptr: Tensor, wrap: bool = False) -> Tensor:
    return x.new_empty(((x if rows is None else rows).shape[0], weight.shape[2]))


def _fake_grouped_total(x: Tensor, rows: Tensor | None, y: Tensor, indptr: Tensor, wrap: bool = False) -> Tensor:
    return x.new_empty((indptr.shape[0] - 1, x.shape[1], y.shape[1]))


def _fake_entries(matrix: Tensor) -> Tensor:
    return matrix.new_empty(matrix.numel(), dtype=torch.int64)


torch.library.register_fake("plait::gather", _fake_gather, lib=_LIBRARY)
torch.library.register_fake("plait::segment_reduce", _fake_segment_reduce, lib=_LIBRARY)
torch.library.register_fake("plait::take", _fake_gather, lib=_LIBRARY)
torch.library.register_fake("plait::put", _fake_put, lib=_LIBRARY)
torch.library.register_fake("plait::uniform", _fake_uniform, lib=_LIBRARY)
torch.library.register_fake("plait::dropout", _fake_dropout, lib=_LIBRARY)
torch.library.register_fake("plait::pairs", _fake_pairs, lib=_LIBRARY)
torch.library.register_fake("plait::grouped_mm", _fake_grouped_mm, lib=_LIBRARY)
torch.library.register_fake("plait::grouped_total", _fake_grouped_total, lib=_LIBRARY)
torch.library.register_fake("plait::matrix_rows", _fake_entries, lib=_LIBRARY)
torch.library.register_fake("plait::matrix_columns", _fake_entries, lib=_LIBRARY)

gather = torch.ops.plait.gather.default
segment_reduce = torch.ops.plait.segment_reduce.default
take = torch.ops.plait.take.default
put = torch.ops.plait.put.default
uniform = torch.ops.plait.uniform.default
dropout = torch.ops.plait.dropout.default
pairs = torch.ops.plait.pairs.default
grouped_mm = torch.ops.plait.grouped_mm.default
grouped_total = torch.ops.plait.grouped_total.default
matrix_rows = torch.ops.plait.matrix_rows.default
matrix_columns = torch.ops.plait.matrix_columns.default


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, ctx.wrap = inputs
    ctx.num_rows = x.shape[0]
    ctx.save_for_backward(index)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """d gather = segment sum: every row receives the gradients of the entries that read it."""
    (index,) = ctx.saved_tensors
    return segment_reduce(grad, index, ctx.num_rows, "sum", wrap=ctx.wrap), None, None


def _segment_reduce_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, index, _, reduce, init, _, ctx.wrap = inputs
    ctx.reduce, ctx.init = reduce, init
    if reduce == "sum":
        ctx.save_for_backward(index)
        return
    ctx.save_for_backward(index, values, output)


def _segment_reduce_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """sum: gather. max, min: the gradient of a row is split between all entries equal to its result, and `init` counts as one
    of them even where it took no part in the reduction: that is what `aten.scatter_reduce` does, and it is the oracle."""
    if ctx.reduce == "sum":
        (index,) = ctx.saved_tensors
        return gather(grad, index, ctx.wrap), None, None, None, None, None, None
    if ctx.reduce == "prod":
        raise NotImplementedError("plait::segment_reduce: prod has no gradient here; canonicalize leaves it to aten")
    index, values, result = ctx.saved_tensors
    is_result = values == gather(result, index, ctx.wrap)
    ties = segment_reduce(is_result.to(grad.dtype), index, grad.shape[0], "sum", wrap=ctx.wrap)
    ties = ties + (result == ctx.init).to(grad.dtype)
    share = gather(grad / ties, index, ctx.wrap)
    return torch.where(is_result, share, torch.zeros_like(share)), None, None, None, None, None, None


torch.library.register_autograd("plait::gather", _gather_backward, setup_context=_gather_setup, lib=_LIBRARY)
torch.library.register_autograd(
    "plait::segment_reduce", _segment_reduce_backward, setup_context=_segment_reduce_setup, lib=_LIBRARY
)


def _take_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows = inputs
    ctx.num_rows = x.shape[0]
    ctx.save_for_backward(rows)


def _take_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (rows,) = ctx.saved_tensors
    return put(grad, rows, ctx.num_rows), None


def _put_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _put_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (rows,) = ctx.saved_tensors
    return take(grad, rows), None, None


torch.library.register_autograd("plait::take", _take_backward, setup_context=_take_setup, lib=_LIBRARY)
torch.library.register_autograd("plait::put", _put_backward, setup_context=_put_setup, lib=_LIBRARY)


def _grouped_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, other, indptr, ctx.wrap = inputs
    ctx.save_for_backward(x, rows, other, indptr)


def _grouped_mm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, weight, indptr = ctx.saved_tensors
    grad_x = _grad_of_rows(ctx, grad, weight) if ctx.needs_input_grad[0] else None
    grad_weight = grouped_total(x, rows, grad, indptr, ctx.wrap) if ctx.needs_input_grad[2] else None
    return grad_x, None, grad_weight, None, None


def _grouped_total_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, y, indptr = ctx.saved_tensors
    grad_x = _grad_of_rows(ctx, y, grad) if ctx.needs_input_grad[0] else None
    grad_y = grouped_mm(x, rows, grad, indptr, ctx.wrap) if ctx.needs_input_grad[2] else None
    return grad_x, None, grad_y, None, None


def _grad_of_rows(ctx: Any, values: Tensor, matrices: Tensor) -> Tensor:
    """Of x: a value per pair [P, o] times the transpose of its type's matrix [R, f, o], summed over the pairs of each row."""
    x, rows, _, indptr = ctx.saved_tensors
    products: Tensor = grouped_mm(values, None, matrices.transpose(1, 2), indptr)
    return products if rows is None else segment_reduce(products, rows, x.shape[0], "sum", wrap=ctx.wrap)


torch.library.register_autograd("plait::grouped_mm", _grouped_mm_backward, setup_context=_grouped_setup, lib=_LIBRARY)
torch.library.register_autograd("plait::grouped_total", _grouped_total_backward, setup_context=_grouped_setup, lib=_LIBRARY)
