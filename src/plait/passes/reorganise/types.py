"""A row of an edge times the matrix of the edge's type: a product per (row, type) that occurs, not per edge.

    bmm(gather(x, m), gather(W, t)) = gather(grouped_mm(x, pairs(m, t), W), pair)

The pairs are structure: found once per graph, sorted by type, so that there is one product for each type. Where several edges
share a pair its product is computed once, and the gradient of the matrices is a product per type as well. What is there per
edge and depends on no end meets its type sorted by it: as many rows as before, but no matrix is gathered. Where there are
nearly as many matrices as edges (one for each node, say) nothing is gained by sorting, and the product stays.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from plait import operators
from plait.passes import edit
from plait.passes.domains import Domains
from plait.passes.edit import Editor, arguments, aten, is_call, is_tensor, same_size, static, value
from plait.passes.reorganise.guards import expected, is_more_work
from plait.passes.reorganise.separate import Separation
from plait.passes.reorganise.terms import Build, End, Form, Term, Value

_ROWS_PER_TYPE = 4  # edges for each matrix, at least; below that, sorting by type gains nothing
_MIN_EDGES = 512  # of fewer, nothing is concluded
_MAX_TYPES = 256  # of what a sum of products says may be types: more are likely to be nodes, whose number is static at first


def move_typed_products(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law to every product of edge rows with gathered matrices; returns a line per product."""
    moved: list[str] = []
    state = Separation()
    for node in list(graph.nodes):
        found = _typed_product(state, node, domains)
        if found is None:
            continue
        moved.append(f"{node.name}: product with a matrix per edge is one per row and type that occur")
        edit.replace(node, _Products(Editor(graph, node), state, found).built())
        graph.eliminate_dead_code()
        state = Separation()
    return moved


@dataclass(frozen=True)
class _Typed:
    """A product [E, f] x [E, f, o] whose matrices are gathered, however it is written.

    rows: the operand with a row per edge, of three axes, of which `axis` has size 1. weight: one matrix per type, whose axis
    `summed` is f. result_axis: where the result has an axis of size 1; None where it has two axes.
    """

    rows: Node
    axis: int
    types: End
    weight: Value
    summed: int
    result_axis: int | None


def _typed_product(state: Separation, node: Node, domains: Domains) -> _Typed | None:
    if not node.users or not domains.is_edge(node):
        return None
    for rows, matrix, axis, summed, result_axis in matrix_products(node):
        form = state.form(matrix)
        if form is None or not form.layout.is_plain or not same_size(value(rows).shape[0], value(form.rows).shape[0]):
            continue
        single = state.values.single(form) if all(term.columns is None for term in form.terms) else None
        if single is None or not _has_few(single[0], form) or edit.inner_sizes(value(matrix)) is None:
            continue
        if result_axis is None and not _is_shared(state, rows, single[0]):
            continue
        return _Typed(rows, axis, *single, summed, result_axis)
    return None


def matrix_products(node: Node) -> list[tuple[Node, Node, int, int, int | None]]:
    """(rows, matrices, axis, summed, result_axis), as in `_Typed`, of what may be a product of edge rows with matrices.

    bmm(x[:, None], w) = bmm(w^T, x[..., None])^T = sum(x[..., None] * w, 1) = sum(x[:, None] * w^T, 2)
    """
    found: list[tuple[Node, Node, int, int, int | None]]
    if is_call(node, aten.bmm.default):
        left, right = arguments(node)
        found = [(left, right, 1, 1, 1), (right, left, 2, 2, 2)]
    elif is_call(node, aten.sum.dim_IntList) and len(arguments(node)) == 2 and not node.kwargs:
        product, axes = arguments(node)
        if not is_call(product, aten.mul.Tensor) or value(product).dim() != 3 or len(axes) != 1 or axes[0] % 3 == 0:
            return []
        a, b = arguments(product)
        if not all(is_tensor(item) and value(item).dim() == 3 for item in (a, b)):
            return []
        summed = axes[0] % 3
        found = [(rows, matrix, 3 - summed, summed, None) for rows, matrix in ((a, b), (b, a))]
    else:
        return []
    return [item for item in found if _are_rows_and_matrices(*item[:4])]


def _are_rows_and_matrices(rows: Node, matrix: Node, axis: int, summed: int) -> bool:
    """Whether the sizes fit without spreading; a matrix of one row or column is a vector, which fuses as it is."""
    inner, other = static(value(matrix).shape[summed]), static(value(matrix).shape[3 - summed])
    if inner is None or other is None or min(inner, other) < 2:
        return False
    return static(value(rows).shape[axis]) == 1 and static(value(rows).shape[3 - axis]) == inner


