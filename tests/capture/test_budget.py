"""What a training step holds: predicted, counted, and bounded by `memory_budget`."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn

import plait
from plait import memory
from plait.capture import budget, partition, run_passes
from plait.capture.record import Record
from plait.costs import BY_BYTES
from plait.errors import MemoryBudgetError, OptionError
from tests.awkward import random_graph
from tests.capture.compiled import captures, kept_bytes
from tests.check import assert_same_numbers
from tests.thorough import IS_THOROUGH, cases

NUM_NODES, WIDTH = 3000, 32
GRAPH = random_graph(NUM_NODES, 20_000, 3)


class Deep(nn.Module):
    """Some layers of one kind with a smooth activation, and a dropout over nodes."""

    def __init__(self, make: Callable[[], nn.Module], dropout: float = 0.0, num_layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(num_layers))
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(F.elu(layer(x, edge_index)), self.dropout, self.training)
        return x


class TwoLayers(nn.Module):
    """The first gets no gradient for its input; the second makes the rows narrower."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = pyg.GCNConv(WIDTH, WIDTH), pyg.GCNConv(WIDTH, WIDTH // 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: Deep(lambda: pyg.GCNConv(WIDTH, WIDTH), num_layers=3),
    "sage": lambda: Deep(lambda: pyg.SAGEConv(WIDTH, WIDTH)),
    "sage_max": lambda: Deep(lambda: pyg.SAGEConv(WIDTH, WIDTH, aggr="max")),
    "gat": lambda: Deep(lambda: pyg.GATConv(WIDTH, WIDTH // 4, heads=4)),
    "dropout": lambda: Deep(lambda: pyg.SAGEConv(WIDTH, WIDTH), dropout=0.5),
    "linear": lambda: nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ELU()) for _ in range(3))),
}


REDUCIBLE = [name for name in MODELS if name != "sage_max"]


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def inputs_of(name: str) -> tuple[Tensor, ...]:
    x = torch.randn(NUM_NODES, WIDTH, generator=torch.Generator().manual_seed(1))
    return (x,) if name == "linear" else (x, GRAPH.edge_index)


