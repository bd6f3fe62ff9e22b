"""Models whose output is a gradient: forces from an energy, inside of `forward`, which training differentiates again."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SchNet

import plait
from tests.awkward import random_graph
from tests.capture.compiled import captures
from tests.check import assert_same_numbers
from tests.edge_mlps import sum_over
from tests.thorough import cases

NUM_ATOMS, NUM_MOLECULES = 24, 3


class Energy(nn.Module):
    """A number per molecule from positions: two continuous filters, in the manner of SchNet."""

    def __init__(self, width: int = 8, num_radial: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(num_radial, width), nn.Softplus(), nn.Linear(width, width)) for _ in range(2)
        )
        self.updates = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.out = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 1))
        self.register_buffer("centres", torch.linspace(0.0, 3.0, num_radial))

    def forward(self, kind: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        src, dst = edge_index
        h = self.embedding(kind)
        distance = ((pos[src] - pos[dst]).square().sum(-1) + 1e-6).sqrt()
        radial = torch.exp(-2.0 * (distance.unsqueeze(-1) - self.centres).square())
        cutoff = 0.5 * (torch.cos(0.3 * distance) + 1.0)
        for made, update in zip(self.filters, self.updates, strict=True):
            h = h + torch.tanh(update(sum_over(h[src] * made(radial) * cutoff.unsqueeze(-1), dst, h.shape[0])))
        return sum_over(self.out(h), batch, NUM_MOLECULES)


class GivenEdges(nn.Module):
    """PyG's SchNet with edges that are given, not searched for."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_channels": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 6}
        self.net = SchNet(**sizes, interaction_graph=lambda pos, batch: self.found(pos))
        self.edge_index: Tensor

    def found(self, pos: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = self.edge_index
        return self.edge_index, ((pos[src] - pos[dst]).square().sum(-1) + 1e-6).sqrt()

    def forward(self, kind: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        self.edge_index = edge_index
        result: Tensor = self.net(kind, pos, batch)
        return result


class ForceField(nn.Module):
    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, kind: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        pos = pos.detach().requires_grad_()
        energy = self.energy(kind, pos, edge_index, batch)
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return energy, -gradient


def inputs() -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    graph = random_graph(NUM_ATOMS, 120, 1)
    apart = graph.src != graph.dst
    kind = torch.randint(1, 5, (NUM_ATOMS,), generator=draw)
    batch = (torch.arange(NUM_ATOMS) * NUM_MOLECULES) // NUM_ATOMS
    return kind, torch.randn(NUM_ATOMS, 3, generator=draw), graph.edge_index[:, apart], batch


def trained(
    make: Callable[[], nn.Module], compile: Callable[[nn.Module], Callable[..., tuple[Tensor, Tensor]]]
) -> list[Tensor]:
    """Losses and all gradients of three steps of training on energies and forces."""
    torch.manual_seed(0)
    model = make().double()
    run, optimiser = compile(model), torch.optim.SGD(model.parameters(), lr=0.01)
    kind, pos, edge_index, batch = inputs()
    seen = []
    for _ in range(3):
        optimiser.zero_grad()
        energy, force = run(kind, pos.double(), edge_index, batch)
        loss = (energy - 1.0).square().mean() + (force - 0.1).square().mean()
        loss.backward()
        seen += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]
        optimiser.step()
    return seen


WAYS: dict[str, Callable[[nn.Module], Callable[..., tuple[Tensor, Tensor]]]] = {
    "plait.compile": lambda model: plait.compile(model),
    "torch.compile": lambda model: torch.compile(model, backend="plait"),
    "dynamic": lambda model: plait.compile(model, dynamic=True),
}


FORCE_FIELDS = [(make, way) for make in (Energy, GivenEdges) for way in WAYS]


LATER = [(Energy, "torch.compile"), (GivenEdges, "torch.compile"), (GivenEdges, "dynamic")]


@pytest.mark.parametrize(("make", "way"), cases(FORCE_FIELDS, LATER))
def test_force_field_trains_as_in_eager(make: type[nn.Module], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")
    want = trained(lambda: ForceField(make()), lambda model: model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason of a fallback is said once
        got = trained(lambda: ForceField(make()), WAYS[way])

    assert len(got) == len(want)
    for number, (found, wanted) in enumerate(zip(got, want, strict=True)):
        assert_same_numbers(found, wanted, name=f"number {number}")


class Descends(nn.Module):
    """Steps down a gradient, as EquilibriumAggregation does: Dynamo breaks the graph at each, and is on meanwhile."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape, requires_grad=True)
        with torch.enable_grad():
            for _ in range(self.num_steps):
                y = y - 0.1 * torch.autograd.grad(self.energy(x, y), y, create_graph=True)[0]
        return y

    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return ((x @ x.T @ y).tanh() * self.scale).sum()


def test_more_gradients_inside_of_a_model_are_no_more_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.capture.backend.is_worthwhile", lambda *_: True)
    torch.manual_seed(0)
    x, counts = torch.randn(8, 3), []
    for num_steps in (2, 5):
        model = Descends(num_steps)
        torch._dynamo.reset()
        with captures() as found:
            got = plait.compile(model, dynamic=False)(x)
        assert_same_numbers(got.detach(), model(x).detach())
        counts.append(len(found))

    assert counts[0] == counts[1] > 0
