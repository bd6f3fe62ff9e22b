"""Products with weights: matmul(a + b, W) = matmul(a, W) + matmul(b, W), and of columns with their own rows of W.

Terms of the same value and end share one product: W [x_i, x_j - x_i] is gather((W_1 - W_2) x, dst) + gather(W_2 x, src).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from plait.passes.edit import aten, inner_sizes, same_size, value
from plait.passes.reorganise.terms import Form, Layout, Term

if TYPE_CHECKING:
    from plait.passes.reorganise.separate import Separation


@dataclass(frozen=True)
class Contraction:
    """Where a product's operand at `position` has its rows and what is summed, and where the other one has it."""

    position: int
    rows: int
    summed: int
    weight: int
    weight_summed: int
    batch: int | None = None


_CONTRACTIONS: dict[Any, tuple[Contraction, ...]] = {
    aten.mm.default: (Contraction(0, 0, 1, weight=1, weight_summed=0), Contraction(1, 1, 0, weight=0, weight_summed=1)),
    aten.addmm.default: (Contraction(1, 0, 1, weight=2, weight_summed=0),),
    aten.mv.default: (Contraction(0, 0, 1, weight=1, weight_summed=0),),
    aten.bmm.default: (
        Contraction(0, 1, 2, weight=1, weight_summed=1, batch=0),
        Contraction(1, 2, 1, weight=0, weight_summed=2, batch=0),
    ),
}
PRODUCTS = tuple(_CONTRACTIONS)


def operand_of(state: Separation, node: Node) -> tuple[Contraction, Form] | None:
    """The operand of a product that has rows, if the other one is a weight."""
    for found in _CONTRACTIONS[node.target]:
        form = state.form(node.args[found.position])
        weight: Any = node.args[found.weight]
        if form is None or form.layout.axis != found.rows or state.form(weight) is not None:
            continue
        if inner_sizes(value(weight), leading=False) is not None:
            return found, form
    return None


def _product(state: Separation, node: Node) -> Form | None:
    found = operand_of(state, node)
    if found is None or node.kwargs:  # addmm with beta or alpha
        return None
    contraction, form = found
    rank = value(node).dim()
    terms = [_term(state, node, contraction, group) for group in grouped(form, contraction)]
    if node.target is aten.addmm.default and not _add_bias(state, node, terms):
        return None
    return Form(tuple(terms), Layout(contraction.rows, form.layout.block, rank), form.rows)


def grouped(form: Form, contraction: Contraction) -> list[list[Term]]:
    """Terms of one value, that meet different rows of the weight."""
    groups: dict[object, list[Term]] = {}
    for term in form.terms:
        batch = term.columns if term.columns is not None and term.columns.axis == contraction.batch else None
        groups.setdefault((term.value, term.end, term.scale, batch), []).append(term)
    return list(groups.values())


def _term(state: Separation, node: Node, contraction: Contraction, group: list[Term]) -> Term:
    """A group of terms, multiplied with the sum of the rows of the weight that they meet."""
    first = group[0]
    weight: Any = node.args[contraction.weight]
    batch = first.columns if first.columns is not None and first.columns.axis == contraction.batch else None
    total = _rows_of_weight(state, weight, contraction, first)
    factor = first.factor
    if len(group) > 1:
        total, factor = _weighted(state, total, factor), 1.0
    for term in group[1:]:
        rows = _rows_of_weight(state, weight, contraction, term)
        if term.factor == -1.0:
            total = state.values.call(aten.sub.Tensor, total, rows)
            continue
        total = state.values.call(aten.add.Tensor, total, _weighted(state, rows, term.factor))
    operands = (first.value, total) if contraction.position < contraction.weight else (total, first.value)
    target: Any = aten.mm.default if node.target is aten.addmm.default else node.target
    inner = state.values.call(target, *operands, product=node)
    return Term(inner, first.end, factor, first.scale, batch)


def _weighted(state: Separation, rows: Any, factor: float) -> Any:
    return rows if factor == 1.0 else state.values.call(aten.mul.Tensor, rows, factor)


def _rows_of_weight(state: Separation, weight: Node, contraction: Contraction, term: Term) -> Any:
    """The rows of the weight (or the matrices of a batch of them) that the columns of a term meet."""
    if term.columns is None:
        return weight
    axis = contraction.batch if term.columns.axis == contraction.batch else contraction.weight_summed
    return state.values.call(aten.slice.Tensor, weight, axis, term.columns.start, term.columns.stop, view=True)


def _add_bias(state: Separation, node: Node, terms: list[Term]) -> bool:
    """gather(x, m) @ W + b = gather(x @ W + b, m), with the first term that is a gather."""
    bias: Any = node.args[0]
    if state.form(bias) is not None or (value(bias).dim() > 1 and not same_size(value(bias).shape[0], 1)):
        return False
    for position, term in enumerate(terms):
        if term.end is not None and not term.scale:
            x, weight = term.value.args
            inner = state.values.call(aten.addmm.default, bias, x, _weighted(state, weight, term.factor), product=node)
            terms[position] = replace(term, value=inner, factor=1.0)
            return True
    return False


RULES: dict[Any, Callable[[Separation, Node], Form | None]] = dict.fromkeys(PRODUCTS, _product)
