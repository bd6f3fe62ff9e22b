"""Every spelling gives its operator's numbers, on ordinary values and on those where functions have their edges."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from plait.capture.lower_ops import LOWERINGS
from plait.passes.composites import ON_EDGES, PIECES
from plait.passes.edit import aten
from tests.check import assert_same_numbers

_EDGES = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 6.0, 30.0, -30.0, 1e-9, 1e-4, 2.0, 0.999, -0.999])


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = torch.cat([_EDGES.double().view(4, 4), 2.0 * numbers(0, 6, 4)])
Y, GRAD, W = numbers(1, 10, 4), numbers(2, 10, 4), numbers(3, 4)
SHARE = torch.sigmoid(Y)  # between 0 and 1
POSITIVE = X.abs() + 0.3
HALVES = X.view(10, 2, 2).var(2, correction=0) + 1e-3
BATCH = numbers(4, 10, 4, 3)

# the arguments of every row of the tables; of most operators, those that are given by place
ARGUMENTS: dict[Any, list[tuple[Any, ...]]] = {
    **{
        getattr(aten, name).default: [(X,)]
        for name in (
            *("mish", "hardtanh", "hardsigmoid", "hardswish", "celu", "softshrink", "hardshrink", "log_sigmoid_forward", "sgn"),
            *("square", "frac", "exp2", "tan", "sinh", "cosh", "atan", "deg2rad", "rad2deg", "sum", "mean"),
        )
    },
    **{getattr(aten, name).default: [(POSITIVE,)] for name in ("log2", "log10")},
    **{getattr(aten, name).default: [(torch.tanh(X),)] for name in ("asin", "acos", "atanh")},
    **{
        getattr(aten, name).default: [(torch.tensor([math.nan, math.inf, -math.inf, 1.0]),)]
        for name in ("isposinf", "isneginf", "isinf", "nan_to_num", "nansum")
    },
    **{
        getattr(aten, f"{name}_backward").default: [(GRAD, X)]
        for name in ("mish", "hardsigmoid", "hardswish")
    },
    aten.hardtanh_backward.default: [(GRAD, X, -1.0, 1.0)],
    aten.log_sigmoid_backward.default: [(GRAD, X, torch.exp(-X.abs()))],
    aten._prelu_kernel.default: [(X, W.view(1, 4))],
    aten._prelu_kernel_backward.default: [(GRAD, X, W.view(1, 4))],
    aten.glu.default: [(X, -1)],
    aten.glu_backward.default: [(GRAD[:, :2], X, -1)],
    aten.threshold.default: [(X, 0.1, -0.2)],
    aten.rrelu_with_noise_backward.default: [(GRAD, X, Y, 0.1, 0.3, False, False)],
    aten.addcmul.default: [(X, Y, GRAD)],
    aten.addcdiv.default: [(X, Y, POSITIVE)],
    aten.lerp.Scalar: [(X, Y, 0.3), (X, Y, 0.7)],
    aten.lerp.Tensor: [(X, Y, SHARE)],
    aten.logaddexp.default: [(X, Y)],
    aten.xlogy.Tensor: [(X, POSITIVE), (torch.zeros_like(X), X)],
    aten.dot.default: [(X[:, 0], Y[:, 0])],
    aten.logsumexp.default: [(X, [-1]), (X, [-1], True), (torch.full((3, 4), -math.inf), [1])],
    aten.baddbmm.default: [(BATCH[:, :3], BATCH[:, :3], BATCH[:, :3])],
    aten.mse_loss.default: [(X, Y), (X, Y, 0), (X, Y, 2)],
    aten.mse_loss_backward.default: [(GRAD, X, Y, 0)],
    aten.huber_loss.default: [(X, Y, 0)],
    aten.huber_loss_backward.default: [(GRAD, X, Y, 0, 0.7)],
    aten.smooth_l1_loss.default: [(X, Y, 0, 0.7)],
    aten.smooth_l1_loss_backward.default: [(GRAD, X, Y, 0, 0.7)],
    aten.binary_cross_entropy_with_logits.default: [(X, SHARE), (X, SHARE, None, None, 0), (X, SHARE, W.abs(), W.abs(), 0)],
    aten.binary_cross_entropy.default: [(torch.sigmoid(X), SHARE, None, 0)],
    aten.binary_cross_entropy_backward.default: [(GRAD, torch.sigmoid(Y), SHARE, None, 0)],
    aten._native_batch_norm_legit_functional.default: [
        (X, W, W, W, W.abs(), True, 0.1, 1e-3),
        (X, None, None, W, W.abs(), False, 0.1, 1e-3),
    ],
    aten._native_batch_norm_legit.no_stats: [(X, W, W, True, 0.1, 1e-3)],
    aten._native_batch_norm_legit_no_training.default: [
        (X, W, W, W, W.abs(), 0.1, 1e-3),
        (BATCH, None, None, W, W.abs(), 0.1, 1e-3),
    ],
    aten.native_batch_norm_backward.default: [
        (GRAD, X, W, W, W.abs(), X.mean(0), (X.var(0, correction=0) + 1e-3).rsqrt(), True, 1e-3, [True, True, True]),
        (GRAD, X, W, W, W.abs(), W[:0], W[:0], False, 1e-3, [True, True, True]),
    ],
    aten.native_group_norm.default: [(X, W, W, 10, 4, 1, 2, 1e-3)],
    aten.native_group_norm_backward.default: [
        (GRAD, X, X.view(10, 2, 2).mean(2), HALVES.rsqrt(), W, 10, 4, 1, 2, [True, True, True]),
    ],
    aten._fused_rms_norm.default: [(X, [4], W, 1e-3)],
    aten.gelu.default: [],  # tested below: only one of its two forms is spelled
    aten.gelu_backward.default: [],
    aten.mean.dim: [(X, [0]), (X, [0, 1], True)],
    **{
        getattr(aten, name).correction: [(X, [1]), (X, [0]), (X,)]
        for name in ("var", "std", "var_mean", "std_mean")
    },
    aten.norm.ScalarOpt_dim: [(X, 2.0, [1]), (X, None, [1], True), (X, 3.0, [1])],
    aten.linalg_vector_norm.default: [(X, 1, [1]), (X, math.inf, [1], True), (X, -math.inf, [1]), (POSITIVE, 3, [1])],
    aten.constant_pad_nd.default: [(X, [1, 2]), (X, [-1, 0]), (X, [0, -2], 0.5), (X, [1, -1])],
    aten.roll.default: [(X, [1], [1]), (X, [-3], [-1]), (X, [4], [1])],
    aten.split.Tensor: [(X, 3, 1), (X, 4, -1)],
    aten.unsafe_split.Tensor: [(X, 3, 1)],
    aten.unsafe_chunk.default: [(X, 3, 1), (X, 2, -1)],
    aten.split_with_sizes.default: [(X, [1, 0, 3], 1)],
    aten.unbind.int: [(X, 1)],
}  # fmt: skip
TABLES: dict[Any, Callable[..., Any]] = {**ON_EDGES, **PIECES}
KEYWORDS: dict[Any, dict[str, Any]] = {aten.addcmul.default: {"value": 0.5}, aten.addcdiv.default: {"value": -0.7}}


def test_every_spelling_is_tested() -> None:
    assert set(ARGUMENTS) == set(TABLES) - {aten.sym_numel.default}


@pytest.mark.parametrize("operator", [item for item in TABLES if ARGUMENTS.get(item)], ids=str)
def test_spelling_gives_the_numbers_of_its_operator(operator: Any) -> None:
    for given in ARGUMENTS[operator]:
        keywords = KEYWORDS.get(operator, {})
        want, got = operator(*given, **keywords), TABLES[operator](*given, **keywords)
        assert got is not NotImplemented, given
        wants, gots = ([item] if isinstance(item, Tensor) else list(item) for item in (want, got))
        assert len(wants) == len(gots)
        for number, (a, b) in enumerate(zip(gots, wants, strict=True)):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            if b.dtype == torch.bool:
                assert torch.equal(a, b)
            else:
                assert_same_numbers(a, b, name=f"{operator} {number}")


@pytest.mark.parametrize("operator", [aten.gelu.default, aten.gelu_backward.default], ids=str)
def test_one_form_of_gelu_is_a_lowering_of_its_own(operator: Any) -> None:
    given = (GRAD, X)[2 - len([item for item in operator._schema.arguments if not item.kwarg_only]) :]

    assert TABLES[operator](*given, approximate="none") is NotImplemented
    assert_same_numbers(TABLES[operator](*given, approximate="tanh"), operator(*given, approximate="tanh"))


# what a spelling may be made of although no kernel makes it: numbers without rows, and fills, which become constants
_HARMLESS = {
    aten.scalar_tensor.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.ones_like.default,
    aten.bmm.default,
}


def _leaves_of(spelling: Callable[..., Any], given: tuple[Any, ...]) -> list[Any]:
    return pytree.tree_leaves(spelling(*given))


def made_of(operator: Any) -> set[Any]:
    """The composites that a spelling is made of, in any of its forms; what else it calls must be known to kernels."""
    found: set[Any] = set()
    for given in ARGUMENTS[operator]:
        calls = make_fx(functools.partial(_leaves_of, TABLES[operator], given))()
        found |= {node.target for node in calls.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    strange = found - LOWERINGS.keys() - TABLES.keys() - _HARMLESS
    assert not strange, f"{operator} is made of {strange}"
    return found & TABLES.keys()


def test_spellings_end() -> None:
    """`decompose` goes on until nothing is left to spell: something made of itself would never end."""
    parts = {operator: made_of(operator) for operator, given in ARGUMENTS.items() if given}

    def depth(operator: Any, path: tuple[Any, ...] = ()) -> int:
        assert operator not in path, f"{operator} is made of itself"
        return 1 + max((depth(item, (*path, operator)) for item in parts.get(operator, ())), default=0)

    assert max(map(depth, parts)) <= 4
