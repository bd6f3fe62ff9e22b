"""What a loader reads, one form for all inputs: PyG's Data and HeteroData, or a plain `Graph`; and how their batches are made.

PyG is imported only where the user gave one of its objects: whoever has such an object has imported it already.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.errors import OptionError, ShapeError
from plait.sampling.features import FeatureRows, feature_rows

Named = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph as plain tensors, for use without PyG.

    edge_index: int64 [2, E], row 0 src, row 1 dst.  nodes, edges: values by name, [num_nodes, ...] and [E, ...], as tensors or
    NumPy arrays (`np.load(path, mmap_mode="r")` for features larger than memory).

    >>> Graph(torch.tensor([[0, 1], [1, 2]]), num_nodes=3, nodes={"x": torch.zeros(3, 8)}).num_nodes
    3
    """

    edge_index: Tensor
    num_nodes: int
    nodes: Named = field(default_factory=dict)
    edges: Named = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values, count in (("nodes", self.nodes, self.num_nodes), ("edges", self.edges, self.edge_index.shape[1])):
            for name, value in values.items():
                if len(value) != count:
                    raise ShapeError(f"{what}[{name!r}]: expected {count} rows, got shape {list(value.shape)}")


class GraphBatch(types.SimpleNamespace):
    """A batch of a plain `Graph`: the attributes of PyG's batches, as attributes."""


@dataclass(frozen=True, eq=False)
class NodeSet:
    """The nodes of one type: name (None where there is one type), how many, their values by name.

    says_count: whether batches say how many nodes they have; PyG finds it out from other attributes where its data does.
    """

    name: str | None
    num_nodes: int
    values: dict[str, FeatureRows]
    says_count: bool = True


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """The edges of one type: name (None where there is one type), numbers of the types at their ends, values by name."""

    name: tuple[str, str, str] | None
    src_type: int
    dst_type: int
    edge_index: Tensor
    values: dict[str, FeatureRows]


@dataclass(frozen=True, eq=False)
class Source:
    """nodes, edges: by type. new_batch: an empty batch of the user's class, with what belongs to the graph as a whole."""

    nodes: tuple[NodeSet, ...]
    edges: tuple[EdgeSet, ...]
    is_typed: bool
    new_batch: Callable[[], Any]

    def node_type(self, name: str | None) -> int:
        """The number of a node type. Raises OptionError for one that is not there."""
        for number, nodes in enumerate(self.nodes):
            if nodes.name == name:
                return number
        raise OptionError(f"node type {name!r}: the graph has {', '.join(repr(nodes.name) for nodes in self.nodes)}")

    def edge_type(self, name: Any) -> int:
        """The number of an edge type; a pair (src, dst) or a relation alone does where it is the only one."""
        wanted = (name,) if isinstance(name, str) else name
        found = [number for number, edges in enumerate(self.edges) if _matches(edges.name, wanted)]
        if len(found) == 1:
            return found[0]
        raise OptionError(f"edge type {name!r}: the graph has {', '.join(repr(edges.name) for edges in self.edges)}")


def _matches(name: tuple[str, str, str] | None, wanted: Any) -> bool:
    if name is None or wanted is None or name == tuple(wanted):
        return name is None or wanted is not None
    return tuple(wanted) in ((name[1],), (name[0], name[2]))


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """upcast: half precision arrives as float32. num_hot: rows of every memory-mapped file that are kept in memory."""

    upcast: bool = False
    num_hot: int = 0


def read_source(data: Any, options: FeatureOptions) -> Source:
    """The source that a loader's first argument is. Raises OptionError for what it cannot be."""
    if isinstance(data, Graph):
        return _from_graph(data, options)
    pyg = sys.modules.get("torch_geometric.data")
    if pyg is not None and isinstance(data, pyg.HeteroData):
        return _from_hetero(data, options)
    if pyg is not None and isinstance(data, pyg.Data):
        return _from_data(data, options)
    raise OptionError(
        f"data: expected a Data or HeteroData of PyG, or a plait.loader.Graph, got {type(data).__name__}\n"
        "  Feature and graph stores are not read; put their tensors (memory-mapped ones too) into one of these."
    )


