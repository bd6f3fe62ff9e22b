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
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import PropagateUnbackedSymInts
from torch.fx.traceback import preserve_node_meta

from plait import operators
from plait.errors import UnsupportedError

_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)
# what a trace through the operators would lose: these keep autograd's own rules
_AUTOGRAD_RULES = (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast)


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


def forward_graph(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule:
    """`gm` as a functional graph of aten operators; raises UnsupportedError where that would lose autograd's rules."""
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
    interpreter = PropagateUnbackedSymInts(gm)
    run: Callable[..., Any] = torch.func.functionalize(lambda *inputs: interpreter.run(*inputs), remove="mutations")
    with torch.no_grad(), mode, enable_python_dispatcher(), preserve_node_meta():
        return make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)


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
