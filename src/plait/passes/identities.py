"""Calls that change nothing, out of the joint graph: `detach(x) = x` (gradients are written out there), `t(t(x)) = x`."""

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
