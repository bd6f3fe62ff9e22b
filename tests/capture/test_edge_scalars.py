"""Few numbers per edge, written by the forward for the backward or made again: both plans give eager's numbers, and hold what
was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import plait
from plait.capture import partition
from plait.capture.record import Record
from plait.costs import BY_BYTES
from plait.errors import OptionError
from plait.ir.text import to_text
from tests.awkward import AWKWARD, RandomGraph, random_graph
from tests.capture.compiled import captures, in_double, kept_bytes
from tests.check import Numbers, assert_matches_eager, assert_same_step, training_step
from tests.models import CASES
from tests.thorough import cases

GRAPH = random_graph(61, 487, 0)
WIDTH, HEADS, EDGE_WIDTH = 32, 2, 3


class SharedGate(nn.Module):
    """A gate per edge and head, made by an MLP of the edge's features, that two layers have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(EDGE_WIDTH, 24), nn.SiLU(), nn.Linear(24, HEADS), nn.Sigmoid())
        self.lins = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        gate = self.gate(edge_attr).unsqueeze(-1)
        for lin in self.lins:
            h = torch.tanh(lin(x)).view(-1, HEADS, WIDTH // HEADS)
            x = torch.zeros_like(h).index_add(0, dst, h[src] * gate).flatten(1)
        return x


class DotAttention(nn.Module):
    """Attention without a weight: no matrix product, whose bits would depend on the number of threads."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        score = torch.tanh((x[src] * x[dst]).sum(-1)).exp()
        total = x.new_zeros(x.shape[0]).index_add(0, dst, score)
        return torch.zeros_like(x).index_add(0, dst, x[src] * (score / total[dst]).unsqueeze(-1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gat": lambda: pyg.GATConv(WIDTH, WIDTH // 2, heads=2),
    "gat_dropout": lambda: pyg.GATConv(WIDTH, WIDTH // 2, heads=2, dropout=0.5),
    "gatv2": lambda: pyg.GATv2Conv(WIDTH, WIDTH // 2, heads=2),
    "transformer": lambda: pyg.TransformerConv(WIDTH, WIDTH // 2, heads=2),
    "softmax_twice": CASES["softmax_twice"].model,
    "gated_range": CASES["gated_range"].model,
    "shared_gate": SharedGate,
    "dot": DotAttention,
}
CACHING = [name for name in MODELS if name not in ("softmax_twice", "gated_range")]  # their messages are narrow themselves


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def inputs_of(name: str, graph: RandomGraph = GRAPH) -> tuple[Tensor, ...]:
    if name in CASES:
        return CASES[name].make_inputs(graph, 0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(graph.num_nodes, WIDTH, generator=generator).requires_grad_()
    if name != "shared_gate":
        return x, graph.edge_index
    return x, graph.edge_index, torch.randn(graph.num_edges, EDGE_WIDTH, generator=generator).requires_grad_()


def compiling(plan: str) -> Callable[[Any], Any]:
    return lambda model: torch.compile(model, backend="plait", dynamic=True, options={"edge_scalars": plan})


def per_edge(record: Record) -> list[str]:
    """What the forward keeps per edge, beside what the user gave: as many rows as the index maps it keeps."""
    sizes = {item.sizes[-1] for item in record.kept if item.sizes and not item.dtype.is_floating_point}
    return [
        item.name
        for item in record.kept
        if item.sizes and item.dtype.is_floating_point and item.kind != "input" and item.sizes[0] in sizes
    ]


EXACT = [name for name in MODELS if name != "gat_dropout"]


@pytest.mark.parametrize("name", cases(EXACT, later=["transformer", "gated_range"]))
def test_cached_plan_matches_eager(name: str) -> None:
    with captures() as records:
        for key, graph in AWKWARD.items():
            if graph.num_nodes < 2 or graph.num_edges < 2:
                continue
            try:
                model, inputs = in_double(model_of(name), inputs_of(name, graph))  # eager's own rounding is the larger
                assert_matches_eager(model, *inputs, compile=compiling("cached"))
            except Exception as error:
                error.add_note(f"graph: {key}")
                raise
    if name in CACHING:
        assert all(per_edge(record) for record in records)


@pytest.mark.parametrize("name", cases(CACHING, later=["gatv2", "transformer"]))
def test_both_plans_agree_and_keep_what_was_predicted(name: str) -> None:
    """With the same draws of the dropout, too: a cached weight has its mask, one that is made again draws it again."""
    found = {}
    for plan in ("recomputed", "cached"):
        torch._dynamo.reset()
        model, inputs = model_of(name), inputs_of(name)
        call = plait.compile(model, edge_scalars=plan)
        with captures() as records:
            found[plan] = training_step(model, call, inputs)
        (record,) = records
        assert bool(per_edge(record)) == (plan == "cached")
    assert_same_step(found["cached"], found["recomputed"])

    assert record.prediction is not None
    # self-loops replaced: how many edges are left is known to nobody, and predicted is the most there can be
    loops = int((GRAPH.edge_index[0] == GRAPH.edge_index[1]).sum()) if name.startswith("gat") else 0
    unknown = loops * sum(4 * int(item.sizes[1]) for item in record.kept if item.name in per_edge(record) and loops)
    assert kept_bytes(call, model, inputs) == record.prediction.kept_bytes - unknown > 0


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_bits_do_not_depend_on_threads() -> None:
    model = DotAttention()
    inputs = inputs_of("dot", random_graph(500, 40_000, 1))
    call = compiling("cached")(model)
    steps = []
    for count in (1, 2, 3):
        with threads(count):
            steps.append(training_step(model, call, inputs))
    for other in steps[1:]:
        for got, want in zip(numbers(other), numbers(steps[0]), strict=True):
            assert torch.equal(got, want)


def numbers(step: Numbers) -> list[Tensor]:
    return [*step.outputs.values(), *(item for item in step.gradients.values() if item is not None)]


def test_budget_gives_up_what_is_cached() -> None:
    model, inputs = model_of("gat"), inputs_of("gat")

    def record_of(**options: Any) -> Record:
        torch._dynamo.reset()
        with captures() as records:
            training_step(model, plait.compile(model, **options), inputs)
        (record,) = records
        return record

    cached, recomputed = record_of(edge_scalars="cached"), record_of(edge_scalars="recomputed")
    assert cached.prediction is not None
    assert recomputed.prediction is not None
    budget = recomputed.prediction.peak_bytes
    assert cached.prediction.peak_bytes > budget

    fitted = record_of(edge_scalars="cached", memory_budget=budget)

    assert fitted.prediction is not None
    assert fitted.prediction.peak_bytes <= budget
    assert {item.name for item in fitted.dropped} & set(per_edge(cached))


def test_choice_goes_by_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model, on a machine whose products take no time and on one where they take ages."""
    found = {}
    for flops in (1e20, 1e6):
        monkeypatch.setattr(partition, "machine_costs", lambda flops=flops: replace(BY_BYTES, product_flops=flops))
        torch._dynamo.reset()
        model = model_of("shared_gate")
        with captures() as records:
            training_step(model, compiling("auto")(model), inputs_of("shared_gate"))
        found[flops] = [bool(per_edge(record)) for record in records]
    assert found == {1e20: [False], 1e6: [True]}


@pytest.mark.parametrize("name", cases(["GCNConv", "SAGEConv_max", "EdgeConv_max", "GINConv"], later=["GCNConv", "GINConv"]))
def test_without_such_values_nothing_changes(name: str) -> None:
    texts = []
    for plan in ("cached", "auto", "recomputed"):
        torch._dynamo.reset()
        with captures() as records:
            model = CASES[name].model()
            training_step(model, compiling(plan)(model), CASES[name].make_inputs(GRAPH, 0))
        texts.append([to_text(program) for record in records for some in record.programs.values() for program in some])
    assert texts[0] == texts[1] == texts[2]


def test_inference_keeps_nothing() -> None:
    with captures() as records, torch.no_grad():
        compiling("cached")(model_of("gat"))(*inputs_of("gat"))
    assert [record.kept for record in records] == [[]]


def test_plan_that_is_none() -> None:
    with pytest.raises(OptionError, match="edge_scalars: expected one of 'recomputed', 'cached', 'auto', got 'yes'"):
        plait.compile(nn.Linear(2, 2), edge_scalars="yes")
