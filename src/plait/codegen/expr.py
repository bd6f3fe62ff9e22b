"""One scalar function as C++ text over vectors: a row per `POINTWISE` function, the same text for every number of lanes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from plait.codegen.target import IN_TENSORS, SCALARS
from plait.errors import UnsupportedError

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

# function -> text from the vector type of the result and the arguments
FUNCTIONS: dict[str, Callable[..., str]] = {
    "add": lambda v, a, b: f"{a} + {b}",
    "sub": lambda v, a, b: f"{a} - {b}",
    "mul": lambda v, a, b: f"{a} * {b}",
    "div": lambda v, a, b: f"{a} / {b}",
    "maximum": lambda v, a, b: f"maximum({a}, {b})",
    "minimum": lambda v, a, b: f"minimum({a}, {b})",
    "pow": lambda v, a, b: f"pow_lanes({a}, {b})",
    "atan2": lambda v, a, b: f"atan2_lanes({a}, {b})",
    "neg": lambda v, a: f"-{a}",
    "abs": lambda v, a: f"absolute({a})",
    "sign": lambda v, a: f"sign({a})",
    "reciprocal": lambda v, a: f"reciprocal({a})",
    "sqrt": lambda v, a: f"square_root({a})",
    "rsqrt": lambda v, a: f"reciprocal_root({a})",
    "exp": lambda v, a: f"exponential({a})",
    "expm1": lambda v, a: f"exponential_minus_1({a})",
    "log": lambda v, a: f"logarithm({a})",
    "log1p": lambda v, a: f"logarithm_1p({a})",
    "sin": lambda v, a: f"sin_lanes({a})",
    "cos": lambda v, a: f"cos_lanes({a})",
    "tanh": lambda v, a: f"hyperbolic_tangent({a})",
    "sigmoid": lambda v, a: f"sigmoid({a})",
    "erf": lambda v, a: f"erf_lanes({a})",
    "floor": lambda v, a: f"floor_lanes({a})",
    "ceil": lambda v, a: f"ceil_lanes({a})",
    "round": lambda v, a: f"round_lanes({a})",
    "trunc": lambda v, a: f"trunc_lanes({a})",
    **{name: (lambda v, a, b, sign=sign: f"to_bool({a} {sign} {b})") for name, sign in COMPARISONS.items()},
    "isnan": lambda v, a: f"to_bool({a} != {a})",
    "logical_and": lambda v, a, b: f"{a} & {b}",
    "logical_or": lambda v, a, b: f"{a} | {b}",
    "logical_not": lambda v, a: f"~{a}",
    "where": lambda v, c, a, b: f"sel({c}, {a}, {b})",
}

WHOLE = frozenset(["add", "sub", "mul", "maximum", "minimum", "neg", "abs", "sign", *COMPARISONS, "where"])
BOOLEAN = frozenset(["eq", "ne", "logical_and", "logical_or", "logical_not", "where"])
REDUCTIONS = {"sum": "Sum", "prod": "Prod", "max": "Max", "min": "Min"}


def scalar_name(dtype: torch.dtype) -> str:
    """The C++ type that computes a dtype."""
    if dtype not in SCALARS:
        raise UnsupportedError(f"{str(dtype).removeprefix('torch.')} values are not compiled")
    return SCALARS[dtype]


def tensor_name(dtype: torch.dtype) -> str:
    """The C++ type of a dtype in tensors."""
    return IN_TENSORS.get(dtype) or scalar_name(dtype)


def access(name: str, scalar: str) -> str:
    """The function that reads or writes numbers of a C++ type: `name`, or its form for what vectors hold as something else.

    >>> access("ld", "f32"), access("st", "bf16")
    ('ld', 'st_bf16')
    """
    return f"{name}_{scalar}" if scalar in IN_TENSORS.values() else name


def pointwise(fn: str, dtype: torch.dtype, vector: str, arguments: list[str]) -> str:
    """The text of `fn` applied to vectors of `dtype` (the dtype of the last argument)."""
    if dtype is torch.bool and fn not in BOOLEAN:
        raise UnsupportedError(f"{fn} of bool values is not compiled")
    if dtype is not torch.bool and not dtype.is_floating_point and fn not in WHOLE:
        raise UnsupportedError(f"{fn} of {str(dtype).removeprefix('torch.')} values is not compiled")
    if dtype is not torch.bool and fn.startswith("logical_"):
        raise UnsupportedError(f"{fn} of {str(dtype).removeprefix('torch.')} values is not compiled")
    return FUNCTIONS[fn](vector, *arguments)


def cast(to: torch.dtype, source: torch.dtype, vector: str, argument: str) -> str:
    """The text of a change of dtype."""
    if source is torch.bool:
        return f"from_bool<{vector}>({argument})"
    if to is torch.bool:
        return f"to_bool({argument} != 0)"
    if to is torch.bfloat16:
        return f"round_bf16({argument if source is torch.float32 else f'convert<{vector}>({argument})'})"
    if SCALARS[to] == SCALARS[source]:
        return argument
    return f"convert<{vector}>({argument})"


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number of `dtype`, as C++ reads it back to the last bit.

    >>> literal(0.2, torch.float32)
    '0.200000003f'
    """
    if dtype is torch.bool:
        return "-1" if value else "0"
    if not dtype.is_floating_point:
        return f"(i64){int(value)}LL" if dtype is torch.int64 else str(int(value))
    number = float(value)
    if dtype is torch.float32:
        number = torch.tensor(number, dtype=dtype).item()
    suffix = "f" if dtype is torch.float32 else ""
    if math.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
    text = f"{number:.9g}" if suffix else f"{number:.17g}"
    return text + ("" if "." in text or "e" in text else ".0") + suffix


def identity(reduce: str, dtype: torch.dtype) -> str:
    """The number that changes nothing in a reduction."""
    if reduce in ("sum", "prod"):
        return literal(0 if reduce == "sum" else 1, dtype)
    if dtype.is_floating_point:
        return literal(-math.inf if reduce == "max" else math.inf, dtype)
    limits = torch.iinfo(dtype)
    if reduce == "min":
        return literal(limits.max, dtype)
    return f"({literal(limits.min + 1, dtype)} - 1)"  # the least number has no literal of its own


def combine(reduce: str, a: str, b: str) -> str:
    """One step of a reduction; `a` is what is reduced so far."""
    return {"sum": f"{a} + {b}", "prod": f"{a} * {b}", "max": f"maximum({a}, {b})", "min": f"minimum({a}, {b})"}[reduce]
