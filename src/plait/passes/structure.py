"""What depends only on index tensors is computed once per graph, not once per step.

`split_structure` cuts a graph in two: a *structure* graph (self-loop handling, degrees, normalisation, the index maps
themselves) whose inputs are ints, and the rest, in which one call returns the structure's values. The call is served from a
cache keyed by the content of the ints (`plait.graph.STRUCTURE`); its values are private to plait, so the kernels find their
orderings without reading the index maps again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from plait import operators
from plait.passes.edit import RESHAPES, Editor, arguments, aten, is_call, is_integral, is_tensor, stable_topological_sort, value

_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class Structure:
    """The structure graph and the call that stands for it: `inputs` are nodes of the rest, `outputs` one node per value."""

    module: GraphModule
    inputs: tuple[Node, ...]
    call: Node
    outputs: tuple[Node, ...]


def merge_equal(graph: Graph) -> None:
    """One node for equal calls on equal inputs (random draws and writes excepted): two layers share one self-loop handling."""
    seen: dict[object, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node):
            continue
        key = _key((node.target, node.args, tuple(sorted(node.kwargs.items(), key=lambda item: item[0]))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    _separate_constants(graph)


def _separate_constants(graph: Graph) -> None:
    """A constant for every reader: in a graph with as many nodes as edges, rows of both would be taken for the same by the
    constant they have in common. In a kernel it costs nothing."""
    constants: set[Node] = set()
    for node in graph.nodes:
        is_view = is_call(node, aten.expand.default, *RESHAPES) and node.args[0] in constants
        if is_view or is_call(node, aten.full.default):
            constants.add(node)
    for node in reversed(list(graph.nodes)):  # views first: what they view is separated for each of their copies then
        if node not in constants:
            continue
        for user in [item for item in node.users if is_tensor(item)][1:]:  # a size is no reader
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))


def _key(item: object) -> object:
    if isinstance(item, list | tuple):
        return (type(item).__name__, *(_key(part) for part in item))
    if isinstance(item, dict):
        return tuple((name, _key(part)) for name, part in sorted(item.items()))
    if isinstance(item, slice):
        return ("slice", _key(item.start), _key(item.stop), _key(item.step))
    return (type(item).__name__, item) if not isinstance(item, Node) else item


def is_pure(node: Node) -> bool:
    """Whether a call of an operator gives the same again for the same arguments, and changes nothing."""
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    if node.target._schema.is_mutable or _RANDOM in node.target.tags or node.target is aten.empty.memory_format:
        return False
    return not node.is_impure()


@dataclass(frozen=True)
class _Free:
    """Nodes that depend on ints alone, each with the int tensor inputs it depends on (none for sizes and constants)."""

    tensors: dict[Node, frozenset[Node]]

    def __contains__(self, node: object) -> bool:
        return node in self.tensors


def _free_nodes(graph: Graph) -> _Free:
    tensors: dict[Node, frozenset[Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            if is_tensor(node) and is_integral(node):
                tensors[node] = frozenset([node])
            elif isinstance(value(node), torch.SymInt | int):
                tensors[node] = frozenset()
            continue
        if is_call(node, aten.sym_size.int, aten.sym_numel.default) and node.args[0].op == "placeholder":
            tensors[node] = frozenset()  # a size: read outside, an input of the structure
            continue
        if node.op == "call_function" and _is_structural_call(node) and all(item in tensors for item in node.all_input_nodes):
            tensors[node] = frozenset().union(*(tensors[item] for item in node.all_input_nodes))
    return _Free(tensors)


def _is_structural_call(node: Node) -> bool:
    if node.target in (operators.uniform, operators.dropout):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return _RANDOM not in node.target.tags and not node.target._schema.is_mutable
    return True


def depends_on_graph_alone(node: Node) -> bool:
    """Whether a value is made of int tensors and sizes only, and the same every time: whether it can become structure."""
    stack, seen = [node], {node}
    while stack:
        item = stack.pop()
        if item.op != "call_function":
            if item.op != "placeholder" or (is_tensor(item) and not is_integral(item)):
                return False
            continue
        if is_call(item, aten.sym_size.int, aten.sym_numel.default):
            continue  # a size: no data
        if not _is_structural_call(item):
            return False
        stack.extend(operand for operand in item.all_input_nodes if operand not in seen)
        seen.update(item.all_input_nodes)
    return True


def structural_nodes(graph: Graph) -> list[Node]:
    """Calls that depend on ints alone, among those whose int inputs also decide an index map; in graph order."""
    free = _free_nodes(graph)
    sources: set[Node] = set()
    for node in graph.nodes:
        if is_call(node, operators.gather, operators.segment_reduce) and node.args[1] in free:
            sources |= free.tensors[node.args[1]]
    chosen = {
        node: None
        for node in graph.nodes
        if node.op == "call_function" and node in free and free.tensors[node] and free.tensors[node] <= sources
    }
    for node in reversed(list(chosen)):
        # a view that only the rest reads is taken there: kept, an expanded count per node would be a row per node
        if (
            is_call(node, aten.expand.default, *RESHAPES)
            and not _is_map(node)
            and not any(user in chosen for user in node.users)
        ):
            del chosen[node]
    return list(chosen)


def _is_map(node: Node) -> bool:
    return any(is_call(user, operators.gather, operators.segment_reduce) and user.args[1] is node for user in node.users)


def own_maps(graph: Graph, num_returned: int) -> None:
    """Index maps that are the user's own tensors become copies, so that the structure can hold private ones.

    The backward is handed the copy, too: what lies behind the first `num_returned` outputs is kept for it.
    """
    output = graph.output_node()
    results: Any = list(arguments(output)[0])
    for node in list(graph.nodes):
        if node.op != "placeholder" or not is_tensor(node) or not is_integral(node):
            continue
        readers = [user for user in node.users if is_call(user, operators.gather, operators.segment_reduce)]
        readers = [user for user in readers if user.args[1] is node]
        if not readers:
            continue
        first = next(item for item in graph.nodes if item.op not in ("placeholder", "get_attr"))
        copy = Editor(graph, first).call(aten.clone.default, node)
        for user in readers:
            user.update_arg(1, copy)
        results[num_returned:] = [copy if item is node else item for item in results[num_returned:]]
    output.args = (tuple(results),)


def read_sizes_from_structure(graph: Graph) -> None:
    """Sizes of float tensors that equal a size of an int tensor are read from that: the structure needs no floats then."""
    known: dict[object, tuple[Node, int]] = {}
    free = _free_nodes(graph)
    for node in list(graph.nodes):
        if is_tensor(node) and node in free:
            for axis, size in enumerate(value(node).shape):
                if isinstance(size, torch.SymInt):
                    known.setdefault(size.node.expr, (node, axis))
        if not is_call(node, aten.sym_size.int) or node.args[0] in free or node.args[0].op == "placeholder":
            continue
        size = value(node)
        found = known.get(size.node.expr) if isinstance(size, torch.SymInt) else None
        if found is not None:
            node.args = found


def split_structure(
    graph: Graph, make_call: Callable[[GraphModule], Callable[..., Any]], num_returned: int
) -> Structure | None:
    """Moves the structure of `graph` into a graph of its own; `make_call` turns that into the callable that stands in its place
    and returns the tuple of the structure's values. None where there is nothing to move. The first `num_returned` outputs of
    the
    graph reach the user, the others are kept for the backward."""
    read_sizes_from_structure(graph)
    nodes = structural_nodes(graph)
    members = set(nodes)
    needed = tuple(node for node in nodes if any(user not in members for user in node.users))
    if not needed:
        return None
    inner = Graph()
    copies: dict[Node, Node] = {}
    inputs: list[Node] = []
    free = _free_nodes(graph)

    def source(item: Node) -> Node:
        if item in copies:
            return copies[item]
        is_input = item.op == "placeholder" or is_call(item, aten.sym_size.int, aten.sym_numel.default)
        if is_input and item not in members:
            inputs.append(item)
            copies[item] = inner.placeholder(item.name)
            copies[item].meta = dict(item.meta)
            return copies[item]
        assert item in free, f"{item} is not structural"
        copies[item] = inner.node_copy(item, source)  # made of sizes and constants: made again inside
        return copies[item]

    for node in nodes:
        copies[node] = inner.node_copy(node, source)
    inner.output(tuple(copies[node] for node in needed))
    _placeholders_to_front(inner)
    inner.eliminate_dead_code()
    used = [item for item in inputs if copies[item].users]
    for item in inputs:
        if not copies[item].users:
            inner.erase_node(copies[item])
    module = GraphModule(torch.nn.Module(), inner)
    result = _install(graph, make_call(module), module, used, nodes, needed)
    _copy_returned(graph, num_returned, set(result.outputs))
    stable_topological_sort(graph)
    return result


def _placeholders_to_front(graph: Graph) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in reversed(placeholders):
        first = next(iter(graph.nodes))
        if node is not first:
            first.prepend(node)


def _install(
    graph: Graph,
    run: Callable[..., Any],
    module: GraphModule,
    inputs: list[Node],
    nodes: list[Node],
    needed: tuple[Node, ...],
) -> Structure:
    output = graph.output_node()
    with graph.inserting_before(output):
        call = graph.call_function(run, tuple(inputs))
        call.meta["val"] = tuple(value(node) for node in needed)
        outputs = []
        for position, node in enumerate(needed):
            item = graph.call_function(operator.getitem, (call, position))
            item.meta = dict(node.meta)
            outputs.append(item)
    members = set(nodes)
    for node, item in zip(needed, outputs, strict=True):
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in members)
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)
    return Structure(module, tuple(inputs), call, tuple(outputs))


def _copy_returned(graph: Graph, num_returned: int, private: set[Node]) -> None:
    """What the user gets back is a copy: the structure's own values must never be written to."""
    output = graph.output_node()
    results: Any = list(arguments(output)[0])
    for position, item in enumerate(results[:num_returned]):
        if isinstance(item, Node) and item in private and is_tensor(item):
            results[position] = Editor(graph, output).call(aten.clone.default, item)
    output.args = (tuple(results),)
