"""A compiled region as an autograd function of its own, so that it can be differentiated twice.

AOTAutograd's compiled backward cannot be differentiated. Around it stands a function whose backward runs the compiled
backward, except when gradients of gradients are asked for (`create_graph=True`): then the forward graph runs again eagerly,
from the same random state, and its ordinary gradient is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.fx import GraphModule


class Region:
    """What one captured graph runs as. compiled: AOTAutograd's callable; eager: the same graph, un-compiled."""

    def __init__(self, compiled: Callable[..., Any], eager: GraphModule) -> None:
        self.compiled = compiled
        self.eager = eager
        self.is_random = any(_is_random(node) for node in eager.graph.nodes)
        placeholders = [node for node in eager.graph.nodes if node.op == "placeholder"]
        self.mutated = frozenset(
            number for number, node in enumerate(placeholders) if any(_writes(user, node) for user in node.users)
        )

    def __call__(self, *inputs: Any) -> Any:
        if not torch.is_grad_enabled() or not any(isinstance(item, Tensor) and item.requires_grad for item in inputs):
            return self.compiled(*inputs)
        if any(isinstance(inputs[number], Tensor) and inputs[number].requires_grad for number in self.mutated):
            return self.compiled(*inputs)  # a write to a tensor with a gradient: autograd must see it itself
        results: Any = _Function.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return list(results)

    def run_again(self, inputs: Sequence[Any], random_state: Tensor | None) -> Sequence[Any]:
        """The outputs once more, with a graph of gradients; what the region writes to is left alone."""
        given = [item.clone() if number in self.mutated else item for number, item in enumerate(inputs)]
        with torch.random.fork_rng(devices=[], enabled=random_state is not None), torch.enable_grad():
            if random_state is not None:
                torch.set_rng_state(random_state)
            return self.eager(*given)  # type: ignore[no-any-return]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, region: Region, *inputs: Any) -> Any:
        ctx.region = region
        ctx.random_state = torch.get_rng_state() if region.is_random else None
        with torch.enable_grad():
            ctx.inner = [
                item.detach().requires_grad_(True) if isinstance(item, Tensor) and item.requires_grad else item
                for item in inputs
            ]
            outputs = tuple(region.compiled(*ctx.inner))
        differentiable = [isinstance(item, Tensor) and item.requires_grad for item in outputs]
        ctx.outputs = [item if keep else None for item, keep in zip(outputs, differentiable, strict=True)]
        results = tuple(item.detach() if keep else item for item, keep in zip(outputs, differentiable, strict=True))
        ctx.mark_non_differentiable(
            *(item for item, keep in zip(results, differentiable, strict=True) if isinstance(item, Tensor) and not keep)
        )
        ctx.set_materialize_grads(False)
        # only inputs with a gradient: a second backward starts from them, and their versions are checked then
        ctx.save_for_backward(*(item for item in inputs if isinstance(item, Tensor) and item.requires_grad))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            return None, *_differentiable_gradient(ctx, grads)
        wanted = [number for number, item in enumerate(ctx.inner) if isinstance(item, Tensor) and item.requires_grad]
        pairs = [(item, grad) for item, grad in zip(ctx.outputs, grads, strict=True) if item is not None and grad is not None]
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        result: list[Any] = [None] * len(ctx.inner)
        if pairs:
            # nothing was donated when the graph was compiled, but AOTAutograd asks for the flag again at run time
            with torch._functorch.config.patch(donated_buffer=False) if keep else contextlib.nullcontext():
                found = torch.autograd.grad(
                    [item for item, _ in pairs],
                    [ctx.inner[number] for number in wanted],
                    [grad for _, grad in pairs],
                    retain_graph=keep,
                    allow_unused=True,
                )
            for number, grad in zip(wanted, found, strict=True):
                result[number] = grad
        if not keep:
            ctx.outputs = [None] * len(ctx.outputs)
        return None, *result


def _differentiable_gradient(ctx: Any, grads: Sequence[Any]) -> list[Any]:
    region: Region = ctx.region
    saved = iter(ctx.saved_tensors)
    inputs = [next(saved) if isinstance(item, Tensor) and item.requires_grad else item for item in ctx.inner]
    outputs = region.run_again(inputs, ctx.random_state)
    pairs = [
        (item, grad)
        for item, grad in zip(outputs, grads, strict=True)
        if grad is not None and isinstance(item, Tensor) and item.requires_grad
    ]
    wanted = [number for number, item in enumerate(inputs) if isinstance(item, Tensor) and item.requires_grad]
    result: list[Any] = [None] * len(inputs)
    if not pairs:
        return result
    found = torch.autograd.grad(
        [item for item, _ in pairs],
        [inputs[number] for number in wanted],
        [grad for _, grad in pairs],
        create_graph=True,
        allow_unused=True,
    )
    for number, grad in zip(wanted, found, strict=True):
        result[number] = grad
    return result


def _is_random(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _writes(user: Any, node: Any) -> bool:
    """Whether a call changes `node` in place: batch norm writes to its running statistics, not to what it normalises."""
    schema = getattr(user.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    given = dict(zip((item.name for item in schema.arguments), user.args, strict=False)) | dict(user.kwargs)
    written = [given.get(item.name) for item in schema.arguments if item.alias_info is not None and item.alias_info.is_write]
    return any(item is node or (isinstance(item, list | tuple) and node in item) for item in written)
