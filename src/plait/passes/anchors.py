"""What leaves the edges, and what a kernel may compute on the way there: the facts that `fuse` grows its regions by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains, has_one_row
from plait.passes.edit import RESHAPES, SAME, aten, is_call, is_tensor, is_transpose, static, stored, total_product_of, value

Predicate = Callable[[Node], bool]

VIEWS = (*RESHAPES, *SAME)
# a sum over everything of more columns than this, all of them accumulators in one loop, is more than a compiler is good for
_MAX_TOTAL = 1024


@dataclass(frozen=True)
class Facts:
    """What growing needs to know of the graph, computed once. `inside`: values a region may compute instead of reading."""

    domains: Domains
    fusable: Predicate
    inside: Predicate
    position: dict[Node, int]
    ancestors: dict[Node, int]  # bit set of positions


def facts_of(graph: Graph, domains: Domains, fusable: Predicate, inside: Predicate) -> Facts:
    position = {node: number for number, node in enumerate(graph.nodes)}
    return Facts(domains, fusable, inside, position, ancestors_of(graph))


def ancestors_of(graph: Graph) -> dict[Node, int]:
    """What every node is made of, itself included: a bit for each position in the graph."""
    ancestors: dict[Node, int] = {}
    for number, node in enumerate(graph.nodes):
        bits = 1 << number
        for item in node.all_input_nodes:
            bits |= ancestors[item]
        ancestors[node] = bits
    return ancestors


def is_total(node: Node, facts: Facts) -> bool:
    """Whether `node` sums a value of the region's rows over axis 0, or the products of two."""
    factors = total_product_of(node)
    if factors is not None:
        domain = facts.domains.of(factors[0])
        return all(facts.inside(item) for item in factors) and domain is facts.domains.of(factors[1])
    if not is_call(node, aten.sum.dim_IntList):
        return False
    x, axes = node.args[0], node.args[1]
    if not isinstance(x, Node) or not facts.inside(x) or not isinstance(axes, list | tuple) or not axes:
        return False
    if math.prod(static(size) or 1 for size in value(x).shape[1:]) > _MAX_TOTAL:
        return False
    return any(int(axis) % value(x).dim() == 0 for axis in axes)  # type: ignore[arg-type]


def anchor_map(node: Node, facts: Facts) -> tuple[Node | None] | None:
    """(ordering map or None,) if `node` is an anchor; None if it is not."""
    if is_call(node, operators.segment_reduce):
        values = node.args[0]
        # over rows that are nodes (pooling), the values are read: something else computes them
        if not isinstance(values, Node) or not facts.domains.is_fine(values) or has_one_row(values) or not facts.fusable(node):
            return None
        return (node.args[1],)  # type: ignore[return-value]
    if is_total(node, facts) and facts.fusable(node):
        is_made = any(in_cone(item, facts) or is_call(item, stored) for item in total_operands(node))
        return (None,) if is_made else None
    if not in_cone(node, facts) or is_call(node, operators.gather, *VIEWS):
        return None
    leaves = escapes(node, lambda user, item: in_cone(user, facts) or reads_as_anchor(user, item, facts))
    return (None,) if leaves else None


def escapes(node: Node, stays: Callable[[Node, Node], bool]) -> bool:
    """Whether something outside reads `node`, perhaps through views: a view is never written, what it views is."""
    for user in node.users:
        if is_call(user, *VIEWS):
            if escapes(user, stays):
                return True
        elif not stays(user, node):
            return True
    return False


def total_operands(node: Node) -> tuple[Node, ...]:
    """What a total sums over rows."""
    factors = total_product_of(node)
    if factors is not None:
        return factors
    return (node.args[0],) if isinstance(node.args[0], Node) else ()


def reads_as_anchor(user: Node, node: Node, facts: Facts) -> bool:
    """Whether `user` is an anchor that takes `node` into its own cone."""
    if is_transpose(user) and user.users:
        return all(is_total(item, facts) and facts.fusable(item) for item in user.users)
    if is_call(user, operators.segment_reduce):
        return user.args[0] is node and facts.fusable(user)
    return is_total(user, facts) and facts.fusable(user)


def in_cone(node: Node, facts: Facts) -> bool:
    """Whether `node` is an edge value that a region may compute instead of reading."""
    return node.op == "call_function" and is_tensor(node) and facts.inside(node) and facts.fusable(node)


def reduced_value(anchor: Node) -> Node:
    factors = total_product_of(anchor)
    if factors is not None:
        return factors[0]
    if is_call(anchor, operators.segment_reduce, aten.sum.dim_IntList) and isinstance(anchor.args[0], Node):
        return anchor.args[0]
    return anchor


def operands(node: Node) -> list[Node]:
    """Tensor operands that carry values, i.e. not index maps and sizes."""
    if is_call(node, operators.gather, operators.segment_reduce):
        first = node.args[0]
        assert isinstance(first, Node)
        return [first]
    factors = total_product_of(node)
    if factors is not None:
        return list(dict.fromkeys(factors))
    return [item for item in node.all_input_nodes if is_tensor(item)]


def is_same_in_rows(node: Node, rows: Node, facts: Facts) -> bool:
    """Whether an edge value is the same for all edges of a row: made of values gathered by the map of the rows alone."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if item in seen or not facts.inside(item):
            continue
        seen.add(item)
        # draws are counted by edges
        if not in_cone(item, facts) or is_call(item, operators.uniform):
            return False
        if not is_call(item, operators.gather):
            stack.extend(operands(item))
        elif item.args[1] is not rows:
            return False
    return True
