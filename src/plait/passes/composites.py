"""Operators that are made of simpler ones, and how: PyTorch's own decompositions, and spellings where it has none.

A kernel knows few functions. What is not one of them and stands here is spelled with them, by `passes.decompose`; the rounding
may differ from the operator's own in the last bits. What has no row here (special functions, sorting, `fmod`, whose result
jumps where a quotient is rounded) is left as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from plait.passes.edit import aten

Spelling = Callable[..., Any]


def _total(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    """The sum of each column, which a kernel accumulates, and the sum of those."""
    columns = aten.sum.dim_IntList(x.unsqueeze(-1) if x.dim() == 1 else x, [0], dtype=dtype)
    return aten.sum.dim_IntList(columns, list(range(columns.dim())))


def _mean_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    return _total(x, dtype=dtype) / math.prod(x.shape)


def _mean(x: Tensor, axes: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Over rows: their sum, which a kernel accumulates, over their number. Over a row's own axes it is a lowering's."""
    if not axes or all(axis % x.dim() != 0 for axis in axes):
        return NotImplemented
    return aten.sum.dim_IntList(x, axes, keepdim, dtype=dtype) / math.prod(x.shape[axis] for axis in axes)


def _moments(x: Tensor, axes: Sequence[int] | None, correction: float, *, keepdim: bool) -> tuple[Tensor, Tensor]:
    """(variance, mean): the mean first, then the squares of what is left, which loses nothing to cancellation"""
    over = list(axes) if axes else list(range(x.dim()))
    count = math.prod(x.shape[axis] for axis in over)
    mean = aten.sum.dim_IntList(x, over, True) / count
    squares = aten.sum.dim_IntList((x - mean) * (x - mean), over, keepdim)
    degrees = count - correction
    variance = squares / (degrees if not isinstance(degrees, int | float) else max(degrees, 0))
    return variance, mean if keepdim else aten.sum.dim_IntList(mean, over)


