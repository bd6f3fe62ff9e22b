"""The functional forward graph of aten operators, before autograd, from what Dynamo captured.

Rewriting before autograd makes every gradient right by construction. The trace keeps Dynamo's symbols (its fake mode, its
unbacked sizes), so that guards found later still reach Dynamo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._guards import TracingContext, detect_fake_mode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import PropagateUnbackedSymInts
from torch.fx.traceback import preserve_node_meta
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from plait import operators
from plait.errors import UnsupportedError

_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)
# what a trace through the operators would lose: these keep autograd's own rules
_AUTOGRAD_RULES = (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast)
aten = torch.ops.aten


def _copy(base: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What functionalization makes of `a[...] = b`; aten has no derivative for its operator."""
    return source.to(base.dtype).expand(base.shape).clone()


_DECOMPOSITIONS = {aten.copy.default: _copy}


def specialize_floats(gm: GraphModule) -> None:
    """Python floats that Dynamo passed as symbolic inputs (slopes, probabilities) become constants: capture starts again."""
    restart = False
    for node in gm.graph.nodes:
        example = node.meta.get("example_value")
        if not isinstance(example, torch.SymFloat):
            continue
        for symbol in example.node.expr.free_symbols:
            if not TensorifyState.should_specialize(str(symbol)):
                TensorifyState.specialize(str(symbol))
                restart = True
    if restart:
        raise TensorifyScalarRestartAnalysis


def mark_dropout(gm: GraphModule) -> bool:
    """Training dropout becomes `plait::dropout`, so that edge dropout can be recognised later; whether there was any."""
    found = False
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUTS:
            continue
        x, p, training, inplace = _dropout_arguments(node)
        if training is False or p == 0:
            node.replace_all_uses_with(x)
            gm.graph.erase_node(node)
            continue
        if training is not True or inplace or not isinstance(p, float | int) or not 0 < p < 1:
            continue
        with gm.graph.inserting_before(node):
            new = gm.graph.call_function(operators.dropout, (x, float(p)))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        gm.graph.erase_node(node)
        found = True
    gm.recompile()
    return found


def _dropout_arguments(node: Node) -> tuple[Any, Any, Any, Any]:
    names = ("input", "p", "training", "inplace")
    defaults = {"p": 0.5, "training": True, "inplace": False}
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    x, p, training, inplace = (given.get(name, defaults.get(name)) for name in names)
    return x, _static(p), training, inplace


def _static(number: Any) -> Any:
    """A symbolic float that has been specialized, as the number it is."""
    example = number.meta.get("example_value") if isinstance(number, Node) else None
    if isinstance(example, torch.SymFloat) and not example.node.expr.free_symbols:
        return float(example)
    return example if isinstance(example, float) else number


