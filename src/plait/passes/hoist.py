"""Linear layers before propagation: a product of edge rows with a weight becomes products of node rows.

    matmul(gather(x, m), W) = gather(matmul(x, W), m)
    matmul(a + b, W) = matmul(a, W) + matmul(b, W)        (and differences, negation, numbers)
    matmul(cat(a, b), W) = matmul(a, W_a) + matmul(b, W_b)

The operand is flattened into a sum of terms `factor * gather(x, m)` that meet rows of W; terms of the same x and m share one
product, so that `W [x_i, x_j - x_i]` is `gather((W_1 - W_2) x, dst) + gather(W_2 x, src)`: num_nodes rows of products instead
of num_edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import Editor, arguments, aten, is_call, replace, static, value


@dataclass(frozen=True)
class _Term:
    """factor * gather(x, index, wrap), standing in columns [start, start + width) of the operand."""

    x: Node
    index: Node
    wrap: bool  # whether entries may count from the end
    factor: float
    start: int
    width: int


def hoist_products(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law wherever an edge operand is made of gathers alone; returns a line per product moved."""
    moved = []
    for node in list(graph.nodes):
        if not is_call(node, aten.mm.default, aten.addmm.default):
            continue
        bias, rows, weight = _parts(node)
        if not isinstance(rows, Node) or not domains.is_edge(rows) or domains.is_edge(weight):
            continue
        terms = _terms(rows, 1.0, 0, domains)
        if terms is None or not _has_static_width(rows):
            continue
        result = _sum_of_products(Editor(graph, node), terms, weight, bias)
        moved.append(f"{node.name}: product of edge rows moved to {len(_grouped(terms))} products of node rows")
        replace(node, result)
    graph.eliminate_dead_code()
    return moved


def _parts(node: Node) -> tuple[Any, Any, Any]:
    if is_call(node, aten.mm.default):
        return (None, *arguments(node)[:2])
    if node.kwargs:  # addmm with beta or alpha
        return None, None, None
    return arguments(node)[0], arguments(node)[1], arguments(node)[2]


def _has_static_width(rows: Node) -> bool:
    return static(value(rows).shape[1]) is not None


def _terms(node: Any, factor: float, start: int, domains: Domains) -> list[_Term] | None:
    """The operand as a sum of gathers, or None where it is something else."""
    if not isinstance(node, Node) or value(node).dim() != 2 or static(value(node).shape[1]) is None:
        return None
    width = static(value(node).shape[1]) or 0
    if is_call(node, operators.gather):
        x, index = arguments(node)[:2]
        wrap = len(arguments(node)) > 2 and bool(arguments(node)[2])
        return [_Term(x, index, wrap, factor, start, width)]
    if is_call(node, aten.neg.default):
        return _terms(arguments(node)[0], -factor, start, domains)
    if is_call(node, aten.mul.Tensor, aten.mul.Scalar) and isinstance(arguments(node)[1], int | float):
        return _terms(arguments(node)[0], factor * arguments(node)[1], start, domains)
    if is_call(node, aten.add.Tensor, aten.sub.Tensor) and len(arguments(node)) == 2 and not node.kwargs:
        if any(not isinstance(item, Node) or value(item).shape != value(node).shape for item in arguments(node)):
            return None
        sign = -1.0 if is_call(node, aten.sub.Tensor) else 1.0
        return _joined(
            _terms(arguments(node)[0], factor, start, domains), _terms(arguments(node)[1], sign * factor, start, domains)
        )
    if is_call(node, aten.cat.default):
        axis = arguments(node)[1] if len(arguments(node)) > 1 else 0
        if axis not in (1, -1):
            return None
        result: list[_Term] | None = []
        for part in arguments(node)[0]:
            result = _joined(result, _terms(part, factor, start, domains))
            if result is None:
                return None
            start += static(value(part).shape[1]) or 0
        return result
    return None


def _joined(a: list[_Term] | None, b: list[_Term] | None) -> list[_Term] | None:
    return None if a is None or b is None else a + b


def _grouped(terms: list[_Term]) -> dict[tuple[Node, Node, bool], list[_Term]]:
    groups: dict[tuple[Node, Node, bool], list[_Term]] = {}
    for term in terms:
        groups.setdefault((term.x, term.index, term.wrap), []).append(term)
    return groups


def _sum_of_products(edit: Editor, terms: list[_Term], weight: Node, bias: Any) -> Node:
    """Products over node rows, gathered and added; the bias joins the first product, on node rows too."""
    total: Node | None = None
    for (x, index, wrap), group in _grouped(terms).items():
        combined: Node | None = None
        for term in group:
            rows = edit.call(aten.slice.Tensor, weight, 0, term.start, term.start + term.width)
            if term.factor != 1.0:
                rows = edit.call(aten.mul.Tensor, rows, term.factor)
            combined = rows if combined is None else edit.call(aten.add.Tensor, combined, rows)
        assert combined is not None
        if bias is not None and total is None:
            product = edit.call(aten.addmm.default, bias, x, combined)
        else:
            product = edit.call(aten.mm.default, x, combined)
        gathered = edit.call(operators.gather, product, index, *([True] if wrap else []))
        total = gathered if total is None else edit.call(aten.add.Tensor, total, gathered)
    assert total is not None
    return total
