"""Layers on a matrix of neighbours run fused: numbers of eager, one capture for all sizes, nothing wide per entry is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.capture.compiled import captures, compiled, num_programs, saved_tensors, wide_per_edge
from tests.check import assert_matches_eager, assert_same_step, training_step
from tests.neighbour_layers import C, layers, random_layer
from tests.thorough import cases


def inputs(num_nodes: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_nodes, C, generator=generator)
    nbr = torch.randint(-num_nodes, num_nodes, (num_nodes, count), generator=generator)
    nbr[0] = nbr[0, 0]  # one neighbour, again and again
    return x.requires_grad_(), nbr


LATER = ["mean", "attention", "products from the right", "weights by column", "flat index", "edge layer"]


@pytest.mark.parametrize("name", cases(layers(), later=LATER))
def test_layers_match_eager_whatever_the_sizes(name: str) -> None:
    layer = layers()[name]
    twin = copy.deepcopy(layer)
    with captures() as records:
        run = compiled(twin)
        for sizes in [(12, 5), (30, 3), (4, 40)]:
            assert_same_step(training_step(twin, run, inputs(*sizes)), training_step(layer, None, inputs(*sizes)))

    if name != "clouds":  # it asks for half of the rows: Dynamo fixes their number
        assert len(records) == 1
    assert num_programs(records, "forward") > 0
    assert [item for record in records for item in record.fallbacks] == []


@pytest.mark.parametrize("name", ["edge MLP", "attention by products"])
def test_nothing_wide_is_kept_per_entry(name: str) -> None:
    layer, given = layers()[name], inputs(50, 11)

    saved = saved_tensors(compiled(layer), given)

    assert wide_per_edge(saved, given, 50 * 11) == []
    assert [item.shape for item in saved if item.is_floating_point() and item.shape[:2] == (50, 11)] == []


def test_a_matrix_chosen_by_the_values_themselves() -> None:
    """k nearest neighbours of the features: another graph in every step."""

    def nearest(x: Tensor) -> Tensor:
        nbr = torch.cdist(x, x).topk(4, largest=False)[1]
        return (x[nbr] - x[:, None]).relu().sum(1)

    for seed in range(3):
        assert_matches_eager(nearest, inputs(20, 2, seed)[0], compile=compiled)


@pytest.mark.parametrize("seed", cases(range(40), later=range(3, 40)))
def test_random_functions_match_eager(seed: int) -> None:
    x, nbr = inputs(9, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    features, weight = torch.randn(9, 4, C, generator=generator), torch.randn(C, C, generator=generator)

    given = [item.detach().double().requires_grad_() for item in (x, features, weight)]
    assert_matches_eager(random_layer(seed), given[0], nbr, *given[1:], compile=compiled)
