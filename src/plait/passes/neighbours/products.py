"""Products of a row's own vector with its entries (`einsum`, `q @ k.mT`) are written out: a multiplication and a sum.

With one vector per row nothing gets wider by it, and what is written out is fused. A score per entry that comes out as
[N, 1, K] is made as [N, K], and what is done to it (a scale, a softmax) is done there.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from plait.passes.domains import is_elementwise
from plait.passes.edit import RESHAPES, SAME, Editor, arguments, aten, is_call, is_tensor, replace, same_shape, same_size, value
from plait.passes.neighbours.matrix import Matrix

_SOFTMAX = (aten._softmax.default, aten._log_softmax.default)
_VIEWS = (*RESHAPES, *SAME, aten.expand.default)
_TRANSPOSES = (aten.permute.default, aten.transpose.int)


def expand_products(graph: Graph, matrix: Matrix, depends: set[Node]) -> None:
    """Edits the products and scores of one matrix [N, K], among what depends on rows that it gathers."""
    if matrix.rank != 2:
        return
    for node in list(graph.nodes):
        if node not in depends or not is_tensor(node):
            continue
        edit = Editor(graph, node)
        result = _product(edit, node, matrix) if is_call(node, aten.bmm.default) else _on_scores(edit, node, matrix)
        if result is not None:
            depends |= set(result.all_input_nodes) | {result}
            replace(node, result)


def _product(edit: Editor, node: Node, matrix: Matrix) -> Node | None:
    """A product [N, a, b] [N, b, c] in which K is one of the sizes, another is 1, and the third the entries' own."""
    left, right = (_source(item) for item in arguments(node))
    (_, a, b), c = value(arguments(node)[0]).shape, value(node).shape[2]
    num_columns = value(matrix.node).shape[1]
    if same_size(a, 1) and same_size(c, num_columns) and _is_entries(_transposed(right), matrix):
        scores = _summed(edit, left, _transposed(right), -1)
        return edit.call(aten.unsqueeze.default, scores, 1)
    if same_size(c, 1) and same_size(a, num_columns) and _is_entries(left, matrix):
        scores = _summed(edit, left, edit.call(aten.transpose.int, right, 1, 2), -1)
        return edit.call(aten.unsqueeze.default, scores, 2)
    if same_size(a, 1) and same_size(b, num_columns) and _is_entries(right, matrix):
        weights = edit.call(aten.reshape.default, left, [*matrix.sizes, 1])
        return edit.call(aten.unsqueeze.default, _summed(edit, weights, right, 1), 1)
    if same_size(c, 1) and same_size(b, num_columns) and _is_entries(_transposed(left), matrix):
        return edit.call(aten.unsqueeze.default, _summed(edit, _transposed(left), right, 1), 2)
    return None


def _summed(edit: Editor, a: Any, b: Any, axis: int) -> Node:
    return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, a, b), [axis])


def _is_entries(node: Node | None, matrix: Matrix) -> bool:
    return node is not None and value(node).dim() == 3 and matrix.has_entries(node)


def _source(node: Node) -> Node:
    """The value without views that change nothing, and without an axis order that another undoes."""
    while True:
        if is_call(node, *_VIEWS) and same_shape(value(node).shape, value(arguments(node)[0]).shape):
            node = arguments(node)[0]
            continue
        if is_call(node, aten.permute.default) and list(arguments(node)[1]) == list(range(value(node).dim())):
            node = arguments(node)[0]
            continue
        inner = _transposed(node)
        again = _transposed(_source(inner)) if inner is not None else None
        if again is None:
            return node
        node = again


def _transposed(node: Node | None) -> Node | None:
    """What a call swaps the last two of three axes of."""
    if node is None or not is_call(node, *_TRANSPOSES) or value(node).dim() != 3:
        return None
    x, *axes = arguments(node)
    if is_call(node, aten.permute.default):
        return x if [axis % 3 for axis in axes[0]] == [0, 2, 1] else None
    return x if sorted(axis % 3 for axis in axes) == [1, 2] else None


def _on_scores(edit: Editor, node: Node, matrix: Matrix) -> Node | None:
    """f(unsqueeze(scores, 1)) = unsqueeze(f(scores), 1), for what is done to each score and for a softmax over them."""
    if value(node).dim() != 3:
        return None
    if is_call(node, *_SOFTMAX):
        scores = _scores(arguments(node)[0], matrix)
        if scores is None or arguments(node)[1] % 3 != 2:
            return None
        result = edit.call(node.target, scores, 1, arguments(node)[2])  # type: ignore[arg-type]
        return edit.call(aten.unsqueeze.default, result, 1)
    if not is_elementwise(node):
        return None
    operands = [_scores(item, matrix) if is_tensor(item) and value(item).dim() > 0 else item for item in node.args]
    if None in operands or not any(map(is_tensor, operands)):
        return None
    return edit.call(aten.unsqueeze.default, edit.call(node.target, *operands, **node.kwargs), 1)  # type: ignore[arg-type]


def _scores(node: Any, matrix: Matrix) -> Node | None:
    """[N, K] of [N, 1, K] that it was made of."""
    if not same_shape(value(node).shape, _with_axis(matrix)):
        return None
    while is_call(node, *_VIEWS):
        node = arguments(node)[0]
        if same_shape(value(node).shape, value(matrix.node).shape):
            return node  # type: ignore[no-any-return]
    return None


def _with_axis(matrix: Matrix) -> tuple[Any, ...]:
    num_rows, num_columns = value(matrix.node).shape
    return (num_rows, 1, num_columns)