def detach_no_grad(gm: GraphModule) -> None:
    """What is computed under `torch.no_grad()` is detached, and the switches go: the trace has no gradients of its own.

    A region that writes in place stays as it is: a write to a tensor with a gradient is allowed there, and nowhere else.
    """
    enabled = [torch.is_grad_enabled()]
    inside: list[Node] = []
    switches: list[Node] = []
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is torch._C._set_grad_enabled:
            enabled.append(bool(node.args[0]))
            switches.append(node)
        elif not enabled[-1] and node.op not in ("placeholder", "get_attr", "output"):
            inside.append(node)
    if (
        not switches
        or not enabled[0]
        or not enabled[-1]
        or any(_writes(node) and not _is_fresh(node.args[0], set(inside)) for node in inside)
    ):
        return
    members = set(inside)
    for node in inside:
        if not isinstance(node.meta.get("example_value"), torch.Tensor) or all(user in members for user in node.users):
            continue
        with gm.graph.inserting_after(node):
            new = gm.graph.call_method("detach", (node,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new and user not in members)  # type: ignore[misc]
    for node in switches:
        gm.graph.erase_node(node)
    gm.recompile()


def _writes(node: Node) -> bool:
    """Whether a captured call writes to a tensor: x.add_(1), torch.relu_(x), x[0] = 1, out=..."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    is_inplace = name.endswith("_") and not name.endswith("__")
    return is_inplace or name in ("setitem", "iadd", "imul", "isub", "itruediv") or "out" in node.kwargs


def _is_fresh(node: Any, inside: set[Node]) -> bool:
    """Whether a tensor was made in the region, of no tensor's memory: what views and writes there return is fresh, too."""
    while isinstance(node, Node) and node in inside:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name.removeprefix("new_").removesuffix("_like") in ("zeros", "ones", "full", "empty"):
            return True
        if not node.args:
            return False
        node = node.args[0]
    return False


def forward_graph(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule:
    """`gm` as a functional graph of aten operators; raises UnsupportedError where that would lose autograd's rules."""
    subclasses = {type(item).__name__ for item in example_inputs if is_traceable_wrapper_subclass(item)}
    if subclasses:
        raise UnsupportedError(f"an input is a {' and a '.join(sorted(subclasses))}, a tensor that traces itself")
    for node in gm.graph.nodes:
        if node.op == "call_function" and (
            node.target in _AUTOGRAD_RULES or isinstance(node.target, torch._ops.HigherOrderOperator)
        ):
            name = getattr(node.target, "__name__", str(node.target))
            raise UnsupportedError(f"{name} keeps its own rules for gradients")
    fakes = fake_inputs(example_inputs)
    specialize_widths(fakes)
    mode = detect_fake_mode(fakes)
    if mode is None:
        raise UnsupportedError("a capture without tensor inputs")
    interpreter = _Interpreter(gm)
    run: Callable[..., Any] = torch.func.functionalize(lambda *inputs: interpreter.run(*inputs), remove="mutations")
    with torch.no_grad(), mode, enable_python_dispatcher(), preserve_node_meta():
        return make_fx(run, tracing_mode="real", decomposition_table=_DECOMPOSITIONS, _allow_non_fake_inputs=True)(*fakes)


class _Interpreter(PropagateUnbackedSymInts):
    """Runs the captured graph. A linear layer over several axes of rows is one over rows: torch's own way to that, in C++, asks
    for the sizes as numbers, and each new size would be a new capture."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.nn.functional.linear and args and args[0].dim() > 2:
            x, *weights = args
            rows = target(x.reshape(-1, x.shape[-1]), *weights, **kwargs)
            return rows.view(*x.shape[:-1], rows.shape[-1])
        return super().call_function(target, args, kwargs)


_CHANGES_OF_MEMORY = ("inductor::resize_storage_bytes_", "aten::resize_", "aten::set_")


def check_memory(graph: Graph) -> None:
    """Raise UnsupportedError where a call frees a tensor's memory or swaps it, as reversible layers do with their inputs.

    Nothing that reads the tensor may be moved past such a call. Writes to values are no concern: by now they are copies at the
    end, or go to what nothing else reads (the running statistics of a norm).
    """
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name in _CHANGES_OF_MEMORY:
            raise UnsupportedError(f"{node.target} changes a tensor's memory, and nothing may be moved past it")


def specialize_widths(fakes: Sequence[Any]) -> None:
    """Feature sizes of float inputs become static (Dynamo guards on them): kernels are made for them, only rows vary freely."""
    for item in fakes:
        if isinstance(item, torch.Tensor) and item.dtype.is_floating_point:
            for size in item.shape[1:]:
                int(size)


def fake_inputs(example_inputs: Sequence[Any]) -> list[Any]:
    """The inputs as fake tensors with the very symbols Dynamo gave them."""
    mode = detect_fake_mode(list(example_inputs))
    context = TracingContext.try_get()

    def fake(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or isinstance(item, torch._subclasses.FakeTensor) or mode is None:
            return item
        symbolic = context.tensor_to_context.get(item) if context is not None else None
        source = symbolic.tensor_source if symbolic is not None else None
        return mode.from_tensor(item, symbolic_context=symbolic, source=source, trace=False)

    return [fake(item) for item in example_inputs]
