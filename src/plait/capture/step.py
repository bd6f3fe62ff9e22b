"""A training step straight from autograd: one function whose forward and backward are the two halves of a captured graph.

AOTAutograd cuts the joint graph and says what inputs and outputs are to each other. Where they are simply themselves (nothing
aliases, nothing that has a gradient is written to), its own wrappers around the two halves have nothing to do, and take half a
millisecond of Python for it: on a small graph that is the time of the kernels. `Region` serves the other cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch._aot_autograd.schemas import OutputType, PlainTensorMeta, ViewAndMutationMeta
from torch._guards import TracingContext
from torch.fx import GraphModule, Node

from plait.capture.again import Again
from plait.capture.idle import note_run
from plait.capture.partition import Halves, copy_graph
from plait.passes.edit import is_tensor, results_of


class Step:
    """A captured graph in training mode: called with its inputs, a list of its outputs that autograd knows."""

    def __init__(self, halves: Halves, meta: ViewAndMutationMeta, again: Again) -> None:
        # AOTAutograd's graph module prints its code at the first call, and goes through two wrappers in every later one
        self.forward: Callable[..., Any] = GraphModule(halves.forward, copy_graph(halves.forward.graph)).forward
        self.backward = _boxed(halves.backward)
        self.again = again
        self.num_returned = halves.num_returned
        self.written: tuple[int, ...] = tuple(meta.mutated_inp_runtime_indices)
        first = len(self.written)
        self.has_gradient = tuple(info.requires_grad_for_backward for info in meta.output_info)
        self.without_gradient = tuple(first + number for number, has in enumerate(self.has_gradient) if not has)
        saved = results_of(halves.forward.graph)[self.num_returned :]
        self.num_tensors = sum(1 for node in saved if is_tensor(node))
        self.is_input = tuple(node.op == "placeholder" for node in saved[: self.num_tensors])
        # inputs with a gradient are saved once, whoever needs them: the backward, or a second backward
        placeholders = halves.forward.graph.find_nodes(op="placeholder")
        wanted = tuple(number for number, info in enumerate(meta.input_info) if info.requires_grad)
        self.extra = tuple(number for number in wanted if placeholders[number] not in saved)
        self.place = _places(placeholders, wanted, saved[: self.num_tensors], self.extra)
        # what was traced under autocast holds its casts already
        self.undo_autocast: Callable[[], Any] | None = None
        if torch._C._is_any_autocast_enabled():
            self.undo_autocast = torch._C._DisableAutocast

    def __call__(self, *inputs: Any) -> list[Any]:
        note_run()
        results: Any = _Function.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return list(results)

    def guarded(self, call: Callable[..., Any], values: Sequence[Any]) -> Any:
        """`call(*values)`, with autocast off if the graph was traced under it."""
        if self.undo_autocast is None:
            return call(*values)
        with self.undo_autocast():
            return call(*values)


def _boxed(gm: GraphModule) -> Callable[[list[Any]], Any]:
    """`gm` as a function of a list, which it empties: a kept tensor is freed behind its last reader, as in eager."""
    codegen = getattr(torch.fx.graph, "_BoxedCodeGen", None)
    if codegen is None:  # before it was there: freed when the backward ends
        return lambda values: gm.forward(*values)
    graph = copy_graph(gm.graph)
    graph.set_codegen(codegen())
    forward: Callable[[list[Any]], Any] = GraphModule(gm, graph).forward
    return forward


def _places(placeholders: Sequence[Node], wanted: Sequence[int], saved: Sequence[Any], extra: Sequence[int]) -> dict[int, int]:
    """Where among the saved tensors each input with a gradient is."""
    positions = {node: position for position, node in enumerate(saved)}
    positions |= {placeholders[number]: len(saved) + position for position, number in enumerate(extra)}
    return {number: positions[placeholders[number]] for number in wanted}


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, *inputs: Any) -> Any:
        ctx.step = step
        ctx.random_state = step.again.random_state()
        values = step.guarded(step.forward, inputs)
        returned, num_tensors = step.num_returned, step.num_tensors
        ctx.sizes = values[returned + num_tensors :]
        # a view of an output would keep the output's history alive, which keeps the view: it is saved without one
        saved = [
            item if is_input or not item._is_view() else item.detach()
            for item, is_input in zip(values[returned : returned + num_tensors], step.is_input, strict=True)
        ]
        ctx.save_for_backward(*saved, *[inputs[number] for number in step.extra])
        ctx._materialize_non_diff_grads = False
        ctx.inputs = [None if number in step.place else item for number, item in enumerate(inputs)]
        for number, value in zip(step.written, values, strict=False):
            inputs[number].copy_(value)
        ctx.mark_non_differentiable(
            *[item for item in [values[number] for number in step.without_gradient] if isinstance(item, Tensor)]
        )
        return tuple(values[len(step.written) : returned])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        step: Step = ctx.step
        saved = list(ctx.saved_tensors)
        if torch.is_grad_enabled():
            inputs = [item if number not in step.place else saved[step.place[number]] for number, item in enumerate(ctx.inputs)]
            return None, *step.again.gradient(inputs, grads, ctx.random_state)
        ctx.maybe_clear_saved_tensors()
        tangents = [grad.contiguous() for grad, has in zip(grads, step.has_gradient, strict=True) if has]
        values = [*ctx.sizes, *saved[: step.num_tensors], *tangents]
        saved.clear()
        return None, *step.guarded(step.backward, (values,))


def step_of(halves: Halves | None, num_inputs: int, again: Again) -> Step | None:
    """The step of a graph that was compiled for training, or None where AOTAutograd's wrappers have something to do."""
    context = TracingContext.try_get()
    meta = context.fw_metadata if context is not None else None
    if halves is None or meta is None or not _is_plain(meta, halves, num_inputs):
        return None
    return Step(halves, meta, again)


def _is_plain(meta: ViewAndMutationMeta, halves: Halves, num_inputs: int) -> bool:
    """Whether every input and output is simply itself."""
    if meta.tokens or meta.num_backward_tokens or meta.num_graphsafe_rng_states or meta.num_opaque_objects_saved_for_bw:
        return False
    if meta.num_tensors_saved_with_no_vc_check or meta.is_rng_op_functionalized or meta.num_intermediate_bases:
        return False
    if meta.grad_enabled_mutation is not None or meta.indices_of_inputs_that_requires_grad_with_mutations_in_bw:
        return False
    if any(info.output_type is not OutputType.non_alias for info in meta.output_info):
        return False
    metas = [*meta.subclass_inp_meta, *meta.subclass_fw_graph_out_meta, *meta.subclass_tangent_meta]
    if not all(isinstance(item, PlainTensorMeta) for item in metas):
        return False
    if not all(_is_contiguous(tangent) for tangent in meta.traced_tangents):
        return False
    written = [meta.input_info[number] for number in meta.mutated_inp_runtime_indices]
    if any(info.requires_grad or info.mutates_metadata or info.mutates_storage_metadata for info in written):
        return False
    if any(info.mutates_data for number, info in enumerate(meta.input_info) if number not in meta.mutated_inp_runtime_indices):
        return False
    return len(meta.input_info) == num_inputs == len(halves.forward.graph.find_nodes(op="placeholder"))


def _is_contiguous(tangent: Any) -> bool:
    return not isinstance(tangent, Tensor) or tangent.is_contiguous()
