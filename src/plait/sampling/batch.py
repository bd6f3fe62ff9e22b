"""A batch of the user's class from what was sampled: features sliced, edges turned round if asked, sizes marked dynamic.

Legend: R rows of a node type in the batch, E edges of a type in the batch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.sampling.request import Sampled
from plait.sampling.source import EdgeSet, Source


@dataclass(frozen=True, eq=False)
class Sliced:
    """A sampled batch with its rows: values by name, by node type and by edge type.

    edges: int64 [2, E] by edge type, ascending dst.  edge_ids: int64 [E], or None where edges were turned round between types.
    has_counts: whether the counts per hop still describe the edges.
    """

    sampled: Sampled
    edges: tuple[Tensor, ...]
    edge_ids: tuple[Tensor | None, ...]
    node_values: tuple[dict[str, Any], ...]
    edge_values: tuple[dict[str, Any], ...]
    has_counts: bool


def slice_rows(source: Source, sampled: Sampled, *, is_bidirectional: bool, is_induced: bool) -> Sliced:
    """Everything the batch takes from the graph, copied: the part that threads do."""
    edges: tuple[Tensor, ...] = sampled.edges
    edge_ids: tuple[Tensor | None, ...] = sampled.edge_ids
    if is_bidirectional:
        edges, edge_ids = _in_both_directions(source.edges, sampled)
    return Sliced(
        sampled,
        edges,
        edge_ids,
        tuple(
            {name: rows.gather(ids) for name, rows in nodes.values.items()}
            for nodes, ids in zip(source.nodes, sampled.nodes, strict=True)
        ),
        tuple(
            {name: None if ids is None else rows.gather(ids) for name, rows in edge_set.values.items()}
            for edge_set, ids in zip(source.edges, edge_ids, strict=True)
        ),
        has_counts=not is_bidirectional and not is_induced,
    )


def assemble(source: Source, sliced: Sliced) -> Any:
    """The batch, of the user's class, with PyG's attributes except those of the seeds."""
    batch = source.new_batch()
    sampled = sliced.sampled
    for number, nodes in enumerate(source.nodes):
        store = batch if nodes.name is None else batch[nodes.name]
        ids = sampled.nodes[number]
        for name, value in sliced.node_values[number].items():
            setattr(store, name, value)
        if nodes.says_count:
            store.num_nodes = ids.shape[0]
        if "n_id" not in sliced.node_values[number]:
            store.n_id = ids
        store.batch = None if sampled.trees is None else sampled.trees[number]
        store.num_sampled_nodes = list(sampled.nodes_per_hop[number]) if sliced.has_counts else None
        for name, rows in nodes.values.items():
            mark_dynamic(sliced.node_values[number][name], rows.dim)
        mark_dynamic(ids, 0)
    for number, edges in enumerate(source.edges):
        store = batch if edges.name is None else batch[edges.name]
        for name, value in sliced.edge_values[number].items():
            setattr(store, name, value)
        store.edge_index = sliced.edges[number]
        found = sliced.edge_ids[number]
        if found is not None and "e_id" not in sliced.edge_values[number]:
            store.e_id = found
        store.num_sampled_edges = list(sampled.edges_per_hop[number]) if sliced.has_counts else None
        for name, rows in edges.values.items():
            mark_dynamic(sliced.edge_values[number][name], rows.dim)
        mark_dynamic(sliced.edges[number], 1)
        mark_dynamic(found, 0)
    return batch


def mark_dynamic(value: Any, dim: int) -> None:
    """Tell torch.compile that a size differs from batch to batch, so that the second batch does not compile again."""
    dynamo = sys.modules.get("torch._dynamo")  # where nothing was compiled yet, importing it would cost more than it saves
    if dynamo is not None and isinstance(value, Tensor):
        dynamo.maybe_mark_dynamic(value, dim)


def _in_both_directions(
    edge_sets: tuple[EdgeSet, ...], sampled: Sampled
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Every edge also the other way round, in the edge type that is its reverse; repeated pairs once.

    With one edge type a reversed edge keeps the number of the edge it comes from; between types it has none, so edges that
    were turned round have no ids and no values.
    """
    edges = list(sampled.edges)
    edge_ids: list[Tensor | None] = list(sampled.edge_ids)
    done: set[int] = set()
    for number, edge_set in enumerate(edge_sets):
        reverse = _reverse_of(edge_sets, edge_set)
        if reverse is None or number in done:
            continue
        there, back = sampled.edges[number], sampled.edges[reverse]
        both = torch.cat([there, back.flip(0)], dim=1)
        first = _first_of_each(both)
        edges[number] = both[:, first]
        if edge_set.name is None:
            ids = sampled.edge_ids[number]
            edge_ids[number] = torch.cat([ids, ids])[first]
            continue
        edge_ids[number] = edge_ids[reverse] = None
        if reverse != number:
            turned = edges[number].flip(0)
            edges[reverse] = turned[:, _first_of_each(turned)]
        done |= {number, reverse}
    return tuple(edges), tuple(edge_ids)


def _reverse_of(edge_sets: tuple[EdgeSet, ...], edge_set: EdgeSet) -> int | None:
    """The number of the edge type that runs the other way: named rev_..., or the only one between these types."""
    if edge_set.name is None:
        return 0
    src, relation, dst = edge_set.name
    names = [other.name for other in edge_sets]
    for candidate in (f"rev_{relation}", relation.removeprefix("rev_")):
        if candidate != relation and (dst, candidate, src) in names:
            return names.index((dst, candidate, src))
    if src == dst:
        return names.index(edge_set.name)
    found = [number for number, name in enumerate(names) if name is not None and (name[0], name[2]) == (dst, src)]
    return found[0] if len(found) == 1 else None


def _first_of_each(edge_index: Tensor) -> Tensor:
    """Positions of the first edge of every pair (src, dst), by dst, then src: int64."""
    src, dst = edge_index.numpy()
    order = np.lexsort((src, dst))  # stable: of equal pairs the first comes first
    if not len(order):
        return torch.zeros(0, dtype=torch.int64)
    src, dst = src[order], dst[order]
    fresh = np.concatenate([[True], (src[1:] != src[:-1]) | (dst[1:] != dst[:-1])])
    return torch.from_numpy(order[fresh])