def _var_mean(
    x: Tensor, axes: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _moments(x, axes, 1 if correction is None else correction, keepdim=keepdim)


def _var(x: Tensor, axes: Sequence[int] | None = None, **kwargs: Any) -> Tensor:
    return _var_mean(x, axes, **kwargs)[0]


def _std_mean(x: Tensor, axes: Sequence[int] | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
    variance, mean = _var_mean(x, axes, **kwargs)
    return variance.sqrt(), mean


def _std(x: Tensor, axes: Sequence[int] | None = None, **kwargs: Any) -> Tensor:
    return _var_mean(x, axes, **kwargs)[0].sqrt()


def _by_a_size(function: Callable[[Tensor, Tensor], Tensor]) -> Spelling:
    return lambda x, number: function(x, aten.scalar_tensor.default(number, dtype=x.dtype, device=x.device))


def _norm(x: Tensor, p: float | None, axes: list[int], keepdim: bool = False) -> Any:
    return aten.linalg_vector_norm.default(x, 2.0 if p is None else p, axes, keepdim)


def _vector_norm(x: Tensor, order: float, axes: list[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The norms that are sums and maxima of magnitudes; the lowering knows the Euclidean one."""
    if order == 2 or axes is None or dtype is not None:
        return NotImplemented
    if order == 1:
        return aten.sum.dim_IntList(x.abs(), axes, keepdim)
    if order == math.inf:
        return aten.amax.default(x.abs(), axes, keepdim)
    if order == -math.inf:
        return aten.amin.default(x.abs(), axes, keepdim)
    return NotImplemented if order == 0 else aten.sum.dim_IntList(x.abs() ** order, axes, keepdim) ** (1.0 / order)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a norm does last: a factor and a summand for every entry of axis 1"""
    columns = [1, -1, *[1] * (x.dim() - 2)]
    x = x if weight is None else x * weight.view(columns)
    return x if bias is None else x + bias.view(columns)


def _batch_norm_of_stats(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Out of training; the two saved statistics are empty, as PyTorch's are."""
    columns = [1, -1, *[1] * (x.dim() - 2)]
    result = (x - mean.view(columns)) * (variance + epsilon).rsqrt().view(columns)
    return _scaled(result, weight, bias), x.new_zeros(0), x.new_zeros(0)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int, channels: int, others: int, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = x.reshape(x.shape[0], groups, channels // groups * math.prod(x.shape[2:]))
    variance, mean = _moments(grouped, [2], 0, keepdim=True)
    scale = (variance + epsilon).rsqrt()
    return _scaled(((grouped - mean) * scale).reshape(x.shape), weight, bias), mean.squeeze(2), scale.squeeze(2)


_ONE_SIXTH = float(torch.tensor(1 / 6, dtype=torch.float32))  # which PyTorch's own kernel takes for float64, too


def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), grad * _ONE_SIXTH, 0.0)


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    return NotImplemented if approximate == "none" else _TORCH[aten.gelu.default](x, approximate=approximate)


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    return NotImplemented if approximate == "none" else _TORCH[aten.gelu_backward.default](grad, x, approximate=approximate)


def _pad(x: Tensor, widths: list[int], fill: float = 0) -> Any:
    """Columns around the last axis, or fewer of them where a width is negative."""
    if len(widths) != 2 or x.dim() < 2:
        return NotImplemented
    x = aten.slice.Tensor(x, -1, max(-widths[0], 0), x.shape[-1] + min(widths[1], 0))
    columns = [x.new_full((*x.shape[:-1], max(width, 0)), fill) for width in widths]
    return aten.cat.default([part for part in (columns[0], x, columns[1]) if part.shape[-1] != 0], -1)


def _roll(x: Tensor, shifts: list[int], axes: list[int] = []) -> Any:  # noqa: B006 (aten's own default, never changed)
    if len(shifts) != 1 or len(axes) != 1 or axes[0] % x.dim() == 0:
        return NotImplemented
    first = -shifts[0] % x.shape[axes[0]]
    return aten.cat.default([aten.slice.Tensor(x, axes[0], first), aten.slice.Tensor(x, axes[0], 0, first)], axes[0])


def _square_minus(x: Tensor) -> Tensor:
    """sqrt(1 - x^2), without its rounding near 1"""
    return ((1 - x) * (1 + x)).sqrt()


def _of_torch(*names: str) -> dict[Any, Spelling]:
    operators = [getattr(getattr(aten, name.partition(".")[0]), name.partition(".")[2] or "default") for name in names]
    return dict(get_decompositions(operators))


def _split(x: Tensor, size: int, axis: int = 0) -> Any:
    length = x.shape[axis]
    starts = range(0, length, size) if length else [0]
    return [aten.slice.Tensor(x, axis, start, min(start + size, length)) for start in starts]


def _split_with_sizes(x: Tensor, sizes: Sequence[int], axis: int = 0) -> Any:
    ends = list(itertools.accumulate(sizes))
    return [aten.slice.Tensor(x, axis, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _chunk(x: Tensor, count: int, axis: int = 0) -> Any:
    return _split(x, -(-x.shape[axis] // count), axis)


def _unbind(x: Tensor, axis: int = 0) -> Any:
    return [aten.select.int(x, axis, position) for position in range(x.shape[axis])]


_TORCH = _of_torch("gelu", "gelu_backward")

# pieces of a tensor along another axis than its rows: views, whatever the rows are
PIECES: dict[Any, Spelling] = {
    aten.split.Tensor: _split,
    aten.unsafe_split.Tensor: _split,
    aten.unsafe_chunk.default: _chunk,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
}

# a tensor and a number that is known when the model runs, such as how many edges there are: kernels take it as a tensor
BY_A_SIZE: dict[Any, Spelling] = {
    aten.div.Scalar: _by_a_size(torch.div),
    aten.div.Tensor: _by_a_size(torch.div),
    aten.mul.Scalar: _by_a_size(torch.mul),
    aten.mul.Tensor: _by_a_size(torch.mul),
}

# what pays on edges alone: elsewhere one call of PyTorch is faster than several
ON_EDGES: dict[Any, Spelling] = {
    **_of_torch(
        *("mish", "mish_backward", "hardtanh", "hardtanh_backward", "hardsigmoid"),
        *("hardswish", "hardswish_backward", "celu", "log_sigmoid_forward", "log_sigmoid_backward"),
        *("_prelu_kernel", "_prelu_kernel_backward", "glu", "glu_backward", "threshold", "rrelu_with_noise_backward"),
        *("softshrink", "hardshrink", "nan_to_num", "addcmul", "addcdiv", "lerp.Scalar", "lerp.Tensor", "logaddexp"),
        *("xlogy.Tensor", "logsumexp", "baddbmm"),
        *("mse_loss", "mse_loss_backward", "huber_loss", "huber_loss_backward", "smooth_l1_loss", "smooth_l1_loss_backward"),
        *("binary_cross_entropy_with_logits", "binary_cross_entropy", "binary_cross_entropy_backward"),
        *("_native_batch_norm_legit_functional", "_native_batch_norm_legit.no_stats", "native_batch_norm_backward"),
        *("native_group_norm_backward", "_fused_rms_norm"),
    ),
    aten._native_batch_norm_legit_no_training.default: _batch_norm_of_stats,
    aten.native_group_norm.default: _group_norm,
    aten.hardsigmoid_backward.default: _hardsigmoid_backward,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.dot.default: lambda x, y: _total(x * y),
    aten.sum.default: _total,
    aten.mean.default: _mean_of_all,
    aten.mean.dim: _mean,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.sym_numel.default: lambda x: math.prod(x.shape),
    aten.norm.ScalarOpt_dim: _norm,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.constant_pad_nd.default: _pad,
    aten.roll.default: _roll,
    aten.sgn.default: torch.sign,
    aten.isposinf.default: lambda x: x == math.inf,
    aten.isneginf.default: lambda x: x == -math.inf,
    aten.isinf.default: lambda x: x.abs() == math.inf,
    aten.nansum.default: lambda x, *args, **kwargs: torch.where(x != x, 0.0, x).sum(*args, **kwargs),
    aten.square.default: lambda x: x * x,
    aten.frac.default: lambda x: x - x.trunc(),
    aten.log2.default: lambda x: x.log() * (1 / math.log(2)),
    aten.log10.default: lambda x: x.log() * (1 / math.log(10)),
    aten.exp2.default: lambda x: torch.pow(2.0, x),
    aten.tan.default: lambda x: x.sin() / x.cos(),
    aten.sinh.default: lambda x: 0.5 * (x.expm1() - (-x).expm1()),
    aten.cosh.default: lambda x: 0.5 * x.exp() + 0.5 * (-x).exp(),
    aten.atan.default: lambda x: torch.atan2(x, torch.ones_like(x)),
    aten.asin.default: lambda x: torch.atan2(x, _square_minus(x)),
    aten.acos.default: lambda x: torch.atan2(_square_minus(x), x),
    aten.atanh.default: lambda x: 0.5 * (x.log1p() - (-x).log1p()),
    aten.deg2rad.default: lambda x: x * (math.pi / 180),
    aten.rad2deg.default: lambda x: x * (180 / math.pi),
}
