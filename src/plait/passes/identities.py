"""Calls that change no number: `detach(x) = x` (a joint graph has its gradients written out), `t(t(x)) = x`; views."""

from __future__ import annotations

from torch.fx import Graph, Node

from plait.passes.edit import SAME, aten, is_call


def drop_identities(graph: Graph) -> None:
    """Rewrites `graph` in place. What is returned stays a tensor of its own: never an input, nor the same one twice."""
    output = graph.output_node()
    for node in list(graph.nodes):
        original = _original(node)
        if original is None:
            continue
        if output in node.users and (original.op == "placeholder" or output in original.users):
            node.replace_all_uses_with(original, delete_user_cb=lambda user: user is not output)
        else:
            node.replace_all_uses_with(original)
    graph.eliminate_dead_code()


def _original(node: Node) -> Node | None:
    """The value that `node` is, or None if it is a new one."""
    if is_call(node, *SAME):
        return node.all_input_nodes[0]
    if is_call(node, aten.t.default):
        inner = node.all_input_nodes[0]
        return inner.all_input_nodes[0] if is_call(inner, aten.t.default) else None
    return None


def copy_where_needed(graph: Graph) -> None:
    """Every `view` becomes a `reshape`: what it views may lie otherwise in memory now, and the next trace decides again."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
