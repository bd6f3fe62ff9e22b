"""Which narrow values per edge the forward writes for the backward, where making them again would cost more.

An *edge scalar* is a value with few numbers per edge: an attention weight per head, a gate. The backward's kernels make values
per edge again from node values (see `passes.recompute`), each kernel for itself. A cached edge scalar is written once and read
by each of them instead. Kernels take edges in an order of their own, so that each of these accesses is one at a random place;
the work it is weighed against are gathers of node values, functions and products, as often as there are kernels that do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from torch.fx import Graph, Node

from plait import operators
from plait.costs import Costs
from plait.passes.domains import Domains
from plait.passes.edit import PRODUCTS, aten, inner_sizes, is_call, is_integral, is_tensor, is_view, product_parts, value
from plait.passes.liveness import num_bytes
from plait.passes.recompute import forward_nodes

# numbers per edge: a cache line of float32, which an access at a random place moves in any case
MAX_COLUMNS = 16
# a value with more than this share of the numbers of the widest value of its edges is features, not a scalar
MAX_SHARE = 0.25
# caching takes memory, so it must be so many times cheaper by the model
MARGIN = 1.25

# an access to a cached value beside a gathered row of as many bytes: kernels fetch rows of nodes ahead, these not, and a write
# moves a line both ways (GAT, 1 M edges with 4 heads: a read 11 ns, a write 23 ns, a gathered row 4.6 ns)
READ, WRITE = 2.5, 5.0

# kernels make products in whole vectors: one with a single column takes as long as one with as many as a vector has
VECTOR_BYTES = 64

_FUNCTIONS = (
    *(aten.exp.default, aten.log.default, aten.tanh.default, aten.sigmoid.default, aten.silu.default, aten.gelu.default),
    *(aten.div.Tensor, aten.pow.Tensor_Scalar, aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default),
    *(aten.sin.default, aten.cos.default, aten.erf.default, aten.elu.default, aten.softplus.default, aten.log1p.default),
    operators.uniform,
)
_FOLDS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)

Kernel = tuple[Node | None, int]  # the map whose rows a kernel of the backward walks, and how many kernels come before
Price = Callable[[Node, Node | None, Costs], float]


class EdgeScalars:
    """The edge scalars of a joint graph that could be cached, and what a choice of them costs.

    is_recomputable: which edge values a kernel can make again. Made before `recompute_edges`.
    """

    def __init__(
        self, graph: Graph, num_forward_outputs: int, domains: Domains, is_recomputable: Callable[[Node], bool]
    ) -> None:
        forward = forward_nodes(graph, num_forward_outputs)
        self._again = [
            node
            for node in reversed(graph.nodes)
            if node in forward and node.op == "call_function" and domains.is_edge(node) and is_recomputable(node)
        ]
        kernels = _backward_kernels(graph, forward, domains)
        self._read_by = {node: _union(kernels[user] for user in node.users if user in kernels) for node in self._again}
        self._prices: dict[tuple[Node, Node | None, Price], float] = {}
        widest: dict[Node | None, int] = {}
        for node in self._again:
            widest[domains.of(node)] = max(widest.get(domains.of(node), 0), _columns(node))
        self._candidates = [
            node
            for node in self._again
            if _columns(node) <= min(MAX_COLUMNS, MAX_SHARE * widest[domains.of(node)])
            and not is_integral(node)
            and not is_view(node)
            and not is_call(node, operators.gather, *_COPIES)
        ]

    def all(self) -> set[Node]:
        """The candidates that the backward reads first, when it makes nothing again that a candidate could stand for."""
        return self._read_first(set(self._candidates))

    def cheapest(self, costs: Costs) -> set[Node]:
        """The choice that costs least: from none on and from all on, one more or one less as long as that helps."""
        found = set[Node]()
        nothing_s = self.seconds(found, costs)
        for start in (set[Node](), self.all()):
            tried = self._improved(start, costs)
            if self.seconds(tried, costs) < self.seconds(found, costs):
                found = tried
        return found if self.seconds(found, costs, MARGIN) < nothing_s else set()

    def _improved(self, chosen: set[Node], costs: Costs) -> set[Node]:
        best_s, is_better = self.seconds(chosen, costs), True
        while is_better:
            is_better = False
            for node in self._candidates:
                tried = self._read_first(chosen ^ {node})
                tried_s = self.seconds(tried, costs)
                if tried_s < best_s:
                    chosen, best_s, is_better = tried, tried_s, True
        return chosen

    def _read_first(self, chosen: set[Node]) -> set[Node]:
        """Those of `chosen` that are read: not those below others only."""
        return {node for node, _ in self._reads(chosen) if node in chosen}

    def _reads(self, cached: Collection[Node]) -> Iterable[tuple[Node, frozenset[Kernel]]]:
        """Every value that kernels of the backward read or make again, with those kernels."""
        made: dict[Node, frozenset[Kernel]] = {}
        for node in self._again:  # readers come first
            found = self._read_by[node].union(*(made[user] for user in node.users if user in made))
            if found:
                yield node, found
                if node not in cached:
                    made[node] = found

    def seconds(self, cached: Collection[Node], costs: Costs, margin: float = 1.0) -> float:
        """What the values per edge cost the backward, and the forward for its writing, with these of them cached.

        margin: how many times the accesses to cached values count.
        """
        total = 0.0
        for node, kernels in self._reads(cached):
            if node in cached:
                total += margin * (WRITE + READ * len(kernels)) * self._once(node, None, costs, row_s)
            else:
                # exactly rounded: the order of a set is another in every process
                total += math.fsum(self._once(node, rows, costs, work_s) for rows, _ in kernels)
        return total

    def _once(self, node: Node, rows: Node | None, costs: Costs, price: Price) -> float:
        """A price, worked out once for a value and the rows of a kernel: a choice is compared with many others."""
        key = (node, rows, price)
        if key not in self._prices:
            self._prices[key] = price(node, rows, costs)
        return self._prices[key]


def _backward_kernels(graph: Graph, forward: set[Node], domains: Domains) -> dict[Node, frozenset[Kernel]]:
    """The kernels of the backward that each of its edge values is computed in, as fusing will find them: a reduction over the
    same map joins the kernel, one behind a kernel over another map or behind a product is in a later one."""
    # the number of kernels that a value waits for, and the maps reduced over since
    stages: dict[Node, tuple[int, frozenset[Node]]] = {}
    for node in graph.nodes:
        if node in forward or node.op != "call_function":
            continue
        known = [stages[item] for item in node.all_input_nodes if item in stages]
        stage = max((number for number, _ in known), default=0)
        maps = frozenset[Node]().union(*(reduced for number, reduced in known if number == stage))
        row_map = _map_of(node)
        is_reduction = is_call(node, operators.segment_reduce)
        if maps and (is_call(node, *PRODUCTS) or (not is_reduction and row_map is not None and maps != {row_map})):
            stage, maps = stage + 1, frozenset()
        if is_reduction and row_map is not None:
            maps |= {row_map}
        stages[node] = stage, maps
    reductions = {node: (_map_of(node), stages[node][0]) for node in stages if is_call(node, operators.segment_reduce)}
    at_stage: dict[int, Kernel] = {stage: (rows, stage) for rows, stage in reductions.values()}
    kernels: dict[Node, frozenset[Kernel]] = {}
    for node in reversed(graph.nodes):
        if node in reductions:
            kernels[node] = frozenset([reductions[node]])
        elif node in stages:
            found = _union(kernels[user] for user in node.users if user in kernels) if domains.is_edge(node) else frozenset()
            # a sum over all edges joins a kernel that has its values at hand
            stage = stages[node][0]
            kernels[node] = found or frozenset([at_stage.get(stage, (None, stage))])
    return kernels


def _union(parts: Iterable[frozenset[Kernel]]) -> frozenset[Kernel]:
    return frozenset[Kernel]().union(*parts)


def _map_of(node: Node) -> Node | None:
    if not is_call(node, operators.gather, operators.segment_reduce):
        return None
    index = node.args[1]
    return index if isinstance(index, Node) else None


def _columns(node: Node) -> int:
    found = 1
    for size in inner_sizes(value(node)) or ():
        found *= size
    return max(found, 1)


_COPIES = (aten.clone.default, aten.detach.default, aten.alias.default, aten.expand.default, aten._to_copy.default)


def row_s(node: Node, _: Node | None, costs: Costs) -> float:
    """Seconds to gather a value's rows, each edge's at a random place."""
    size = num_bytes(value(node))
    row_bytes = _columns(node) * value(node).dtype.itemsize
    num_edges: float = size / row_bytes
    return costs.gather(row_bytes, num_edges) * num_edges


def work_s(node: Node, rows: Node | None, costs: Costs) -> float:
    """Seconds to make a value from its operands, in a kernel that walks the rows of a map."""
    if is_view(node) or is_call(node, *_COPIES):
        return 0.0
    val = value(node)
    numel = num_bytes(val) / val.dtype.itemsize
    num_edges = numel / _columns(node) if numel else 0.0
    operands = [item for item in node.all_input_nodes if is_tensor(item)]
    if is_call(node, operators.gather):
        if node.args[1] is rows:
            return 0.0  # once per row
        row_bytes = _columns(node) * val.dtype.itemsize
        return costs.gather(row_bytes, num_bytes(value(operands[0])) / row_bytes) * num_edges
    parts = product_parts(node) if is_call(node, *PRODUCTS) else None
    if parts is not None:
        inner, columns = (float(size) for size in value(parts[2]).shape)
        lanes = VECTOR_BYTES / val.dtype.itemsize
        return costs.product(num_edges, inner, math.ceil(columns / lanes) * lanes)
    if is_call(node, *_FOLDS):
        numel = max((num_bytes(value(item)) / value(item).dtype.itemsize for item in operands), default=numel)
    return costs.elementwise(numel, is_function=is_call(node, *_FUNCTIONS))
