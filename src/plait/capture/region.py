"""A compiled region around AOTAutograd's callable, so that it can be differentiated twice; `capture.step` is the usual way.

AOTAutograd's compiled backward cannot be differentiated. Around it stands a function whose backward runs the compiled
backward, except when gradients of gradients are asked for (`create_graph=True`), which `capture.again` computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from plait.capture.again import Again
from plait.capture.idle import note_run


class Region:
    """What one captured graph runs as. compiled: AOTAutograd's callable; again: the same graph for gradients of gradients."""

    def __init__(self, compiled: Callable[..., Any], again: Again) -> None:
        self.compiled = compiled
        self.again = again

    def __call__(self, *inputs: Any) -> Any:
        note_run()
        if not torch.is_grad_enabled() or not any(isinstance(item, Tensor) and item.requires_grad for item in inputs):
            return self.compiled(*inputs)
        if any(isinstance(inputs[number], Tensor) and inputs[number].requires_grad for number in self.again.mutated):
            return self.compiled(*inputs)  # a write to a tensor with a gradient: autograd must see it itself
        results: Any = _Function.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return list(results)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, region: Region, *inputs: Any) -> Any:
        ctx.region = region
        ctx.random_state = region.again.random_state()
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
            saved = iter(ctx.saved_tensors)
            inputs = [next(saved) if isinstance(item, Tensor) and item.requires_grad else item for item in ctx.inner]
            return None, *ctx.region.again.gradient(inputs, grads, ctx.random_state)
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
