"""The backend: the only place that knows the whole chain, from Dynamo's capture to a callable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule

from plait import graph as graph_structure
from plait.capture.again import Again
from plait.capture.assemble import EVERY_OUTPUT, assemble, build_kernels
from plait.capture.budget import budget_bytes, counts_on_sums, plan_within
from plait.capture.partition import Halves, Joint, boxed, copy_graph, default_plan, partition, predict
from plait.capture.record import Record, new_record
from plait.capture.region import Region
from plait.capture.run_passes import run_forward_passes, run_joint_passes
from plait.capture.step import step_of
from plait.capture.trace import check_memory, detach_no_grad, forward_graph, mark_dropout, specialize_floats
from plait.capture.watch import FLAGS
from plait.capture.worth import Work, is_worthwhile
from plait.config import Options, environment
from plait.errors import OptionError, UnsupportedError, first_line
from plait.passes import pipeline
from plait.passes.recompute import forward_nodes

log = logging.getLogger("plait")
Callback = Callable[..., Any]


def set_dynamo_flags() -> None:
    """Lets Dynamo capture self-loop handling (sizes that depend on data) without a graph break; for the whole process."""
    if not environment().dynamo_flags:
        return
    for flag in FLAGS:
        setattr(torch._dynamo.config, flag, True)


set_dynamo_flags()


def plait_backend(
    gm: GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None, **named: Any
) -> Callback:
    """Backend "plait" of `torch.compile`: compiles a captured graph, or returns it as it is with the reason recorded.

    options: see `plait.config.Options`; an unknown one raises OptionError.
    """
    chosen = Options.parse({**(options or {}), **named})
    record = new_record(chosen)
    graph_structure.prepare()  # its library builds while we trace
    record.wants(pipeline.STAGES[0])  # an unknown stage is an error before any work
    specialize_floats(gm)
    for attempt in (_compile_rewritten, _compile_as_captured):
        try:
            compiled = attempt(gm, example_inputs, record)
        except (TorchDynamoException, OptionError):
            raise  # Dynamo's own control flow: restarts of the analysis, graph breaks
        except UnsupportedError as error:
            if record.options.is_strict() and record.fallbacks:
                raise
            record.note(str(error))
        except Exception as error:
            log.debug("capture failed", exc_info=True)
            record.fall_back("capture", first_line(error))
        else:
            if not (record.is_rewritten or record.moved or record.dropped):
                record.hand_back("nothing in this graph is fused or moved: it runs as PyTorch runs it")
                return gm.forward
            if not record.is_worthwhile:
                record.hand_back("fusing this graph would save less time than calling it takes: it runs as PyTorch runs it")
                return gm.forward
            return compiled
    record.fall_back("capture", "the graph runs as it was captured, un-compiled")
    return gm.forward


def _compile_rewritten(gm: GraphModule, example_inputs: Sequence[Any], record: Record) -> Callback:
    """The whole chain: rewrites happen before autograd."""
    marked = GraphModule(gm, copy_graph(gm.graph))
    mark_dropout(marked)
    detach_no_grad(marked)
    forward = forward_graph(marked, example_inputs)
    record.dump_graph("captured", gm)
    budget = budget_bytes(gm, example_inputs, record)
    keeps_sums = budget is None or counts_on_sums(forward, example_inputs, record, budget)
    run_forward_passes(forward, example_inputs, record, keeps_sums=keeps_sums)
    eager = GraphModule(forward, copy_graph(forward.graph))
    return _aot(forward, example_inputs, Again(eager), record, budget)


def _compile_as_captured(gm: GraphModule, example_inputs: Sequence[Any], record: Record) -> Callback:
    """Without the passes before autograd: for graphs with rules for gradients of their own. Regions are fused all the same."""
    captured = GraphModule(gm, copy_graph(gm.graph))
    again = Again(GraphModule(gm, copy_graph(gm.graph)))
    return _aot(captured, example_inputs, again, record, budget_bytes(gm, example_inputs, record))


def _aot(gm: GraphModule, example_inputs: Sequence[Any], again: Again, record: Record, budget: int | None) -> Callback:
    """The graph cut into forward and backward by AOTAutograd, each half assembled, and the function that runs them.

    budget: bytes a training step may hold, or None.
    """
    halves: list[Halves] = []

    def inference(graph: GraphModule, _: Any) -> Callback:
        check_memory(graph.graph)
        captured = Work.of_captured(graph.graph)
        run_joint_passes(graph, set(graph.graph.nodes), record)
        assembled = assemble(graph, "inference", record, num_returned=EVERY_OUTPUT)
        record.is_worthwhile = is_worthwhile(captured, [assembled.graph], record)
        return boxed(assembled, None)

    def cut(joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> tuple[GraphModule, GraphModule]:
        check_memory(joint.graph)
        captured = Work.of_captured(joint.graph)
        run_joint_passes(joint, forward_nodes(joint.graph, num_fwd_outputs), record)
        whole = Joint(joint, inputs, num_fwd_outputs, kwargs)
        plan = default_plan(whole, record) if budget is None else plan_within(budget, whole, record)
        halves.append(partition(whole, record, plan))
        record.prediction = predict(halves[0])
        record.is_worthwhile = is_worthwhile(captured, [halves[0].forward.graph, halves[0].backward.graph], record)
        return halves[0].forward, halves[0].backward

    backend = aot_autograd(fw_compiler=boxed, bw_compiler=boxed, inference_compiler=inference, partition_fn=cut)
    # a donated buffer would forbid `retain_graph=True`; our buffers go back to the pool by their reference counts anyway
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = backend(gm, example_inputs)
    if record.is_worthwhile:
        for launches in record.launches.values():
            build_kernels(launches, record)
    step = step_of(halves[0] if halves else None, len(example_inputs), again)
    return step if step is not None else Region(compiled, again)
