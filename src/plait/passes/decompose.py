"""Operators on edges that no kernel knows are spelled with those it does (see `passes.composites`).

It runs behind autograd: an operator keeps PyTorch's own formula for its gradient, which is spelled out as well.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from plait.passes.composites import BY_A_SIZE, ON_EDGES, PIECES, Spelling
from plait.passes.domains import Domains, infer
from plait.passes.edit import Editor, argument, arguments, aten, is_call, is_tensor, value


def decompose(graph: Graph) -> None:
    """Rewrites `graph` in place, until nothing is left to spell: what is spelled may be made of composites again."""
    left: set[Node] = set()
    while True:
        domains = infer(graph)
        found = [(node, spelling) for node in graph.nodes if node not in left and (spelling := _spelling(node, domains))]
        if not found:
            break
        for node, spelling in found:
            if not _spell(node, spelling):
                left.add(node)
        graph.eliminate_dead_code()


def _spelling(node: Node, domains: Domains) -> Spelling | None:
    if node.op != "call_function":
        return None
    if node.target in PIECES:
        return PIECES[node.target] if _are_columns(node) else None
    spelling = (BY_A_SIZE if _has_size(node) else ON_EDGES).get(node.target)
    return spelling if spelling is not None and any(map(domains.is_edge, node.all_input_nodes)) else None


def _has_size(node: Node) -> bool:
    """Whether the second of two factors is a number that is known when the model runs."""
    return (
        node.target in BY_A_SIZE and is_tensor(node.args[0]) and isinstance(value(node.args[1]), torch.SymInt | torch.SymFloat)
    )


def _are_columns(node: Node) -> bool:
    """Whether pieces of floats are taken along another axis than the rows."""
    x = value(arguments(node)[0])
    axis = argument(node, 1 if is_call(node, aten.unbind.int) else 2, "dim", 0)
    return bool(x.dtype.is_floating_point and axis % x.dim() != 0)


def _spell(node: Node, spelling: Spelling) -> bool:
    """Puts what `spelling` calls in the place of `node`; whether it had something to say."""
    leaves, structure = tree_flatten((node.args, node.kwargs))
    given = [item for item in leaves if isinstance(item, Node)]
    is_spelled = True

    def run(*values: Any) -> Any:
        nonlocal is_spelled
        rest = iter(values)
        args, kwargs = tree_unflatten([next(rest) if isinstance(item, Node) else item for item in leaves], structure)
        result = spelling(*args, **kwargs)
        is_spelled = result is not NotImplemented
        if not is_spelled:
            return []
        return list(result) if isinstance(result, tuple) else result

    traced: GraphModule = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*map(value, given))
    if not is_spelled:
        return False
    results = _copied(traced.graph, given, Editor(node.graph, node))
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
        return True
    for user in list(node.users):
        assert is_call(user, operator.getitem)
        user.replace_all_uses_with(results[user.args[1]])
    return True


def _copied(source: Graph, given: list[Node], edit: Editor) -> Any:
    """The calls of a graph, with `given` for its inputs; what it returns."""
    placed: dict[Node, Any] = dict(zip(source.find_nodes(op="placeholder"), given, strict=True))
    for node in source.nodes:
        if node.op == "call_function":
            args, kwargs = _placed((node.args, node.kwargs), placed)
            placed[node] = edit.call(node.target, *args, **kwargs)
    return _placed(source.output_node().args[0], placed)


def _placed(tree: Any, placed: dict[Node, Any]) -> Any:
    leaves, structure = tree_flatten(tree)
    return tree_unflatten([placed[item] if isinstance(item, Node) else item for item in leaves], structure)
