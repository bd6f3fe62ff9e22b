"""What is sampled from: for every edge type, the incoming edges of every node, in the arrays that the sampler reads.

Legend: N nodes of a type, E edges of a type; a relation is an edge type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait import graph
from plait.errors import OptionError, ShapeError
from plait.sampling import native

_MAX_NODES = 2**31


@dataclass(frozen=True, eq=False, slots=True)
class Relation:
    """The edges of one type by dst; with time, the edges of a dst by time.

    src_type, dst_type: numbers of node types.  indptr: int64 [N_dst + 1].  indices: int32 [E], src.
    edge_id: int32 or int64 [E], position in the user's order; None: the same order.
    time: int64 [E], of the edge or of its src.  weight: float64 [E], positive.  cumulative: float64 [E], weights summed up from
    the first edge of the dst on.
    """

    src_type: int
    dst_type: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    edge_id: NDArray[np.int32] | NDArray[np.int64] | None
    time: NDArray[np.int64] | None = None
    weight: NDArray[np.float64] | None = None
    cumulative: NDArray[np.float64] | None = None

    @property
    def num_edges(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False, slots=True)
class Topology:
    """num_nodes: of every node type; relations: in the order in which they are sampled."""

    num_nodes: tuple[int, ...]
    relations: tuple[Relation, ...]


def build_relation(
    edge_index: Tensor,
    src: tuple[int, int],
    dst: tuple[int, int],
    *,
    edge_time: Tensor | None = None,
    src_time: Tensor | None = None,
    weight: Tensor | None = None,
) -> Relation:
    """The edges [2, E] of one type, ordered for sampling.

    src, dst: number of the node type, and how many nodes it has. edge_time int [E] or src_time int [N_src]; weight float [E]:
    edges of weight 0 are left out, they would never be picked. Raises IndexMapError for ids out of range, ShapeError for
    lengths that do not fit, OptionError for times that are not whole numbers and weights that are negative or not finite.
    """
    if max(src[1], dst[1]) >= _MAX_NODES:
        raise ShapeError(f"sampling: a node type has {max(src[1], dst[1])} nodes, at most {_MAX_NODES - 1} can be sampled from")
    edge_index = edge_index.cpu()
    num_edges = edge_index.shape[1]
    time = edge_time if edge_time is not None else None if src_time is None else src_time[edge_index[0]]
    time = None if time is None else _checked_time(time, num_edges)
    weight = None if weight is None else _checked_weight(weight, num_edges)
    before = _first_order(time, weight)
    rows, cols = (edge_index[1], edge_index[0]) if before is None else (edge_index[1][before], edge_index[0][before])
    order = graph.ordered(rows, dst[1], [(cols, src[1])], with_edge_id=True)
    assert order.indptr is not None
    edge_id = order.edge_id if before is None else before if order.edge_id is None else before[order.edge_id]
    indptr = order.indptr.numpy()
    found_time = None if time is None else time.numpy() if edge_id is None else time[edge_id].numpy()
    found_weight = None if weight is None else weight.numpy() if edge_id is None else weight[edge_id].numpy()
    return Relation(
        src_type=src[0],
        dst_type=dst[0],
        indptr=indptr,
        indices=order.indices[0].to(torch.int32).numpy(),
        edge_id=None if edge_id is None else edge_id.numpy(),
        time=found_time,
        weight=found_weight,
        cumulative=None if found_weight is None else native.cumulate(indptr, found_weight),
    )


def _first_order(time: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """The edges that can be picked, by time, for a stable sort by dst to follow; int64, or None for all as they are."""
    kept = None if weight is None or bool((weight > 0).all()) else (weight > 0).nonzero().flatten()
    if time is None:
        return kept
    times = time if kept is None else time[kept]
    if bool((times[1:] >= times[:-1]).all()):
        return kept
    by_time = torch.sort(times, stable=True).indices
    return by_time if kept is None else kept[by_time]


def _checked_time(time: Tensor, num_edges: int) -> Tensor:
    if time.is_floating_point():
        raise OptionError(
            f"time_attr: expected whole numbers, got {str(time.dtype).removeprefix('torch.')}\n"
            "  Count in a smaller unit, such as milliseconds, and convert with .long()."
        )
    if time.numel() != num_edges:
        raise ShapeError(f"time_attr: expected one time an edge, {num_edges}, got shape {list(time.shape)}")
    return time.cpu().flatten().long()


def _checked_weight(weight: Tensor, num_edges: int) -> Tensor:
    if weight.numel() != num_edges:
        raise ShapeError(f"weight_attr: expected one weight an edge, {num_edges}, got shape {list(weight.shape)}")
    weight = weight.cpu().flatten().double()
    wrong = ((weight < 0) | ~weight.isfinite()).nonzero().flatten()
    if wrong.numel():
        position = int(wrong[0])
        raise OptionError(
            f"weight_attr: expected finite weights of at least 0, got {float(weight[position])} at edge {position}"
        )
    return weight
