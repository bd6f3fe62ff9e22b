"""Activations on edges and on nodes inside of kernels: numbers and gradients of eager, whatever their arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.capture.compiled import captures, compiled
from tests.check import assert_same_numbers
from tests.thorough import cases

SRC, DST = torch.randint(0, 40, (2, 300), generator=torch.Generator().manual_seed(1))

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "elu, alpha": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "softplus": lambda x: F.softplus(x, 2.0, 1.5),
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", cases(ACTIVATIONS, later=["elu", "selu", "sigmoid", "tanh"]))
def test_it_has_eager_numbers_inside_of_kernels(name: str) -> None:
    activation = ACTIVATIONS[name]

    def layer(x: Tensor) -> Tensor:
        messages = activation(x[SRC] * x[DST].cos())
        h = torch.zeros_like(x).index_add(0, DST, messages)
        return torch.sin(activation(h * 1.3)) * activation(h)

    results = []
    with captures() as records:
        for call in (layer, compiled(layer)):
            x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
            out = call(x)
            (grad,) = torch.autograd.grad((out * torch.arange(8.0)).sum(), x)
            results.append((out.detach(), grad))
    for got, want in zip(*reversed(results), strict=True):
        assert_same_numbers(got, want)
    assert [note for record in records for note in record.notes if "unfused" in note] == []
