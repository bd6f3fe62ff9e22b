"""Blocks compute what the whole batch computes, and what the whole graph computes where nothing is left out."""

from __future__ import annotations

import pathlib
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, SAGEConv

from plait import graph
from plait.errors import OptionError, ShapeError
from plait.loader import Block, NeighborLoader, blocks, layerwise
from tests.sampling import graphs


class Net(nn.Module):
    """Two or more layers of any kind; on blocks, or on the whole graph."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, given: tuple[Block, ...]) -> Tensor:
        for layer, block in zip(self.layers, given, strict=True):
            x = layer((x, x[: block.num_dst]), block.edge_index).relu()
        return x

    def on_graph(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index).relu()
        return x


def make_data(generator: torch.Generator) -> Data:
    return Data(x=torch.randn(80, 6, generator=generator), edge_index=graphs.edges_between(80, 80, 400, generator))


@pytest.mark.parametrize("layer", [SAGEConv, GATConv])
def test_all_neighbours_on_blocks_are_the_whole_graph(layer: type[nn.Module], generator: torch.Generator) -> None:
    data = make_data(generator)
    net = Net(layer(6, 5), layer(5, 4), layer(4, 3))
    expected = net.on_graph(data.x, data.edge_index)
    for batch in NeighborLoader(data, [-1, -1, -1], batch_size=20):
        assert torch.allclose(net(batch.x, blocks(batch)), expected[batch.n_id[:20]], atol=1e-5)


def test_blocks_of_a_sample_give_the_seeds_what_the_whole_batch_gives(generator: torch.Generator) -> None:
    net = Net(SAGEConv(6, 5), SAGEConv(5, 4))
    for batch in NeighborLoader(make_data(generator), [3, 2], batch_size=20):
        first, last = blocks(batch)
        found = net(batch.x, (first, last))

        assert last.num_dst == batch.batch_size
        assert first.num_src == batch.num_nodes
        assert torch.equal(last.src_id, first.dst_id)
        # the outermost nodes have no edges in the batch, so one that runs on all of it is as exact for the seeds
        assert torch.allclose(found, net.on_graph(batch.x, batch.edge_index)[:20], atol=1e-5)


def test_the_compiled_model_is_compiled_once(generator: torch.Generator) -> None:
    torch._dynamo.reset()
    net = Net(SAGEConv(6, 5), SAGEConv(5, 4))
    compiled = torch.compile(net, backend="plait")
    torch._dynamo.utils.counters.clear()
    for batch in NeighborLoader(make_data(generator), [3, 2], batch_size=17, shuffle=True, drop_last=True):
        found, expected = compiled(batch.x, blocks(batch)), net(batch.x, blocks(batch))

        assert torch.allclose(found, expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_with_orderings_a_compiled_step_sorts_nothing(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    net = Net(SAGEConv(6, 5), SAGEConv(5, 4))
    compiled = torch.compile(net, backend="plait")
    sort, sorted_by = graph._sort, []

    def watched(*arguments: object) -> object:
        sorted_by.append(threading.current_thread().name)
        return sort(*arguments)  # type: ignore[arg-type]

    loader = NeighborLoader(make_data(generator), [3, 2], batch_size=17, shuffle=True, threads=1, orderings="blocks")
    monkeypatch.setattr(graph, "_sort", watched)
    for batch in loader:
        compiled(batch.x.requires_grad_(), blocks(batch)).sum().backward()

    assert sorted_by
    assert all(name.startswith("plait-loader") for name in sorted_by)


def test_blocks_need_the_counts_of_the_hops(generator: torch.Generator) -> None:
    batch = next(iter(NeighborLoader(make_data(generator), [3], batch_size=4, subgraph_type="induced")))
    with pytest.raises(OptionError, match="the batch has no counts per hop"):
        blocks(batch)


@pytest.mark.parametrize("max_edges", [1, 50, 10_000])
def test_layerwise_is_the_whole_graph(max_edges: int, generator: torch.Generator, tmp_path: pathlib.Path) -> None:
    data = make_data(generator)
    net = Net(SAGEConv(6, 5), SAGEConv(5, 4))
    steps = [lambda x, block, _, layer=layer: layer((x, x[: block.num_dst]), block.edge_index).relu() for layer in net.layers]
    np.save(tmp_path / "x.npy", data.x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = net.on_graph(data.x, data.edge_index)

    assert torch.allclose(layerwise(steps, data, max_edges=max_edges), expected, atol=1e-5)
    assert torch.allclose(layerwise(steps, data, x=mapped, max_edges=max_edges), expected, atol=1e-5)


def test_layerwise_gives_the_edges_their_places(generator: torch.Generator) -> None:
    data = make_data(generator)
    weight = torch.randn(400, generator=generator)

    def weighted(x: Tensor, block: Block, edge_id: Tensor) -> Tensor:
        messages = x[block.edge_index[0]] * weight[edge_id, None]
        return torch.zeros(block.num_dst, x.shape[1]).index_add(0, block.edge_index[1], messages)

    src, dst = data.edge_index
    expected = torch.zeros(80, 6).index_add(0, dst, data.x[src] * weight[:, None])

    assert torch.allclose(layerwise([weighted], data, max_edges=64), expected, atol=1e-5)


def test_layerwise_needs_a_row_for_every_node(generator: torch.Generator) -> None:
    with pytest.raises(ShapeError, match="x has 3 rows for 80 nodes"):
        layerwise([], make_data(generator), x=torch.zeros(3, 2))
