"""Rows chosen by masks that depend on the graph alone are read by position: self-loops with weights and features of edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.awkward import AWKWARD
from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager
from tests.passes.tracing import numbers
from tests.thorough import cases


def without_loops(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """A weighted sum over the edges that are no loops, and over loops of weight 2 for every node."""
    keep = edge_index[0] != edge_index[1]
    loops = torch.arange(x.shape[0])
    src = torch.cat([edge_index[0][keep], loops])
    dst = torch.cat([edge_index[1][keep], loops])
    scale = torch.cat([weight[keep], weight.new_full((x.shape[0], *weight.shape[1:]), 2.0)])
    return torch.zeros_like(x).index_add(0, dst, x.index_select(0, src) * scale.view(-1, 1))


@pytest.mark.parametrize("graph", cases(AWKWARD, later=["one_edge", "last_rows_empty", "already_sorted", "reversed"]))
def test_edges_without_loops_match_eager(graph: str) -> None:
    data = AWKWARD[graph]
    x, weight = numbers(data.num_nodes, 3).requires_grad_(), numbers(data.num_edges, seed=1).requires_grad_()

    assert_matches_eager(without_loops, x, data.edge_index, weight, compile=compiled, num_steps=2)


def test_no_mask_is_searched_in_a_step() -> None:
    data = AWKWARD["random"]
    x, weight = numbers(data.num_nodes, 3).requires_grad_(), numbers(data.num_edges, seed=1).requires_grad_()

    with captures() as records:
        assert_matches_eager(without_loops, x, data.edge_index, weight, compile=compiled)

    (record,) = records
    assert not any("index.Tensor" in note or "index_put" in note for note in record.notes), record.notes


def test_a_mask_of_several_axes_chooses_rows() -> None:
    """Nodes of small graphs laid out as [graph, place], and read back."""

    def dense_and_back(x: Tensor, place: Tensor) -> Tensor:
        rows = x.new_zeros(3 * 4, x.shape[1]).index_copy(0, place, torch.tanh(x)).view(3, 4, -1)
        mask = torch.zeros(3 * 4, dtype=torch.bool).index_fill(0, place, True).view(3, 4)
        mixed = rows + rows.sum(1, keepdim=True)
        return mixed[mask].index_select(0, place.clamp(max=x.shape[0] - 1))

    x, place = numbers(7, 3).requires_grad_(), torch.tensor([0, 1, 2, 4, 5, 6, 9])
    with captures() as records:
        assert_matches_eager(dense_and_back, x, place, compile=compiled, num_steps=2)

    (record,) = records
    assert not any("index.Tensor" in note for note in record.notes), record.notes


def test_a_mask_of_values_is_searched_in_every_step() -> None:
    def large(x: Tensor, index: Tensor) -> Tensor:
        rows = x.index_select(0, index)
        return torch.tanh(x[x[:, 0] > 0]).sum(0) + rows.sum(0)

    x = numbers(7, 3).requires_grad_()
    run = compiled(large)
    for sign in (1, -1):
        assert_matches_eager(large, (sign * x).detach().requires_grad_(), torch.tensor([3, 3, 1]), compile=lambda _: run)


def test_rows_of_entries_stay_with_their_kernel() -> None:
    """Edge values that are chosen from: what makes them is fused over their own edges, as if nothing was chosen."""

    def messages(x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index[0], edge_index[1]
        values = torch.tanh(x[src] - x[dst])
        keep = src != dst
        rest = torch.zeros_like(x).index_add(0, dst[keep], values[keep])
        return torch.zeros_like(x).index_add(0, dst, values) + 2 * rest

    data = AWKWARD["random"]
    with captures() as records:
        assert_matches_eager(messages, numbers(data.num_nodes, 3).requires_grad_(), data.edge_index, compile=compiled)

    (record,) = records
    assert not any(note.startswith("forward: plait.gather") for note in record.notes), record.notes
