"""Values per edge that many programs need: one writes them, where making them again in each would cost more.

Where edges have a state of their own, that every layer reads and changes (gated graph convolutions, mesh graph nets), each
layer's program would make the states of all layers before it: work that grows with the square of their number, in the forward
and again in the gradients. The values that several programs make alike are found by who makes them; those among them that
others are made of are stored, where that is cheaper by a rough price of bytes and operations: one that was measured would let
what a step keeps depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from plait import operators
from plait.costs import BY_BYTES
from plait.passes.anchors import ancestors_of
from plait.passes.domains import Domains
from plait.passes.edge_scalars import READ, WRITE, row_s, work_s
from plait.passes.edit import RESHAPES, is_call, is_integral, is_view, stored
from plait.passes.fuse import Region

# fewer programs make again what they share, which costs no memory: those of one layer, over both ends and over all edges
MIN_PROGRAMS = 4
# a stored value takes memory, so it must be so many times cheaper by the model
MARGIN = 1.5


def share(graph: Graph, domains: Domains, regions: Sequence[Region]) -> list[Node]:
    """Puts `stored` behind what is to be written, for all programs but one; what is written."""
    makers = _makers(graph, regions)
    groups = [group for group in _groups(makers, domains) if any(map(group.is_end, group.members))]
    if not groups:
        return []
    order, chosen = _Order(graph, regions), dict[Node, None]()
    for group in groups:
        group.choose(chosen)
    for group in reversed(groups):  # what is above is read first: for that, nobody needs to read what is below
        group.read_elsewhere(order.first(group.programs), chosen)
    return list(chosen)


def _makers(graph: Graph, regions: Sequence[Region]) -> dict[Node, int]:
    """The programs that make a value, a bit each; in graph order."""
    makers: dict[Node, int] = {}
    for number, region in enumerate(regions):
        for node in region.members:
            makers[node] = makers.get(node, 0) | 1 << number
    return {node: makers[node] for node in graph.nodes if node in makers}


def _groups(makers: dict[Node, int], domains: Domains) -> list[_Group]:
    """Values per edge by the programs that make them; in graph order of the first of each."""
    groups: dict[int, _Group] = {}
    for node, programs in makers.items():
        if programs.bit_count() >= MIN_PROGRAMS and domains.is_edge(node):
            groups.setdefault(programs, _Group(programs, makers)).members.append(node)
    return list(groups.values())


@dataclass(eq=False)
class _Group:
    """Values that the same programs make."""

    programs: int
    makers: dict[Node, int]
    members: list[Node] = field(default_factory=list)

    def is_end(self, node: Node) -> bool:
        """Whether something else is made of a value, which could be read."""
        if is_integral(node) or is_call(node, operators.gather) or (is_view(node) and not is_call(node, *RESHAPES)):
            return False
        return not all(map(self._is_made_along, node.users))

    def _is_made_along(self, node: Node) -> bool:
        """Whether all of the programs make a value, perhaps others, too."""
        return self.makers.get(node, 0) & self.programs == self.programs

    def choose(self, chosen: dict[Node, None]) -> None:
        """Adds the ends that cost more to make in every other program than to read, given those chosen before."""
        others = self.programs.bit_count() - 1
        for node in filter(self.is_end, self.members):
            again_s = others * math.fsum(work_s(item, None, BY_BYTES) for item in self._made_for(node, chosen))
            if again_s > MARGIN * (WRITE + READ * others) * row_s(node, None, BY_BYTES):
                chosen[node] = None

    def _made_for(self, node: Node, chosen: Collection[Node]) -> set[Node]:
        """A value and what all of the programs make for it, as far as nothing of it is read."""
        stack, seen = [node], {node}
        while stack:
            for item in stack.pop().all_input_nodes:
                if item not in seen and item not in chosen and self._is_made_along(item):
                    seen.add(item)
                    stack.append(item)
        return seen

    def read_elsewhere(self, first: int, chosen: Collection[Node]) -> None:
        """Only the program `first` makes what is chosen; the others read it, and make copies of what lies above."""
        above: dict[Node, Node] = {}
        for node in filter(chosen.__contains__, self.members):
            with node.graph.inserting_after(node):
                above[node] = node.graph.call_function(stored, (node,))
        for node, programs in self.makers.items():
            is_above = not above.keys().isdisjoint(node.all_input_nodes)
            if is_above and node not in above and programs >> first & 1 and programs & self.programs != 1 << first:
                with node.graph.inserting_after(node):
                    above[node] = node.graph.node_copy(node, lambda item: above.get(item, item))
        for node, other in above.items():
            other.meta = dict(node.meta)
            for user in list(node.users):
                if user in self.makers and not self.makers[user] >> first & 1:
                    user.replace_input_with(node, other)
        for other in reversed(above.values()):
            if not other.users:
                other.graph.erase_node(other)


class _Order:
    """Which programs wait for others."""

    def __init__(self, graph: Graph, regions: Sequence[Region]) -> None:
        ancestors = ancestors_of(graph)
        position = {node: number for number, node in enumerate(graph.nodes)}
        self._made = [sum(1 << position[node] for node in region.outputs) for region in regions]
        self._needed = []
        for region in regions:
            inside, needed = set(region.members), 0
            for node in region.members:
                for item in node.all_input_nodes:
                    if item not in inside:
                        needed |= ancestors[item]
            self._needed.append(needed)

    def first(self, programs: int) -> int:
        """The one of some programs that waits for the fewest of them."""
        found = [number for number in range(len(self._made)) if programs >> number & 1]
        return min(found, key=lambda number: sum(1 for other in found if self._made[other] & self._needed[number]))
