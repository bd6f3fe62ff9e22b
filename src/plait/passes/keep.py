"""Which values over nodes the backward keeps and which it computes again, from the one that costs least for its bytes on.

Kept is what the forward makes and the backward reads. Dropping a value means that the backward computes it again from what is
still kept; as in recomputation by checkpoints (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016), with the
cost of each value instead of whole layers. A dropped value may take others with it into the backward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.costs import Costs
from plait.passes.domains import Domains
from plait.passes.edit import (
    PRODUCTS,
    aten,
    hint,
    is_call,
    is_integral,
    is_tensor,
    is_view,
    most,
    product_parts,
    results_of,
    value,
)
from plait.passes.liveness import num_bytes
from plait.passes.recompute import forward_nodes, give_copies
from plait.passes.structure import is_pure, structural_nodes


@dataclass(frozen=True)
class Dropped:
    """A value the backward computes again: its bytes, and the seconds of the work that is repeated for it."""

    name: str
    num_bytes: int
    seconds: float


class Keeper:
    """What the forward of a joint graph keeps. Made behind `recompute_edges`: values per edge are gone from it
    by then, but for those that are cached."""

    def __init__(self, graph: Graph, num_forward_outputs: int, domains: Domains, costs: Costs) -> None:
        self.graph = graph
        self.domains = domains
        self.costs = costs
        self.forward = forward_nodes(graph, num_forward_outputs)
        self.structure = set(structural_nodes(graph))
        returned = {node for node in results_of(graph)[:num_forward_outputs] if isinstance(node, Node)}
        self.kept = {
            node
            for node in self.forward
            if node.op == "call_function"
            and is_tensor(node)
            and any(user not in self.forward and user.op != "output" for user in node.users)
        }
        pinned = self._under_extrema()
        self._free = [
            node
            for node in graph.nodes
            if node in self.kept
            and node not in returned
            and node not in self.structure
            and node not in pinned
            and not is_integral(node)
        ]

    def _under_extrema(self) -> set[Node]:
        """A maximum with a gradient and everything it is made of: the gradient compares entries with the result bit by bit, so
        that neither may come from another kernel than before."""
        stack = [node for node in self.forward if is_extremum(node) and _is_compared(node)]
        found: set[Node] = set()
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    def order(self) -> list[Dropped]:
        """All that can be dropped, cheapest for its bytes first; the cost of each with those before it gone."""
        chosen: list[Dropped] = []
        gone: set[Node] = set()
        free = list(self._free)
        while free:
            best: tuple[float, Node, float] | None = None
            for node in free:
                seconds = self._seconds(node, gone)
                if seconds is None:
                    continue
                rate = seconds / max(num_bytes(value(node)), 1)
                if best is None or rate < best[0]:
                    best = (rate, node, seconds)
            if best is None:
                break
            _, node, seconds = best
            chosen.append(Dropped(node.name, num_bytes(value(node)), seconds))
            gone.add(node)
            free.remove(node)
        return chosen

    def _again(self, node: Node, gone: Collection[Node]) -> set[Node] | None:
        """The calls that make `node` again from what is kept; None if one of them must not run twice."""
        found: set[Node] = set()
        stack = [node]
        while stack:
            item = stack.pop()
            if item in found:
                continue
            if item is not node and self._is_there(item, gone):
                continue
            if not _runs_twice(item):
                return None
            found.add(item)
            stack.extend(item.all_input_nodes)
        return found

    def _is_there(self, node: Node, gone: Collection[Node]) -> bool:
        return node.op != "call_function" or node in self.structure or (node in self.kept and node not in gone)

    def _seconds(self, node: Node, gone: Collection[Node]) -> float | None:
        again = self._again(node, gone)
        return sum(map(self._cost, again)) if again is not None else None

    def _cost(self, node: Node) -> float:
        """Seconds of one call: products by their operations, propagations by the rows they gather, the rest by its bytes."""
        val = value(node)
        if not is_tensor(node):
            return 0.0
        if is_call(node, *PRODUCTS):
            parts = product_parts(node)
            inner = value(parts[1]).shape[1] if parts is not None else 1
            return self.costs.product(hint(val.shape[0]) or 1.0, hint(inner) or 1.0, hint(val.shape[1]) or 1.0)
        if is_call(node, operators.segment_reduce):
            entries = value(node.args[0])
            rows = most(entries.shape[0]) or 16.0 * (hint(val.shape[0]) or 1.0)
            row_bytes = num_bytes(entries) / max(rows, 1.0)
            return self.costs.gather(row_bytes, hint(val.shape[0]) or 1.0) * rows + self.costs.stream(2.0 * num_bytes(val))
        if self.domains.is_edge(node):
            return 0.0  # a part of the propagation it ends in
        return self.costs.stream(2.0 * num_bytes(val))

    def drop(self, names: Collection[str]) -> None:
        """The backward computes these values again. Edits the graph."""
        gone = {node for node in self._free if node.name in names}
        again: set[Node] = set()
        for node in gone:
            again |= self._again(node, gone) or set()
        give_copies(self.graph, self.forward, lambda node: node in again)


def is_extremum(node: Node) -> bool:
    """Whether a node is a maximum or minimum over rows, plait's or one of torch's (into rows that are not all alike)."""
    if is_call(node, operators.segment_reduce):
        return node.args[3] in ("max", "min")
    if is_call(node, aten.scatter_reduce.two, aten.index_reduce.default):
        return node.args[4] in ("amax", "amin")
    return is_call(node, aten.amax.default, aten.amin.default) and 0 in (node.args[1:2] or ([0],))[0]  # type: ignore[operator]


def _is_compared(node: Node) -> bool:
    """Whether a value, or a view or gather of it, is compared with another for equality."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if is_call(user, aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar):
                return True
            if user not in seen and (is_call(user, operators.gather) or is_view(user)):
                seen.add(user)
                stack.append(user)
    return False


def _runs_twice(node: Node) -> bool:
    """Whether a call gives the same again and changes nothing."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return is_pure(node) and node.target is not operators.dropout
