"""Calls that change nothing go; what is returned stays a tensor of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from plait.passes.identities import drop_identities
from tests.check import assert_same_numbers
from tests.passes.tracing import numbers, text, traced

X = numbers(5, 3)


def simplified(function: Callable[..., object]) -> str:
    graph_module = traced(function, X)
    drop_identities(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    got, want = graph_module(X), function(X)
    for a, b in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True):
        assert_same_numbers(a, b)
    return text(graph_module.graph)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.detach() + 1, "add = aten.add.Tensor(x, 1)\nreturn add"),
        (lambda x: x.t().t() + 1, "add = aten.add.Tensor(x, 1)\nreturn add"),
        (lambda x: x.t().t().t() + 1, "t_2 = aten.t(x)\nadd = aten.add.Tensor(t_2, 1)\nreturn add"),
        (lambda x: (x + 1).detach(), "add = aten.add.Tensor(x, 1)\nreturn add"),
    ],
    ids=["detach", "two transposes", "three", "returned"],
)
def test_identities_go(function: Callable[..., Tensor], expected: str) -> None:
    assert simplified(function) == expected


def test_what_is_returned_stays_a_tensor_of_its_own() -> None:
    assert simplified(lambda x: x.detach()) == "detach = aten.detach(x)\nreturn detach"

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y.detach()

    assert "detach" in simplified(twice)
