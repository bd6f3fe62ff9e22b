"""Random programs over gathered rows give the same numbers and gradients after all laws, whatever their shapes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from plait.passes.identities import copy_where_needed
from plait.passes.reorganise import move_behind_sums, move_narrow_work, move_products
from plait.passes.reorganise.separate import Separation
from tests.passes.tracing import E, N, assert_same_law, canonical, ends, rewritten

LAWS = (move_products, move_narrow_work, move_behind_sums)
Weights = Callable[..., Tensor]
Step = Callable[[Tensor, "Draft"], Tensor]


class Draft:
    """A program being run: the same seed takes the same steps, whatever the numbers are; weights are made on the first run."""

    def __init__(self, seed: int, weights: list[Tensor], *, is_first: bool) -> None:
        self.rng = random.Random(seed)
        self.weights, self.is_first, self.used = weights, is_first, 0
        self.edges: list[Tensor] = []
        self.scales: list[Tensor] = []

    def weight(self, *shape: int) -> Tensor:
        if self.is_first:
            generator = torch.Generator().manual_seed(len(self.weights))
            self.weights.append(torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5)
        self.used += 1
        return self.weights[self.used - 1]

    def other(self, like: Tensor) -> Tensor | None:
        """Another edge value of the same inner shape."""
        fitting = [item for item in self.edges if item.shape[1:] == like.shape[1:]]
        return self.rng.choice(fitting) if fitting else None

    def axis(self, x: Tensor) -> int:
        return self.rng.randrange(1, x.dim())


def scaled(x: Tensor, draft: Draft) -> Tensor:
    scale = draft.rng.choice(draft.scales)
    return x * scale.view(-1, *[1] * (x.dim() - 1))


def joined(x: Tensor, draft: Draft) -> Tensor:
    other = draft.other(x)
    return torch.cat([x, other if other is not None else x * 2.0], draft.axis(x))


def added(x: Tensor, draft: Draft) -> Tensor:
    other = draft.other(x)
    return x - other * 0.5 if other is not None else 1.0 - x


def shuffled(x: Tensor, draft: Draft) -> Tensor:
    axes = list(range(1, x.dim()))
    draft.rng.shuffle(axes)
    return x.permute(0, *axes)


def cut(x: Tensor, draft: Draft) -> Tensor:
    axis = draft.axis(x)
    size = x.shape[axis]
    return x.narrow(axis, size // 3, size - size // 3)


def folded(x: Tensor, draft: Draft) -> Tensor:
    return x.flatten(1) if x.dim() > 2 else x.unsqueeze(draft.rng.choice((1, 2)))


def split(x: Tensor, draft: Draft) -> Tensor:
    return x.reshape(x.shape[0], *x.shape[1:-1], 2, x.shape[-1] // 2) if x.shape[-1] % 2 == 0 and x.dim() < 4 else x


def multiplied(x: Tensor, draft: Draft) -> Tensor:
    if x.dim() == 3 and draft.rng.random() < 0.5:
        return torch.einsum("ehc,hcd->ehd", x, draft.weight(x.shape[1], x.shape[2], 2))
    return x.reshape(x.shape[0], *x.shape[1:]) @ draft.weight(x.shape[-1], 4)


def through(x: Tensor, draft: Draft) -> Tensor:
    return draft.rng.choice((torch.tanh, torch.sigmoid, torch.sin, torch.cos, lambda x: x**2))(x)


def reduced(x: Tensor, draft: Draft) -> Tensor:
    axis = draft.axis(x)
    keep = x.dim() == 2 or draft.rng.random() < 0.5
    return x.sum(axis, keepdim=keep) if draft.rng.random() < 0.5 else x.mean(axis, keepdim=keep)


def by_column(x: Tensor, draft: Draft) -> Tensor:
    return x * draft.weight(*x.shape[1:]) if draft.rng.random() < 0.7 else x + draft.weight(*x.shape[1:])


STEPS: tuple[Step, ...] = (
    *(scaled, joined, joined, added, added, shuffled, cut, folded, split, multiplied, multiplied),
    *(through, reduced, by_column, by_column),
)


def program(seed: int, weights: list[Tensor], *, is_first: bool) -> Callable[..., Tensor]:
    """Random steps from two gathers and an edge value on; at the end a sum over the edges of a row, or the edge value."""

    def run(x: Tensor, z: Tensor, edge: Tensor, scale: Tensor, src: Tensor, dst: Tensor, *given: Tensor) -> Tensor:
        draft = Draft(seed, weights if is_first else list(given), is_first=is_first)
        draft.edges = [x.index_select(0, src), z[dst], x.index_select(0, dst), edge]
        draft.scales = [scale, x.index_select(0, src)[:, 0, :1]]
        value = draft.edges[draft.rng.randrange(3)]
        for _ in range(draft.rng.randint(2, 9)):
            value = draft.rng.choice(STEPS)(value, draft)
            draft.edges.append(value)
        if draft.rng.random() < 0.5:
            return value
        return value.new_zeros(N + 1, *value.shape[1:]).index_add(
            0, dst, multiplied(value, draft) if value.dim() == 2 and value.shape[-1] == 4 else value
        )

    return run


def inputs_for(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw(N, 2, 4), draw(N, 2, 4), draw(E, 2, 4), draw(E, 1), *ends(seed=seed)


@given(st.integers(0, 10_000))
@example(255)  # views of what was expanded and cannot be viewed
@example(7472)  # an output that is 0 in eager
@example(3093)  # halves subtracted until nothing is left: a gradient that is 0 in eager, and 1e-17 in another order
def test_laws_keep_numbers_and_gradients(seed: int) -> None:
    weights: list[Tensor] = []
    inputs = inputs_for(seed)
    program(seed, weights, is_first=True)(*inputs)
    function = program(seed, weights, is_first=False)
    graph_module, _ = rewritten(LAWS, function, *inputs, *weights)
    copy_where_needed(graph_module.graph)  # as the pipeline does behind these passes
    graph_module.recompile()

    assert_same_law(graph_module, function, (*inputs, *weights))


def test_random_programs_are_moved() -> None:
    """The test above would show nothing if the laws never applied."""
    moved = 0
    for seed in range(40):
        weights: list[Tensor] = []
        inputs = inputs_for(seed)
        program(seed, weights, is_first=True)(*inputs)
        moved += len(rewritten(LAWS, program(seed, weights, is_first=False), *inputs, *weights)[1]) > 0

    assert moved >= 15


@pytest.mark.parametrize("view", [lambda x: x.view(-1), lambda x: x.view(1, -1), lambda x: x.view(2, -1), lambda x: x.t()[:1]])
def test_view_that_mixes_rows_has_no_plain_form(view: Callable[[Tensor], Tensor]) -> None:
    def function(x: Tensor, src: Tensor) -> Tensor:
        return view(x.index_select(0, src))

    src = torch.arange(8) % N
    graph_module = canonical(function, torch.randn(N, 3), src)
    *_, output = graph_module.graph.nodes
    form = Separation().form(output.args[0])

    assert form is None or not form.can_be_built
