"""Separates edge values by end: which are sums of terms that each depend on one end, operator by operator.

    f(gather(x, m)) = gather(f(x), m)                    for f that acts on rows          (`functions.py`)
    f(a + b) = f(a) + f(b)                               for linear f: views (`views.py`), products (`contractions.py`)
    f(cat(a, b)) = f(a, 0) + f(0, b)                     a concatenation is a sum of columns
    f(s_e * a) = s_e * f(a)                              for linear f and one number s_e per edge

Nothing is changed here. A value that is none of these is opaque: a sum may hold it as it is, per edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node

from plait import operators
from plait.passes.edit import arguments, aten, is_call, is_tensor, same_size, value
from plait.passes.reorganise import contractions, functions, views
from plait.passes.reorganise.terms import Change, Columns, End, Form, Layout, Term, Values

Rule = Callable[["Separation", Node], Form | None]


class Separation:
    """The forms of a graph's edge values, found when asked for. `opaque`: values that must stay as they are."""

    def __init__(self, opaque: frozenset[Node] = frozenset()) -> None:
        self.opaque = opaque
        self.values = Values()
        self.ends: list[End] = []
        self.forms: dict[Node, Form | None] = {}

    def form(self, node: Any) -> Form | None:
        """The form of a value; None where no term of it depends on one end alone."""
        if not isinstance(node, Node) or not is_tensor(node) or node in self.opaque:
            return None
        if node not in self.forms:
            self.forms[node] = None  # for the rules of its own operands
            form = self._find(node)
            self.forms[node] = form if form is not None and form.ends else None
        return self.forms[node]

    def _find(self, node: Node) -> Form | None:
        if is_call(node, operators.gather):
            return self._gathered(node)
        rule = RULES.get(node.target) if node.op == "call_function" else None
        return None if rule is None else rule(self, node)

    def _gathered(self, node: Node) -> Form | None:
        x, index = arguments(node)[:2]
        if not value(x).dtype.is_floating_point or same_size(value(node).shape[0], 1):
            return None
        wrap = len(arguments(node)) > 2 and bool(arguments(node)[2])
        term = Term(self.values.leaf(x), self._end(index, wrap, x))
        return Form((term,), Layout(0, 1, value(node).dim()), node)

    def _end(self, index: Node, wrap: bool, like: Node) -> End:
        """The one object for a map into as many rows as `like` has: values of two tables do not add up row by row."""
        for end in self.ends:
            if end.index is index and end.wrap is wrap and same_size(value(end.like).shape[0], value(like).shape[0]):
                return end
        self.ends.append(End(index, wrap, like))
        return self.ends[-1]

    # --- what the rules share ---

    def layout(self, node: Node, operand: Node, form: Form) -> Layout:
        """Where the rows of an elementwise result are, from one of its operands: shapes are aligned at their ends."""
        rank = value(node).dim()
        return Layout(form.layout.axis + rank - value(operand).dim(), form.layout.block, rank)

    def is_dense(self, operand: Any, layout: Layout) -> bool:
        """Whether every row of an elementwise result with `layout` reads the same of `operand`."""
        if self.form(operand) is not None:
            return False
        if not isinstance(operand, Node) or not is_tensor(operand):
            return True
        shape = value(operand).shape
        axis = layout.axis - (layout.rank - len(shape))
        return axis < 0 or same_size(shape[axis], 1)

    def opaque_term(self, node: Node) -> Term:
        """A value as it is, per edge."""
        return Term(self.values.leaf(node), None)

    def part_of(self, operand: Any, columns: Columns | None, layout: Layout) -> Any:
        """What the columns of an elementwise result read of a dense operand."""
        if columns is None or not isinstance(operand, Node) or not is_tensor(operand):
            return operand
        shape = value(operand).shape
        axis = columns.axis - (layout.rank - len(shape))
        if axis < 0 or same_size(shape[axis], 1):
            return operand
        return self.values.call(aten.slice.Tensor, operand, axis, columns.start, columns.stop, view=True)

    def changed(self, form: Form, layout: Layout, change: Change) -> Form | None:
        """A linear function of a form: `change` applied to each term; None if it gives None for one."""
        terms = []
        for term in form.terms:
            result = change(term.value, term.columns)
            if result is None:
                return None
            inner, columns = result
            is_whole = columns is not None and columns.stop - columns.start == columns.size
            terms.append(Term(inner, term.end, term.factor, term.scale, None if is_whole else columns))
        return Form(tuple(terms), layout, form.rows)


RULES: Mapping[Any, Rule] = {**views.RULES, **functions.RULES, **contractions.RULES}
