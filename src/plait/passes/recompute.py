"""What the forward keeps for the backward: nothing per edge that can be computed again from node values, but what is asked for.

Works on the joint graph of forward and backward. The backward gets its own copies of the edge values it reads (the copies go
down to node values, weights and the structure), after which torch's default partition, which keeps whatever the backward
still reads, keeps node values only. The copies are fused into the backward's kernels and never exist in memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from plait.passes.domains import Domains
from plait.passes.edit import Editor, aten, is_tensor, results_of, value

_TAG, _FORWARD, _BACKWARD = "partitioner_tag", "is_forward", "is_backward"  # how AOTAutograd marks nodes of a joint graph
_FORWARD_ONLY = ("must_be_in_forward", "must_be_in_forward_to_backward")


@dataclass(frozen=True)
class RecomputePlan:
    """Names of the edge values that the backward computes again. What it reads instead is known after the partition."""

    recomputed: tuple[str, ...]

    def __str__(self) -> str:
        return f"recomputed {', '.join(self.recomputed) or 'nothing'}"


def recompute_edges(
    graph: Graph,
    num_forward_outputs: int,
    domains: Domains,
    is_recomputable: Callable[[Node], bool],
    cached: Collection[str] = (),
) -> RecomputePlan:
    """Gives the backward its own copies of recomputable edge values but the `cached` ones; edits the joint `graph`."""
    forward = forward_nodes(graph, num_forward_outputs)

    def wanted(node: Node) -> bool:
        if node not in forward or node.op != "call_function" or node.name in cached:
            return False
        return domains.is_edge(node) and is_recomputable(node)

    return RecomputePlan(give_copies(graph, forward, wanted))


def give_copies(graph: Graph, forward: set[Node], wanted: Callable[[Node], bool]) -> tuple[str, ...]:
    """The backward reads copies of its own of every wanted forward value; their names. Edits the joint `graph`.

    A copy reads copies of the wanted values below it, and what else it reads from the forward.
    """
    copies: dict[Node, Node] = {}

    def copy_of(node: Node, before: Node) -> Node:
        """The backward's copy of `node` and of everything wanted below it, inserted before its first reader."""
        stack = [node]
        while stack:
            item = stack[-1]
            if item in copies:
                stack.pop()
                continue
            missing = [value for value in item.all_input_nodes if wanted(value) and value not in copies]
            if missing:
                stack.extend(missing)
                continue
            with graph.inserting_before(before):
                copy = graph.node_copy(item, lambda value: copies.get(value, value))
            copy.meta = {**item.meta, _TAG: _BACKWARD}
            copies[item] = copy
            stack.pop()
        return copies[node]

    output = graph.output_node()
    for node in list(graph.nodes):
        if node in forward or node is output:
            continue
        for item in node.all_input_nodes:
            if wanted(item):
                node.replace_input_with(item, copy_of(item, node))
    return tuple(node.name for node in copies)


def separate_backward(graph: Graph, num_forward_outputs: int) -> None:
    """Everything the forward does not need moves behind it, and every call is tagged as what it is: torch's partition goes by
    place and by tag, and what a pass made bears the tag of what it was made of."""
    forward, output = forward_nodes(graph, num_forward_outputs), graph.output_node()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node not in forward:
            node.meta[_TAG] = _BACKWARD
            output.prepend(node)
        elif node.meta.get(_TAG) == _BACKWARD:
            node.meta[_TAG] = _FORWARD


def forward_nodes(graph: Graph, num_forward_outputs: int) -> set[Node]:
    """Everything the forward's outputs need."""
    stack = [node for node in results_of(graph)[:num_forward_outputs] if isinstance(node, Node)]
    stack.extend(node for node in graph.nodes if node.meta.get(_TAG) in _FORWARD_ONLY)
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(node.all_input_nodes)
    # parts of what the forward makes anyway: the backward can be given a part, never the whole
    seen.update(node for node in graph.nodes if node.target is operator.getitem and node.args[0] in seen)
    return seen


def bind_counts(graph: Graph, num_forward_outputs: int) -> None:
    """Asks the forward for every size that depends on data, where that is first a tensor's.

    Torch's partition hands such sizes to the backward by the first call that asks for them, which may be one of the backward.
    """
    forward = forward_nodes(graph, num_forward_outputs)
    bound: set[object] = set()
    for node in list(graph.nodes):
        if node not in forward or node.op != "call_function" or not is_tensor(node):
            continue
        for axis, size in enumerate(value(node).shape):
            if not isinstance(size, torch.SymInt) or not size.node.expr.is_symbol or not free_unbacked_symbols(size):
                continue
            if size.node.expr not in bound:
                bound.add(size.node.expr)
                Editor(graph, node.next).call(aten.sym_size.int, node, axis).meta.pop(_TAG, None)
