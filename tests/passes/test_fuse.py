"""How many programs stand for a layer, and that no way of mixing maps and reductions makes a cycle."""

from __future__ import annotations

import random

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from plait.capture.record import Record
from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled, edge_programs
from tests.capture.conftest import fresh_dynamo  # noqa: F401 - a fixture
from tests.check import assert_matches_eager
from tests.models import CASES, Case, Inputs, node_features, row_max, row_softmax, row_sum

GRAPH = random_graph(30, 200, 3)


def record_of(model: nn.Module, inputs: Inputs) -> Record:
    with captures() as records:
        compiled(model)(*inputs)
    (record,) = records
    return record


def test_dropout_is_no_kernel_of_its_own() -> None:
    """How many the other layers have: `tests/capture/test_layers.py`."""
    record = record_of(CASES["GATConv_dropout"].model(), CASES["GATConv_dropout"].make_inputs(GRAPH, 0))

    assert (len(edge_programs(record, "forward")), len(edge_programs(record, "backward"))) == (1, 2)


class ThreeReductions(nn.Module):
    """No paper has it: a maximum, a sum that waits for it, and a sum that waits for both."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes = x.shape[0]
        messages = torch.sin(x[src])
        largest = row_max(messages, dst, num_nodes)
        near = torch.exp(messages - largest[dst])
        total = row_sum(near, dst, num_nodes)
        return row_sum(near * near / (1.0 + total[dst]) + largest[dst], dst, num_nodes)


def test_three_chained_reductions_are_one_program() -> None:
    record = record_of(ThreeReductions(), node_features(GRAPH, 0))

    (program,) = edge_programs(record, "forward")
    assert sum(type(node.op).__name__ == "SegmentReduce" for node in program.nodes()) == 3
    assert_matches_eager(ThreeReductions(), *node_features(GRAPH, 0), compile=compiled)


class OtherMap(nn.Module):
    """A reduction by src whose result is read by a reduction by dst."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        by_src = row_sum(x[dst].cos(), src, x.shape[0])
        return row_sum(by_src[src] * x[src], dst, x.shape[0])


def test_reduction_over_another_map_starts_a_new_program() -> None:
    record = record_of(OtherMap(), node_features(GRAPH, 0))

    assert len(edge_programs(record, "forward")) == 2
    assert_matches_eager(OtherMap(), *node_features(GRAPH, 0), compile=compiled)


class Hops(nn.Module):
    """What the edges read of a node was reduced at the *other* end of the same map: it cannot be in the same pass over rows."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        once = row_sum(x[src].tanh(), dst, x.shape[0])
        return row_sum(once[src].tanh(), dst, x.shape[0])


def test_two_hops_are_two_programs() -> None:
    record = record_of(Hops(), node_features(GRAPH, 0))

    assert len(edge_programs(record, "forward")) == 2
    assert_matches_eager(Hops(), *node_features(GRAPH, 0), compile=compiled)


class SharedMessages(nn.Module):
    """One message reduced by both ends and over all edges, and returned."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        src, dst = edge_index
        messages = torch.tanh(x[src] * x[dst])
        return row_sum(messages, dst, x.shape[0]), row_sum(messages, src, x.shape[0]), messages.sum(0), messages


class ScaledResidual(nn.Module):
    """Rows beside a sum of neighbours that nobody else reads: one made in a chain, one with another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        shared = torch.cos(x)
        found = row_sum(x[src], dst, x.shape[0]) - 3 * ((1 + self.scale) * x)
        return found + 2 * shared, shared


def test_what_is_made_for_an_epilogue_alone_joins_it() -> None:
    record = record_of(ScaledResidual(), node_features(GRAPH, 0))

    (program,) = edge_programs(record, "forward")
    assert [item.access for item in program.inputs] == ["at", "dense", "row", "row"]  # x, scale, x again, cos(x)
    assert_matches_eager(ScaledResidual(), *node_features(GRAPH, 0), compile=compiled)


def test_messages_with_many_readers_match() -> None:
    assert_matches_eager(SharedMessages(), *node_features(GRAPH, 0), compile=compiled)


class Pooled(nn.Module):
    """Edges to nodes to graphs: the rows of one program are the entries of the next."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        hidden = row_softmax(row_sum(x[src], dst, x.shape[0]), torch.zeros_like(x[:, 0], dtype=torch.int64), 1)
        return row_sum(hidden[src], dst, x.shape[0])