def step(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    out = call(*inputs)
    out.backward(torch.full_like(out, 0.5))
    return [out.detach(), *(item.grad for item in model.parameters() if item.grad is not None)]


# the fastest plan fits; without any budget, layers of products alone run as PyTorch runs them, and nothing is planned
ROOMY = 1 << 40


def compiled(model: nn.Module, inputs: tuple[Tensor, ...], most: float = ROOMY) -> tuple[Callable[..., Tensor], Record]:
    torch._dynamo.reset()
    call = plait.compile(model, memory_budget=most)
    with captures() as records:
        step(call, inputs, model)
    (record,) = records
    return call, record


def most_allocated(work: Callable[[], object], path: pathlib.Path) -> int:
    """The most bytes that PyTorch's allocator had given out at once while `work` ran, beyond what was out before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.fixture
def counted_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Callable[..., int]:
    """counted_peak(call, model, inputs): the most bytes that a step has allocated at once."""
    monkeypatch.setattr(memory, "POOLED_BYTES", 1 << 60)  # the pool's buffers come from PyTorch's allocator, and are counted

    def count(call: Callable[..., Tensor], model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
        step(call, inputs, model)
        model.zero_grad()
        return most_allocated(lambda: step(call, inputs, model), tmp_path / "trace.json")

    return count


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_holds_what_was_predicted(name: str, counted_peak: Callable[..., int]) -> None:
    model, inputs = model_of(name), inputs_of(name)
    call, record = compiled(model, inputs)

    assert record.prediction is not None
    assert kept_bytes(call, model, inputs) == record.prediction.kept_bytes > 0
    assert counted_peak(call, model, inputs) == pytest.approx(record.prediction.peak_bytes, rel=0.15)


@pytest.mark.parametrize("name", cases(REDUCIBLE, later=["gcn", "sage"]))
def test_smaller_budgets_hold_less_and_give_the_same_numbers(name: str, counted_peak: Callable[..., int]) -> None:
    model, inputs = model_of(name), inputs_of(name)
    call, record = compiled(model, inputs)
    assert record.prediction is not None
    want, most, moved = step(call, inputs, model), record.prediction.peak_bytes, record.moved
    smallest = smallest_of(model, inputs)
    assert smallest < most

    budgets = [(most + smallest) // 2, smallest]
    if name == "linear" or IS_THOROUGH:
        budgets.append(most)
    for bytes_held in budgets:
        call, record = compiled(model, inputs, bytes_held)
        assert record.prediction is not None
        assert record.prediction.peak_bytes <= bytes_held
        is_another_plan = bool(record.dropped) or record.moved != moved  # another order of products may hold less, too
        assert is_another_plan == (bytes_held < most)
        assert counted_peak(call, model, inputs) == pytest.approx(record.prediction.peak_bytes, rel=0.15)
        for got, expected in zip(step(call, inputs, model), want, strict=True):
            assert_same_numbers(got, expected)


def test_nothing_below_a_maximum_is_computed_again() -> None:
    """Its gradient compares entries with the result bit by bit: neither may come from another kernel than before."""
    model, inputs = model_of("sage_max"), inputs_of("sage_max")
    _, record = compiled(model, inputs)
    assert record.prediction is not None
    assert smallest_of(model, inputs) == record.prediction.peak_bytes


def test_order_of_products_is_chosen_again_where_the_budget_drops_what_was_propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many features out as in, propagating first saves a propagation, if what was propagated is kept."""
    for module in (run_passes, budget, partition):
        monkeypatch.setattr(module, "machine_costs", lambda: BY_BYTES)
    model, inputs = TwoLayers(), inputs_of("gcn")

    call, roomy = compiled(model, inputs)
    want = step(call, inputs, model)
    call, tight = compiled(model, inputs, smallest_of(model, inputs))

    assert [line.split(":")[1].split(",")[0] for line in roomy.moved] == [" product moved behind the sum over edges"]
    assert tight.moved == []
    assert not any("segment_reduce" in item.name for item in tight.dropped)
    for got, expected in zip(step(call, inputs, model), want, strict=True):
        assert_same_numbers(got, expected)


def smallest_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """What the error says of a budget that nothing fits."""
    with pytest.raises(MemoryBudgetError, match="memory_budget: a step may hold 1e-06 MB") as failure:
        compiled(model, inputs, 1)
    assert f"Allow at least {failure.value.smallest} bytes" in str(failure.value)
    return failure.value.smallest


def test_share_is_of_what_eager_holds(tmp_path: pathlib.Path) -> None:
    model, inputs = model_of("sage"), inputs_of("sage")
    step(model, inputs, model)
    model.zero_grad()
    eager = most_allocated(lambda: step(model, inputs, model), tmp_path / "trace.json")

    with pytest.raises(MemoryBudgetError) as failure:
        compiled(model, inputs, 0.001)

    asked = re.search(r"a step may hold ([0-9.e-]+) MB", str(failure.value))
    assert asked is not None
    assert float(asked[1]) * 1e6 == pytest.approx(0.001 * eager, rel=0.15)


def test_budget_that_nothing_fits_is_an_error_where_other_failures_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")
    model, inputs = model_of("sage"), inputs_of("sage")
    smallest_of(model, inputs)
    assert not torch._dynamo.config.suppress_errors

    _, record = compiled(model, inputs)  # what was passed over for a call is passed over in the next
    assert not record.fallbacks


def test_inference_keeps_nothing_whatever_the_budget() -> None:
    model, inputs = model_of("sage"), inputs_of("sage")
    torch._dynamo.reset()
    with captures() as records, torch.no_grad():
        got = plait.compile(model, memory_budget=1)(*inputs)
        want = model(*inputs)
    assert_same_numbers(got, want)
    assert [record.kept for record in records] == [[]]


@pytest.mark.parametrize("budget", [0, -5, 0.0, True, "1GB", float("nan")])
def test_budget_that_is_none(budget: object) -> None:
    with pytest.raises(OptionError, match="memory_budget: expected bytes"):
        plait.compile(nn.Linear(2, 2), memory_budget=budget)