def _has_few(types: End, form: Form) -> bool:
    """Whether there are matrices for types, not for nodes."""
    num_types, num_edges = static(value(types.like).shape[0]), expected(value(form.rows).shape[0])
    if num_types is None:
        return False
    return num_edges is None or num_edges < _MIN_EDGES or num_types * _ROWS_PER_TYPE <= num_edges


def _is_shared(state: Separation, rows: Node, types: End) -> bool:
    """Whether edges may share a product. A sum of products that none share is one that kernels add up in registers."""
    num_types, form = static(value(types.like).shape[0]), state.form(rows)
    has_end = form is not None and any(term.end is not None for term in form.terms)
    return has_end and num_types is not None and num_types <= _MAX_TYPES


@dataclass(frozen=True)
class _Products:
    """Builds what stands for one product."""

    edit: Editor
    state: Separation
    found: _Typed

    def built(self) -> Node:
        build = Build(self.edit)
        weight = build.value(self.found.weight, self.found.types.like)
        if self.found.summed == 2:
            weight = self.edit.call(aten.transpose.int, weight, 1, 2)
        total: Node | None = None
        for end, scale, rows, part in self._terms(build):
            item = self._product(rows, end, self._rows_of_weight(weight, part))
            for factor in scale:
                item = self.edit.call(aten.mul.Tensor, self._as_column(factor), item)
            total = item if total is None else self.edit.call(aten.add.Tensor, total, item)
        assert total is not None
        axis = self.found.result_axis
        return total if axis is None else self.edit.call(aten.unsqueeze.default, total, axis)

    def _terms(self, build: Build) -> list[tuple[End | None, tuple[Node, ...], Node, Term | None]]:
        """(end, factors per edge, rows, what says which columns they are of) of each term of the operand."""
        form = self.state.form(self.found.rows)
        if form is None or not form.layout.is_plain or self._is_more_work(form):
            return [(None, (), self.found.rows, None)]
        result = []
        for term in form.terms:
            columns = term.columns
            is_part = columns is not None and columns.axis == 3 - self.found.axis
            whole = replace(term, columns=None) if is_part else term
            like = term.end.like if term.end is not None else form.rows
            rows = build.value(self.state.values.full(whole, form.layout.rank), like)
            result.append((term.end, term.scale, rows, term if is_part else None))
        return result

    def _is_more_work(self, form: Form) -> bool:
        """Whether the products of a form's terms are known to be more than one for each edge."""
        num_edges, num_types = value(form.rows).shape[0], static(value(self.found.types.like).shape[0])
        after = []
        for term in form.terms:
            num_rows = expected(value(term.end.like).shape[0]) if term.end is not None else None
            most = expected(num_edges)
            if num_rows is not None and most is not None:
                most = min(most, num_rows * (num_types or 1))
            share = 1.0
            if term.columns is not None:
                share = (term.columns.stop - term.columns.start) / term.columns.size
            after.append((most if most is not None else num_edges, share))
        return is_more_work([(num_edges, 1.0)], after)

    def _rows_of_weight(self, weight: Node, part: Term | None) -> Node:
        if part is None or part.columns is None:
            return weight
        return self.edit.call(aten.slice.Tensor, weight, 1, part.columns.start, part.columns.stop)

    def _product(self, rows: Node, end: End | None, weight: Node) -> Node:
        """[E, o]: rows of one end, or per edge, with the matrix of each edge."""
        call, types = self.edit.call, self.found.types
        inner = call(aten.squeeze.dim, rows, self.found.axis)
        if end is not None and end.index is types.index:  # the rows have a matrix each
            weight_of = call(aten.bmm.default, call(aten.unsqueeze.default, inner, 1), weight)
            return self._gathered(call(aten.squeeze.dim, weight_of, 1), end.index, end.wrap)
        index = types.index
        pairs = call(operators.pairs, end.index if end is not None else None, index, self.edit.size(types.like, 0))
        pair, row, indptr = (call(operator.getitem, pairs, number) for number in range(3))
        wrap = [True] if end is not None and end.wrap else []
        return self._gathered(call(operators.grouped_mm, inner, row, weight, indptr, *wrap), pair, wrap=False)

    def _gathered(self, rows: Node, index: Node, wrap: bool) -> Node:
        return self.edit.call(operators.gather, rows, index, *([True] if wrap else []))

    def _as_column(self, scale: Any) -> Node:
        assert is_tensor(scale)
        return self.edit.call(aten.reshape.default, scale, [self.edit.size(scale, 0), 1])
