"""Exact inference over all nodes, layer by layer, in memory that does not grow with the graph's edges.

Sampled inference goes through NeighborLoader as training does. Here every layer runs once over all nodes: a node's neighbours
are not computed again for every node that reads them, and nothing is sampled.

Legend: N nodes, S src rows of a chunk, D dst rows of a chunk, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import OptionError, ShapeError
from plait.sampling.batch import mark_dynamic
from plait.sampling.blocks import Block
from plait.sampling.features import FeatureRows, feature_rows
from plait.sampling.plan import SamplerPool, SamplingOptions, make_plan
from plait.sampling.request import Ids, Request
from plait.sampling.source import FeatureOptions, read_source

# layer(x [S, F], block, edge ids [E]) -> [D, ...] or [S, ...], of which the first D rows are taken
Layer = Callable[[Tensor, Block, Tensor], Tensor]


@torch.no_grad()
def layerwise(layers: Sequence[Layer], data: Any, *, x: Any = None, max_edges: int = 1_000_000) -> Tensor:
    """What the layers give for all nodes: [N, ...], on the CPU.

    layers: called once for every chunk of dst nodes, as layer(x, block, edge_id): x [S, F] of the chunk's src nodes, of which
    the first D are its dst nodes; block: all edges into them; edge_id: their places in the graph, to look values up by. For a
    layer of PyG: `lambda x, block, _: conv((x, x[: block.num_dst]), block.edge_index)`.
    data: a PyG Data or plait.loader.Graph; x: its features [N, F] (default: data's "x"; may be a memory-mapped array).
    max_edges: of a chunk; a node with more edges is a chunk of its own. Held at once: the outputs of two layers and one chunk.

    A layer that reads degrees of src nodes (GCNConv) must take its normalisation by edge_id from the whole graph: a chunk has
    all incoming edges of its dst nodes only.  Raises OptionError for a typed graph, ShapeError for rows that are missing.

    >>> from plait.loader import Graph, layerwise
    >>> path = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4, {"x": torch.eye(4)})
    >>> add = lambda x, block, _: x[: block.num_dst].index_add(0, block.edge_index[1], x[block.edge_index[0]])
    >>> layerwise([add], path)[2].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    source = read_source(data, FeatureOptions())
    if source.is_typed:
        raise OptionError("layerwise: expected a graph with one node type")
    num_nodes = source.nodes[0].num_nodes
    rows = source.nodes[0].values.get("x") if x is None else feature_rows(x)
    if rows is None:
        raise OptionError("layerwise: the graph has no 'x'; pass the features as x=")
    if len(rows.data) != num_nodes:
        raise ShapeError(f"layerwise: x has {len(rows.data)} rows for {num_nodes} nodes")
    plan = make_plan(source, SamplingOptions(num_neighbors=[-1]))
    indptr = plan.topology.relations[0].indptr
    with SamplerPool(plan).lend() as sampler:
        for layer in layers:
            out: Tensor | None = None
            for first, last in _chunks(indptr, max_edges):
                found = sampler.sample(Request(0, (np.arange(first, last),), (None,)))
                block = Block(found.edges[0], found.nodes[0], found.nodes[0][: last - first])
                mark_dynamic(block.edge_index, 1)
                chunk = layer(_marked(rows, block.src_id), block, found.edge_ids[0])[: last - first]
                if out is None:
                    out = torch.empty((num_nodes, *chunk.shape[1:]), dtype=chunk.dtype)
                out[first:last] = chunk
            rows = FeatureRows(rows.data[:0] if out is None else out)
    return rows.gather(torch.arange(num_nodes)) if not layers else rows.data  # type: ignore[no-any-return]


def _marked(rows: FeatureRows, index: Tensor) -> Tensor:
    x: Tensor = rows.gather(index)
    mark_dynamic(x, 0)
    return x


def _chunks(indptr: Ids, max_edges: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most max_edges edges each, but at least one row.

    >>> list(_chunks(np.array([0, 2, 4, 9, 10]), 4))
    [(0, 2), (2, 3), (3, 4)]
    """
    first, num_rows = 0, len(indptr) - 1
    while first < num_rows:
        last = int(np.searchsorted(indptr, indptr[first] + max_edges, side="right")) - 1
        last = min(max(last, first + 1), num_rows)
        yield first, last
        first = last
