"""`A (X W)` or `(A X) W`: a product with a weight goes before or behind a propagation, whichever costs less.

A *propagation* is y[i] = sum over the edges e into i of c[e, k] x[src e, ...]: a gather, factors per edge that are the same for
all columns, perhaps a sum over k, a sum over the edges. With P[i, k, f] = sum_e c[e, k] x[src e, f] and a weight W[f, k, o],

    sum_e sum_k c[e, k] (x W)[src e, k, o]  =  sum_k sum_f P[i, k, f] W[f, k, o]

The left side gathers rows of k * o columns, the right side rows of f columns. The products cost the same, unless edges lead
from many rows to few; what differs is the width of what travels along the edges, forward and backward, and what the backward
needs no propagation for:

|                                   | x W first                   | propagate first                            |
|-----------------------------------|-----------------------------|--------------------------------------------|
| forward                           | k * o                       | f                                          |
| gradient of W                     | o, shared with that of x    | none: P is kept                            |
| gradient of x, if wanted          |                             | o, then a product; or k * f, after it      |
| gradient of c, if wanted          | none, or k * o              | k * f, shared with that of x; or f         |

(The gradient of c is made where the gradient of x is, unless it goes through a sum over the edges of a row, as in a softmax.)

The gradient of x is a propagation behind a product itself, along the turned edges: the same law decides its order on the joint
graph. After Bazinska et al., "Cached Operator Reordering" (arXiv 2308.12093), who choose by widths alone; here the widths are
weighed with what rows of them cost on this machine (`plait.costs`). Where P cannot be kept (a memory budget), the gradient of
W takes one more propagation of f columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as changed

from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import PRODUCTS, Editor, arguments, aten, is_call, product_parts, replace, static, value
from plait.passes.order_costs import Setting, Sizes, seconds_behind, seconds_first
from plait.passes.propagation import Factor, factor_of, propagate, propagation

MARGIN = 1.05  # another order than the user's must be so many times cheaper, by the model


@dataclass(frozen=True)
class Ordered:
    """moved: a line per product moved. seconds: what a step is predicted to take for the propagations that have a product next
    to them, in the order they have now, if it keeps what was propagated."""

    moved: tuple[str, ...]
    seconds: float


def order_products(graph: Graph, domains: Domains, setting: Setting) -> Ordered:
    """Puts products before or behind propagations, each where it costs less. Edits the graph."""
    choices: list[_Choice] = []
    if setting.order == "as_written":
        return Ordered((), 0.0)
    for node in list(graph.nodes):
        if not setting.is_movable(node):
            continue
        choice = None
        if is_call(node, operators.segment_reduce) and node.users:
            choice = _behind(graph, node, domains, setting)
        elif is_call(node, *PRODUCTS):
            choice = _before(graph, node, domains, setting)
        if choice is not None:
            choices.append(choice)
    graph.eliminate_dead_code()
    return Ordered(tuple(item.moved for item in choices if item.moved), sum(item.seconds for item in choices))


@dataclass(frozen=True)
class _Choice:
    """At one propagation. moved: a line, empty where nothing has moved. seconds: as `Ordered.seconds`."""

    seconds: float
    moved: str = ""


def _behind(graph: Graph, reduce: Node, domains: Domains, setting: Setting) -> _Choice | None:
    """sum_e sum_k c[e, k] gather(x W)[e, k] = (sum_e c[e, k] gather(x)[e]) W: the product moves behind the propagation."""
    found = propagation(reduce, domains)
    if found is None or not is_call(found.source, aten.mm.default):
        return None
    x, weight = arguments(found.source)[:2]
    if len(_readers(found.gather)) > 1:  # the rows of x W travel along these edges in any case
        return None
    heads = found.heads if found.is_summed else 1
    width_x, width_y = static(value(x).shape[1]), static(value(reduce).shape[1])
    if domains.is_edge(x) or width_x is None or width_y is None or heads is None or (found.heads or 1) != heads:
        return None
    sizes = Sizes.of(found, width_x, width_y, heads)
    is_kept = len(_readers(found.source)) > 1  # something else reads x W: then the other order is one more product
    extra = setting.costs.product(sizes.num_sources, width_x, heads * width_y) if is_kept else 0.0
    first, behind = seconds_first(found, x, sizes, setting), seconds_behind(found, x, sizes, setting)
    if not _is_chosen("behind", behind + extra, first, setting):
        return _Choice(first)
    edit = Editor(graph, reduce)
    _count_rows_of(found.source, x)
    summed = propagate(edit, found, x, heads)
    replace(reduce, edit.call(aten.mm.default, summed, _stacked(edit, weight, width_x, heads, width_y)))
    return _Choice(
        seconds_behind(found, x, sizes, _keeping(setting)) + extra,
        f"{found.source.name}: product moved behind the sum over edges, which carry {width_x} columns, not {heads * width_y}",
    )


def _keeping(setting: Setting) -> Setting:
    return changed(setting, keeps_sums=True)


def _is_chosen(order: str, seconds: float, seconds_now: float, setting: Setting) -> bool:
    return setting.order == order or (setting.order == "auto" and seconds * MARGIN <= seconds_now)


def _readers(node: Node) -> list[Node]:
    """Who reads the values of a node, not its sizes."""
    return [user for user in node.users if not is_call(user, aten.sym_size.int)]


def _count_rows_of(product: Node, x: Node) -> None:
    """Where the number of rows of x W is asked for, x has the answer."""
    for user in list(product.users):
        if is_call(user, aten.sym_size.int) and arguments(user)[1] == 0:
            user.args = (x, 0)


def _before(graph: Graph, product: Node, domains: Domains, setting: Setting) -> _Choice | None:
    """(sum_e c[e] gather(x)[e] + r) W = sum_e c[e] gather(x W)[e] + r W: the product moves before the propagation."""
    parts = product_parts(product)
    if parts is None or domains.is_edge(product):
        return None
    bias, rows, weight = parts
    terms = _row_terms(rows, 1.0)
    sums = [term for term in terms if is_call(term.rows, operators.segment_reduce)]
    if len(sums) != 1 or not all(term.is_private for term in sums):
        return None
    found = propagation(sums[0].rows, domains)
    width_x, width_y = static(value(rows).shape[1]), static(value(product).shape[1])
    if found is None or found.heads is not None or width_x is None or width_y is None:
        return None
    x = found.source
    sizes = Sizes.of(found, width_x, width_y, 1)
    num_others = sum(1 for term in terms if term.rows is not x and term is not sums[0])
    extra = num_others * setting.costs.product(sizes.num_rows, width_x, width_y) * (3 if setting.is_training else 1)
    first, behind = seconds_first(found, x, sizes, setting), seconds_behind(found, x, sizes, setting)
    if not _is_chosen("first", first + extra, behind, setting):
        return _Choice(seconds_behind(found, x, sizes, _keeping(setting)))
    edit = Editor(graph, product)
    projected = edit.call(aten.mm.default, x, weight)
    total: Node | None = None
    for term in terms:
        if term is sums[0]:
            item = propagate(edit, found, projected, 1)
        else:
            item = projected if term.rows is x else edit.call(aten.mm.default, term.rows, weight)
        for factor in term.factors:
            item = edit.call(factor.target, item, factor.by)
        if total is None:
            total = item if term.sign > 0 else edit.call(aten.neg.default, item)
        else:
            total = edit.call(aten.add.Tensor if term.sign > 0 else aten.sub.Tensor, total, item)
    assert total is not None
    replace(product, edit.call(aten.add.Tensor, total, bias) if bias is not None else total)
    return _Choice(
        first + extra, f"{product.name}: product moved before the sum over edges, which carry {width_y} columns, not {width_x}"
    )


@dataclass(frozen=True)
class _RowTerm:
    """sign * rows, scaled step by step; is_private: whether nothing outside of the product reads it."""

    rows: Node
    factors: tuple[Factor, ...]
    sign: float
    is_private: bool


def _row_terms(node: Node, sign: float, *, is_private: bool = True) -> list[_RowTerm]:
    """The operand of a product as a sum of scaled rows."""
    is_private = is_private and len(_readers(node)) == 1
    if is_call(node, aten.add.Tensor, aten.sub.Tensor) and len(arguments(node)) == 2 and not node.kwargs:
        a, b = arguments(node)
        if all(isinstance(item, Node) and value(item).shape == value(node).shape for item in (a, b)):
            other = -sign if is_call(node, aten.sub.Tensor) else sign
            return [*_row_terms(a, sign, is_private=is_private), *_row_terms(b, other, is_private=is_private)]
    factors: list[Factor] = []
    while (step := factor_of(node)) is not None:
        node, factor = step
        factors.insert(0, factor)
        is_private = is_private and len(_readers(node)) == 1
    return [_RowTerm(node, tuple(factors), sign, is_private)]


def _stacked(edit: Editor, weight: Node, width_x: int, heads: int, width_y: int) -> Node:
    """[f, k * o] -> [k * f, o]."""
    if heads == 1:
        return weight
    parts = edit.call(aten.reshape.default, weight, [width_x, heads, width_y])
    return edit.call(aten.reshape.default, edit.call(aten.permute.default, parts, [1, 0, 2]), [heads * width_x, width_y])
