"""Editing an FX graph of functional aten operators while its fake values stay right.

Every node carries `meta["val"]`, a fake tensor or a symbolic number; a pass that adds nodes goes through `Editor`, which
computes the new value and copies where in the user's model the node came from.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten

Target = Callable[..., Any]
_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "original_aten", "seq_nr", "partitioner_tag")


def value(node: Any) -> Any:
    """The fake tensor or symbolic number of a node; anything else is its own value."""
    return node.meta.get("val") if isinstance(node, Node) else node


def is_tensor(node: Any) -> bool:
    return isinstance(value(node), torch.Tensor)


def is_integral(node: Node) -> bool:
    """Whether the node is a tensor of ints or bools."""
    val = value(node)
    return isinstance(val, torch.Tensor) and not val.dtype.is_floating_point and not val.dtype.is_complex


def static(size: Any) -> int | None:
    """A size as a number, if it is one whatever the input."""
    if isinstance(size, int):
        return size
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return int(expression) if expression is not None and expression.is_number else None


def hint(size: Any) -> float | None:
    """A size of the graph that was captured; None where it depends on data. For choices that are right whatever it is."""
    number = static(size)
    if number is not None:
        return float(number)
    shapes = size.node.shape_env
    if shapes is None:
        return None
    known = shapes.backed_var_to_val if hasattr(shapes, "backed_var_to_val") else shapes.var_to_val  # before torch 2.10
    found = size.node.expr.xreplace(known)
    return float(found) if found.is_number else None


def most(size: Any) -> float | None:
    """The same, or the most it can be where it depends on data: edges without their self-loops are at most all edges. None
    where no bound is known."""
    known = hint(size)
    if known is not None:
        return known
    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    largest = float(upper) if upper.is_number else math.inf
    return largest if math.isfinite(largest) else None


def inner_sizes(val: torch.Tensor, *, leading: bool = True) -> tuple[int, ...] | None:
    """The sizes without the leading axis, if all of them are static."""
    sizes = [static(size) for size in (val.shape[1:] if leading else val.shape)]
    return None if None in sizes else tuple(size for size in sizes if size is not None)


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal whatever the graph; never adds a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    first, second = (size.node.expr if isinstance(size, torch.SymInt) else size for size in (a, b))
    if first == second:
        return True
    if all(isinstance(size, int) or size.is_Symbol for size in (first, second)):
        return False  # a symbol that is known to be another, or a number, has been replaced by it; asking takes long
    return bool(statically_known_true(a == b))


def same_shape(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(same_size(p, q) for p, q in zip(a, b, strict=True))


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def arguments(node: Node) -> tuple[Any, ...]:
    """The positional arguments of a call; FX types them as anything an argument can be."""
    return node.args


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """Argument of a call, given by position or by name."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def is_view(node: Node) -> bool:
    """Whether a call's result has no memory of its own."""
    if getattr(node.target, "is_view", False):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(item.alias_info is not None for item in schema.returns)


def results_of(graph: Graph) -> list[Any]:
    """What a graph returns, in order."""
    results: Any = graph.output_node().args[0]
    return list(results)


# the same numbers in the same order, in another shape
RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
# the value itself
SAME = (aten.detach.default, aten.alias.default)

PRODUCTS = (aten.mm.default, aten.addmm.default)


def stored(x: torch.Tensor) -> torch.Tensor:
    """The value itself, out of memory: programs that read this one do not make it. Put in by `passes.shared`."""
    return x


def product_parts(node: Node) -> tuple[Any, Any, Any] | None:
    """(bias or None, rows, weight) of one of PRODUCTS; None for an addmm with alpha or beta."""
    if node.kwargs:
        return None
    return (None, *arguments(node)[:2]) if is_call(node, aten.mm.default) else arguments(node)[:3]


_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)


def is_transpose(node: Any) -> bool:
    """Whether a node swaps the axes of a matrix."""
    return is_call(node, *_TRANSPOSES) and bool(value(node).dim() == 2) and not _keeps_axes(node)


def _keeps_axes(node: Node) -> bool:
    if is_call(node, aten.t.default):
        return False
    if is_call(node, aten.permute.default):
        return bool(arguments(node)[1][0] % 2 == 0)
    first, second = arguments(node)[1:3]
    return bool(first % 2 == second % 2)


