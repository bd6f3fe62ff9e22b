"""`rest="inductor"`: what Inductor is told of inputs is what it is given. A stand-in compiles: Inductor's first kernel takes
20 seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from plait.capture.rest import _in_order, _order
from tests.check import assert_matches_eager


class Multiplied(nn.Module):
    """A matrix per edge, written row by row and read transposed by a product that no kernel makes (found by fuzzing)."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(3))
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(1, 3, bias=False)

    def forward(self, x: Tensor, src: Tensor) -> Tensor:
        nodes = F.glu(x, -1)
        rows = torch.take_along_dim(nodes, src[:, None], 0)
        matrices = torch.tanh(self.inner(rows)).view(-1, 3, 2)
        mixed = F.silu(torch.logsumexp(torch.matmul(rows.unsqueeze(1), matrices).squeeze(1), -1))
        sums = torch.zeros(x.shape[0], 3).index_add(0, src, self.outer((nodes[src] * self.vector).sum(-1, keepdim=True)))
        return (mixed.view(-1, 1) - sums[src]).square().add(0.1).sqrt()


def test_groups_get_what_inductor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def compile_checked(group: GraphModule, inputs: Sequence[Any]) -> Callable[[list[Any]], Sequence[Any]]:
        def run(given: list[Any]) -> Sequence[Any]:
            for number, (told, item) in enumerate(zip(inputs, given, strict=True)):
                if isinstance(item, Tensor):
                    assert item.dim() == told.dim(), f"input {number}: {tuple(item.shape)}, told {tuple(told.shape)}"
                    assert _in_order(item, _order(told)) is item, f"input {number}: {item.stride()}, told {told.stride()}"
                    checked.append(item)
            return group(*given)  # type: ignore[no-any-return]

        return run

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", compile_checked)
    torch.manual_seed(0)
    x, src = torch.randn(9, 6).requires_grad_(), torch.randint(9, (20,))

    assert_matches_eager(
        Multiplied(),
        x,
        src,
        compile=lambda model: torch.compile(model, backend="plait", options={"rest": "inductor"}, dynamic=True),
    )
    assert checked


LAID_OUT = {
    "contiguous": (torch.empty(4, 3, 2), (0, 1, 2)),
    "transposed": (torch.empty(4, 2, 3).transpose(1, 2), (0, 2, 1)),
    "of one row": (torch.empty(1, 3).t(), (1, 0)),
    "a slice": (torch.empty(4, 6)[:, :3], None),
    "expanded": (torch.empty(4, 1).expand(4, 3), None),
    "a number": (torch.empty(()), ()),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_where_numbers_lie(name: str) -> None:
    tensor, order = LAID_OUT[name]

    assert _order(tensor) == order
    if order is not None:
        other = _in_order(torch.randn(tensor.shape).contiguous(), order)
        assert [a for a, size in zip(other.stride(), other.shape, strict=True) if size > 1] == [
            a for a, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
        ]