def test_softmax_over_the_nodes_of_a_graph_matches() -> None:
    assert_matches_eager(Pooled(), *node_features(GRAPH, 0), compile=compiled)


# --- random programs over two maps -------------------------------------------------------------------------------------


NODE_STEPS, EDGE_STEPS = ("multiply", "subtract", "sine", "bell"), ("gather", "sum", "max")


class RandomLayer(nn.Module):
    """Gathers, elementwise functions and reductions over both ends of the edges, in an order drawn from `seed`."""

    def __init__(self, seed: int, num_steps: int = 9) -> None:
        super().__init__()
        rng = random.Random(seed)
        counts = {"node": 2, "edge": 1}
        self.steps: list[tuple[str, str, int, int]] = []  # name, kind of its operand, operand, second operand or map
        for _ in range(num_steps):
            name = rng.choice((*NODE_STEPS, *EDGE_STEPS, *EDGE_STEPS))
            kind = {"gather": "node", "sum": "edge", "max": "edge"}.get(name) or rng.choice(("node", "edge", "edge"))
            other = rng.randrange(2) if name in EDGE_STEPS else rng.randrange(counts[kind])
            self.steps.append((name, kind, rng.randrange(counts[kind]), other))
            counts["edge" if name == "gather" else "node" if name in EDGE_STEPS else kind] += 1
        self.returns_edges, self.returns_total = rng.random() < 0.4, rng.random() < 0.4

    def forward(self, x: Tensor, edge_index: Tensor) -> list[Tensor]:
        maps = (edge_index[0], edge_index[1])
        values = {"node": [x, torch.sigmoid(x) - 0.3], "edge": [x[maps[0]]]}
        for name, kind, first, second in self.steps:
            a = values[kind][first]
            if name == "gather":
                values["edge"].append(a[maps[second]])
            elif name in EDGE_STEPS:
                reduce = row_sum if name == "sum" else row_max
                values["node"].append(torch.tanh(reduce(a, maps[second], x.shape[0])))
            else:
                values[kind].append(combine(name, a, values[kind][second]))
        outputs = values["node"][-2:]
        if self.returns_edges:
            outputs.append(values["edge"][-1])
        if self.returns_total:
            outputs.append(values["edge"][-1].sum(0))
        return outputs


def combine(name: str, a: Tensor, b: Tensor) -> Tensor:
    if name == "multiply":
        return a * b
    if name == "subtract":
        return a - 0.5 * b
    return torch.sin(a) + b if name == "sine" else torch.exp(-a.square()) * b


@pytest.mark.parametrize("seed", range(12))
def test_random_layer_matches(seed: int) -> None:
    """Cycles between regions would raise while the graph is sorted; wrong cuts would give other numbers."""
    x, edge_index = node_features(random_graph(23, 140, seed), seed)

    assert_matches_eager(RandomLayer(seed), x.detach()[:, :5].clone().requires_grad_(), edge_index, compile=compiled)


class MaximumOfWhatGoesOut(nn.Module):
    """All entries of a row are equal, all of them are the maximum, and they are returned."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src = edge_index[0]
        values = torch.exp(x[src]) * x[src]
        return row_max(values, src, x.shape[0]), values


def test_maximum_finds_its_entries_again() -> None:
    assert_matches_eager(MaximumOfWhatGoesOut(), *node_features(GRAPH, 0), compile=compiled)


def test_layer_of_pyg_is_not_known_by_name() -> None:
    """A copy of a layer under another name gets the same programs."""

    class Renamed(pyg.GATConv):
        pass

    torch.manual_seed(0)
    renamed = record_of(Case(lambda: Renamed(12, 8, heads=4), node_features).model(), node_features(GRAPH, 0))
    known = record_of(CASES["GATConv_4_heads"].model(), node_features(GRAPH, 0))

    assert [str(item.outputs) for item in renamed.programs["forward"]] == [
        str(item.outputs) for item in known.programs["forward"]
    ]
