"""Functions as graphs of aten operators, and graphs as text that a test can show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from plait.passes.canonicalize import canonicalize, materialize_fills
from plait.passes.domains import Domains, infer
from plait.passes.edit import aten, value
from plait.passes.structure import merge_equal
from tests.check import Numbers, assert_same_step, magnitude_of

N, E = 7, 19  # sizes that no test uses for anything else


def traced(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """The functional forward graph before any pass; as in a capture, rows are symbolic and feature sizes are not."""

    def run(*given: Any) -> Any:
        for item in given:
            if isinstance(item, Tensor) and item.is_floating_point():
                [int(size) for size in item.shape[1:]]
        return torch.func.functionalize(function, remove="mutations")(*given)

    with torch.no_grad():
        graph_module = make_fx(run, tracing_mode="symbolic")(*inputs)
    graph_module.graph.eliminate_dead_code()
    names = inspect.signature(function).parameters
    for node, name in zip(graph_module.graph.find_nodes(op="placeholder"), names, strict=False):
        node.name = name
    return graph_module


def canonical(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """The graph as the later passes get it."""
    graph_module = traced(function, *inputs)
    materialize_fills(graph_module.graph)
    canonicalize(graph_module.graph)
    merge_equal(graph_module.graph)
    graph_module.recompile()
    return graph_module


Law = Callable[[Graph, Domains], list[str]]


def rewritten(laws: Sequence[Law], function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    """The canonical graph after some laws, and what they say they moved."""
    graph_module = canonical(function, *inputs)
    moved = []
    for law in laws:
        moved += law(graph_module.graph, infer(graph_module.graph))
        merge_equal(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module, moved


def num_edge_products(graph_module: GraphModule, num_edges: int) -> int:
    """Products that read a tensor with a row per edge (`num_edges` is a size that nothing else has), or several."""
    products = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.mv.default)
    sizes = {num_edges * factor for factor in range(1, 9)}
    reads = [
        {int(size) for item in node.all_input_nodes for size in value(item).shape}
        for node in graph_module.graph.nodes
        if node.target in products
    ]
    return sum(not sizes.isdisjoint(found) for found in reads)


def text(graph: Graph) -> str:
    """One line a call of an operator, without sizes: names of arguments, and numbers as they stand."""
    lines = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(value(node), Tensor):
            arguments = [*map(_argument, node.args), *(f"{name}={_argument(item)}" for name, item in node.kwargs.items())]
            lines.append(f"{_name(node)} = {_target(node)}({', '.join(arguments)})")
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0])}")
    return "\n".join(lines)


def _name(node: Node) -> str:
    return node.name.replace("_default", "").replace("_Tensor", "").replace("_tensor", "")


def _target(node: Node) -> str:
    target: Any = node.target
    return str(target).removesuffix(".default") if isinstance(target, torch._ops.OpOverload) else target.__name__


def _argument(item: object) -> str:
    if isinstance(item, Node):
        return _name(item) if isinstance(value(item), Tensor) else "size"
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(_argument, item))}]"
    return str(item)


def targets(graph: Graph) -> list[str]:
    return [_target(node) for node in graph.nodes if node.op == "call_function" and isinstance(value(node), Tensor)]


def assert_same_law(graph_module: GraphModule, function: Callable[..., Any], inputs: Sequence[Any]) -> None:
    """The graph gives the numbers of `function`, and the gradients of every float input."""
    results = []
    for run in (graph_module, function):
        copies = [
            item.detach().clone().requires_grad_(item.is_floating_point()) if isinstance(item, Tensor) else item
            for item in inputs
        ]
        outputs = [item for item in pytree.tree_leaves(run(*copies)) if isinstance(item, Tensor)]
        generator = torch.Generator().manual_seed(5)
        differentiable = [item for item in outputs if item.requires_grad]
        weights = [torch.randn(item.shape, generator=generator) for item in differentiable]
        floats = [item for item in copies if isinstance(item, Tensor) and item.requires_grad]
        grads = torch.autograd.grad(differentiable, floats, weights, allow_unused=True) if differentiable else ()
        results.append(
            Numbers(
                {f"output {n}": item.detach() for n, item in enumerate(outputs)},
                {f"gradient {n}": item for n, item in enumerate(grads)},
                {},
            )
        )
    # halves that are subtracted until nothing is left are 0 in one order, and the inputs' rounding in another
    terms = max((magnitude_of(item) for item in inputs if isinstance(item, Tensor) and item.is_floating_point()), default=0.0)
    assert_same_step(*results, magnitude=terms)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with ties and zeros."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4


def ends(num_edges: int = E, num_nodes: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    src, dst = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))
    return src, dst