def _from_graph(data: Graph, options: FeatureOptions) -> Source:
    popularity = _popularity(data.num_nodes, [data.edge_index]) if options.num_hot else None
    nodes = {name: _rows(value, 0, options, popularity) for name, value in data.nodes.items()}
    edges = {name: _rows(value, 0, options, None) for name, value in data.edges.items()}
    return Source((NodeSet(None, data.num_nodes, nodes),), (EdgeSet(None, 0, 0, data.edge_index, edges),), False, GraphBatch)


def _from_data(data: Any, options: FeatureOptions) -> Source:
    store = data._store
    edge_index = _edge_index(data, "data")
    popularity = _popularity(data.num_nodes, [] if edge_index is None else [edge_index]) if options.num_hot else None
    nodes = NodeSet(None, data.num_nodes, _values(store, store.is_node_attr, options, popularity), "num_nodes" in store)
    if edge_index is None:
        return Source((nodes,), (), False, lambda: copy.copy(data))
    edges = EdgeSet(None, 0, 0, edge_index, _values(store, store.is_edge_attr, options, None))
    return Source((nodes,), (edges,), False, lambda: copy.copy(data))


def _from_hetero(data: Any, options: FeatureOptions) -> Source:
    node_types, edge_types = data.metadata()
    number = {name: position for position, name in enumerate(node_types)}
    given = {name: _edge_index(data[name], f"data[{name!r}]") for name in edge_types}
    indices = {name: index for name, index in given.items() if index is not None}
    nodes = []
    for name in node_types:
        store = data[name]
        found = [index for edge_type, index in indices.items() if edge_type[0] == name]
        popularity = _popularity(store.num_nodes, found) if options.num_hot else None
        values = _values(store, store.is_node_attr, options, popularity)
        nodes.append(NodeSet(name, store.num_nodes, values, "num_nodes" in store))
    edges = []
    for name, index in indices.items():
        values = _values(data[name], data[name].is_edge_attr, options, None)
        edges.append(EdgeSet(name, number[name[0]], number[name[-1]], index, values))
    return Source(tuple(nodes), tuple(edges), True, lambda: copy.copy(data))


def _edge_index(store: Any, what: str) -> Tensor | None:
    """The edges of a store; None where it has none. Raises OptionError for edges that are not in an edge_index."""
    edge_index = store.get("edge_index")
    if isinstance(edge_index, Tensor):
        return edge_index.as_subclass(Tensor)  # PyG's EdgeIndex is a subclass with rules of its own
    if store.get("adj_t") is None:
        return None
    raise OptionError(f"{what}.edge_index: expected int64 [2, E], got adj_t alone\n  Store the matrix's indices as edge_index.")


def _values(
    store: Any, belongs: Callable[[str], bool], options: FeatureOptions, popularity: NDArray[np.int64] | None
) -> dict[str, FeatureRows]:
    """What is sliced along: values of a store that PyG counts as one a node (or an edge)."""
    found: dict[str, FeatureRows] = {}
    for key, value in store.items():
        if key in ("edge_index", "adj_t", "num_nodes") or not belongs(key):
            continue
        dim = store._parent().__cat_dim__(key, value, store)
        found[key] = _rows(value, dim, options, popularity)
    return found


def _rows(value: Any, dim: int, options: FeatureOptions, popularity: NDArray[np.int64] | None) -> FeatureRows:
    return feature_rows(value, dim=dim, upcast=options.upcast, num_hot=options.num_hot, popularity=popularity)


def _popularity(num_nodes: int, edge_indices: list[Tensor]) -> NDArray[np.int64]:
    """Outgoing edges of every node: a node is sampled as often as others have it for a neighbour."""
    count = torch.zeros(num_nodes, dtype=torch.int64)
    for edge_index in edge_indices:
        count += torch.bincount(edge_index[0], minlength=num_nodes)
    return count.numpy()
