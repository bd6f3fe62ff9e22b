"""Cheap work on rows of one end moves to the nodes where that makes what is gathered no wider.

    sum(gather(h, m) * a) = gather(sum(h * a), m)        one number per edge and head is gathered, not a row
    tanh(gather(x, m)) stays                             where x is gathered anyway: two rows per edge would be read, not one

Elementwise work in a kernel costs little; what a kernel waits for are the rows it gathers. Values that share gathers are
decided together: each alone would keep the gather for the other's sake.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import Editor, is_call, replace, value
from plait.passes.reorganise.guards import has_more_rows, leaves_edges
from plait.passes.reorganise.separate import Separation
from plait.passes.reorganise.terms import Build, End, Form, Layout, Value, inner_size


def move_narrow_work(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law wherever rows gathered do not get wider; returns a line per value moved."""
    opaque: frozenset[Node] = frozenset()
    while True:
        state = Separation(opaque)
        chosen = _candidates(graph, state, domains)
        dropped = {node for group in _sharing(chosen, state) for node in _too_wide(group, graph, state)}
        if not dropped:
            break
        opaque |= dropped  # what they are made of may still be narrow enough
    moved = []
    for node in reversed(chosen):  # later ones first: they may read earlier ones per edge
        form = state.form(node)
        assert form is not None
        replace(node, Build(Editor(graph, node)).form(form, state.values))
        moved.append(f"{node.name}: work on rows of one end moved to {len(form.ends)} values of nodes")
    graph.eliminate_dead_code()
    return moved[::-1]


def _candidates(graph: Graph, state: Separation, domains: Domains) -> list[Node]:
    """Edge values that node values can be gathered for, and that something reads which is none of them."""
    found = []
    for node in graph.nodes:
        form = state.form(node)
        if form is None or not _is_sum_of_gathers(form) or not value(node).dtype.is_floating_point:
            continue
        computes = any(term.value.computes for term in form.terms if term.end is not None)
        if not computes or not leaves_edges(form, domains) or has_more_rows(form) or _width(node) is None:
            continue
        if not all(_absorbs(user, state) for user in node.users):
            found.append(node)
    return found


def _absorbs(node: Node, state: Separation) -> bool:
    """Whether a value is gathered itself, or all that is made of it."""
    form = state.form(node)
    if form is None:
        return False
    return _is_sum_of_gathers(form) or (bool(node.users) and all(_absorbs(user, state) for user in node.users))


def _is_sum_of_gathers(form: Form) -> bool:
    """A concatenation has no use for itself: its parts are gathered as well without it."""
    return form.can_be_built and all(term.columns is None for term in form.terms)


def _width(node: Node) -> int | None:
    """Bytes per row of a value with rows at its leading axis."""
    size = inner_size(node, Layout(0, 1, value(node).dim()))
    return None if size is None else size * value(node).element_size()


def _sharing(nodes: list[Node], state: Separation) -> list[list[Node]]:
    """The candidates in groups that have a gather in common."""
    groups: list[tuple[set[Node], list[Node]]] = []
    for node in nodes:
        gathers, members = _gathers_below(node), [node]
        for group in [group for group in groups if group[0] & gathers]:
            groups.remove(group)
            gathers, members = gathers | group[0], [*group[1], *members]
        groups.append((gathers, members))
    return [members for _, members in groups]


def _gathers_below(node: Node) -> set[Node]:
    found: set[Node] = set()
    stack, seen = [node], {node}
    while stack:
        item = stack.pop()
        if is_call(item, operators.gather):
            found.add(item)
            continue
        new = [operand for operand in item.all_input_nodes if operand not in seen]
        seen.update(new)
        stack.extend(new)
    return found


def _too_wide(group: list[Node], graph: Graph, state: Separation) -> list[Node]:
    """Which of a group must stay, so that no more bytes are gathered than before; widest first."""
    before = _gathered_bytes(graph, state, set())
    chosen = set(group)
    dropped = []
    for node in sorted(group, key=lambda item: -(_width(item) or 0)):
        now = _gathered_bytes(graph, state, chosen)
        if now > before or _gathered_bytes(graph, state, chosen - {node}) < now:
            chosen.discard(node)
            dropped.append(node)
    return dropped


def _gathered_bytes(graph: Graph, state: Separation, moved: set[Node]) -> int:
    """Bytes gathered per edge by what the graph's outputs need, if the values in `moved` were gathered."""
    gathers: dict[object, int] = {}
    stack: list[Node] = [node for node in graph.nodes if node.op == "output"]
    seen = set(stack)
    while stack:
        node = stack.pop()
        form = state.form(node)
        if node in moved and form is not None:
            gathers |= dict.fromkeys(_gathered(form), _width(node) or 0)
            needed = _read_per_edge(form)
        else:
            needed = node.all_input_nodes
            if is_call(node, operators.gather):
                gathers |= dict.fromkeys(_gathered(form) if form is not None else [node], _width(node) or 0)
        new = [item for item in needed if item not in seen]
        seen.update(new)
        stack.extend(new)
    return sum(gathers.values())


def _gathered(form: Form) -> list[object]:
    """What is gathered for a form, as keys that are equal for equal gathers."""
    groups: dict[tuple[End, tuple[Node, ...]], set[tuple[Value, float]]] = {}
    for term in form.terms:
        if term.end is not None:
            groups.setdefault((term.end, term.scale), set()).add((term.value, term.factor))
    return [(end, frozenset(values)) for (end, _), values in groups.items()]


def _read_per_edge(form: Form) -> list[Node]:
    """The edge values that a form is built from."""
    result = [item for term in form.terms for item in term.scale]
    stack = [term.value for term in form.terms if term.end is None]
    while stack:
        for part in torch.utils._pytree.tree_leaves(stack.pop().args):
            if isinstance(part, Value):
                stack.append(part)
            elif isinstance(part, Node):
                result.append(part)
    return result
