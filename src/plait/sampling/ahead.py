"""Orderings of a batch's edges, built by the threads that prepare it, so that a compiled model finds them instead of sorting.

A compiled model asks `graph.ordered` for the edges by dst in its forward and by src in its backward. It finds by content what a
thread has asked for before it. On a machine whose processors all compute anyway this moves work and saves none.
"""

from __future__ import annotations

from plait import graph
from plait.errors import OptionError
from plait.sampling.batch import Sliced

ORDERINGS = ("blocks", "batch")


def check(orderings: str | None) -> None:
    """Raises OptionError for a name that is none of ORDERINGS."""
    if orderings is not None and orderings not in ORDERINGS:
        raise OptionError(f"orderings: expected {' or '.join(map(repr, ORDERINGS))} or None, got {orderings!r}")


def order_ahead(sliced: Sliced, orderings: str) -> None:
    """Order the edges of a batch of one node type as a model on its blocks, or on the whole of it, will ask for.

    Batches of several types, and those without counts per hop when it is for blocks, are left as they are.
    """
    if len(sliced.edges) != 1 or len(sliced.sampled.nodes) != 1 or (orderings == "blocks" and not sliced.has_counts):
        return
    edge_index, nodes, edges = sliced.edges[0], sliced.sampled.nodes_per_hop[0], sliced.sampled.edges_per_hop[0]
    sizes = [(edge_index.shape[1], sum(nodes), sum(nodes))]
    if orderings == "blocks":
        sizes = [(sum(edges[:hops]), sum(nodes[: hops + 1]), sum(nodes[:hops])) for hops in range(len(edges), 0, -1)]
    for num_edges, num_src, num_dst in sizes:
        src, dst = edge_index[:, :num_edges]
        graph.ordered(dst, num_dst, [(src, num_src)], with_edge_id=False)
        graph.ordered(src, num_src, [(dst, num_dst)], with_edge_id=False)