def total_product_of(node: Any) -> tuple[Node, Node] | None:
    """(a, b) of mm(t(a), b): a sum over the rows of both. None for any other node."""
    if not is_call(node, aten.mm.default):
        return None
    left, right = arguments(node)[:2]
    return (arguments(left)[0], right) if is_transpose(left) else None


class Editor:
    """Adds nodes before `anchor`, with their values and `anchor`'s provenance."""

    def __init__(self, graph: Graph, anchor: Node) -> None:
        self.graph = graph
        self.anchor = anchor

    def call(self, target: Target, *args: Any, **kwargs: Any) -> Node:
        node = self._add(target, args, kwargs)
        node.meta["val"] = evaluate(node)
        return node

    def valued(self, val: Any, target: Target, *args: Any) -> Node:
        """A call whose fake value is given."""
        node = self._add(target, args, {})
        node.meta["val"] = val
        return node

    def _add(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_function(target, args, kwargs)
        for key in _PROVENANCE:
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        return node

    def size(self, node: Node, axis: int) -> Any:
        """A size as an argument: an int where it is static, else a node."""
        size = value(node).shape[axis]
        number = static(size)
        return number if number is not None else self.call(aten.sym_size.int, node, axis)


def evaluate(node: Node) -> Any:
    """The value of a call on its arguments' fake values."""
    assert callable(node.target)
    args, kwargs = tree_map_only(Node, value, (node.args, node.kwargs))
    fakes = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    # a fill of symbolic size has no tensor among its arguments: the graph's other values know the mode
    mode = torch._guards.detect_fake_mode(fakes) or torch._guards.detect_fake_mode([value(item) for item in node.graph.nodes])
    if mode is None:
        return node.target(*args, **kwargs)
    # a size that depends on data is a new symbol; nobody waits for this one, since AOTAutograd makes its own
    unnoticed = mode.shape_env.ignore_fresh_unbacked_symbols() if mode.shape_env is not None else contextlib.nullcontext()
    with mode, torch.no_grad(), unnoticed:
        return node.target(*args, **kwargs)


def replace(node: Node, new: Node) -> None:
    """All uses of `node` become uses of `new`, and `node` goes."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def replace_views(node: Node, result: Node) -> None:
    """Views behind a product that has several rows per edge, and that are by edge again, are views of the result."""
    for user in list(node.users):
        if not is_call(user, *RESHAPES):
            continue
        sizes, own = inner_sizes(value(user)), inner_sizes(value(result)) or ()
        is_by_edge = same_size(value(user).shape[0], value(result).shape[0]) and sizes is not None
        if is_by_edge and math.prod(sizes or ()) == math.prod(own):
            edit = Editor(node.graph, user)
            user.replace_all_uses_with(edit.call(aten.reshape.default, result, [edit.size(result, 0), *(sizes or ())]))
        else:
            replace_views(user, result)


def source_line(node: Node) -> str:
    """Where in the user's model a node came from: the innermost frame that is not torch's; "" when unknown."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    frames = [(line, lines[k + 1] if k + 1 < len(lines) else "") for k, line in enumerate(lines) if line.startswith("File ")]
    for line, code in reversed(frames):
        parts = line.split('"')
        if len(parts) < 3:
            continue
        tail = parts[2].strip(", ")
        number = tail.removeprefix("line ").split(",")[0]
        return f"{parts[1]}:{number}: {code}" if code else f"{parts[1]}:{number}"
    return ""


def stable_topological_sort(graph: Graph) -> None:
    """Puts every node after its inputs, moving as little as possible; raises if the graph has a cycle."""
    order: list[Node] = []
    done: set[Node] = set()
    nodes = list(graph.nodes)
    for root in nodes:
        stack = [(root, False)]
        path: set[Node] = set()
        while stack:
            node, leaving = stack.pop()
            if leaving:
                path.discard(node)
                if node not in done:
                    done.add(node)
                    order.append(node)
                continue
            if node in done:
                continue
            if node in path:
                raise RuntimeError(f"cycle through {node}")
            path.add(node)
            stack.append((node, True))
            stack.extend((dep, False) for dep in reversed(node.all_input_nodes) if dep not in done)
    first = order[0]
    cursor = first
    for node in order[1:]:
        cursor.append(node)
        cursor = node
