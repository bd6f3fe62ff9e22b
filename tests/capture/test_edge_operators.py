"""Operators of an edge's own axes: each runs inside kernels, forward and backward, with eager's numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager
from tests.thorough import cases

N, H, C = 30, 2, 3

# of a message [E, H, C]
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over heads": lambda m: m.softmax(1),
    "log_softmax over features": lambda m: F.log_softmax(m, -1),
    "norm": lambda m: m * torch.linalg.vector_norm(m, dim=-1, keepdim=True),
    "norm of nothing": lambda m: (m * 0).norm(dim=-1, keepdim=True) + m,
    "cross product": lambda m: torch.linalg.cross(m, m.cos() * 2 + 1, dim=-1),
    "stack": lambda m: torch.stack([m[:, 0], m[:, 1].tanh()], 1),
    "stack at the end": lambda m: torch.stack([m.sin(), m], -1).sum(-1),
    "repeat": lambda m: m.repeat(1, 2, 1)[:, 1 : H + 1],
    "repeat of one": lambda m: m[:, :1].repeat(1, H, 1) * m,
    "slice": lambda m: torch.cat([m[..., 1:], m[..., :1].exp()], -1),
    "select": lambda m: m * m[:, -1:, 0].unsqueeze(-1),
}


class Message(nn.Module):
    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        message = self.operator(x[src] * x[dst].cos())
        return x.new_zeros(x.shape[0], H, C).index_add(0, dst, message)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", cases(OPERATORS, later=["norm", "stack", "repeat of one", "select", "softmax over heads"]))
def test_it_runs_inside_of_kernels(name: str) -> None:
    x = torch.randn(N, H, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edge_index = random_graph(N, 200, 3).edge_index
    with captures() as found:
        assert_matches_eager(Message(OPERATORS[name]), x, edge_index, compile=compiled)

    notes = [note for record in found for note in record.notes]
    unfused = [note for note in notes if "unfused" in note]
    assert unfused == []
