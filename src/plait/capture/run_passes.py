"""The graph passes run on a captured graph, with what they depend on besides it; what they say goes into the record."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from plait.capture.origin import source_lines
from plait.capture.record import Record
from plait.capture.tune import machine_costs
from plait.passes import pipeline
from plait.passes.edit import is_integral, is_tensor
from plait.passes.order_costs import Setting


def run_forward_passes(gm: GraphModule, example_inputs: Sequence[Any], record: Record, *, keeps_sums: bool = True) -> float:
    """The passes before autograd, on a functional forward graph. keeps_sums: as in `Setting`.

    Returns the seconds of a step that depend on what they chose, as `passes.order` predicts them.
    """
    is_training, wanted = trains(example_inputs), set[Node]()
    if is_training:
        pairs = zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
        wanted.update(node for node, item in pairs if getattr(item, "requires_grad", False))
    for node in gm.graph.nodes:
        if not wanted.isdisjoint(node.all_input_nodes) and is_tensor(node) and not is_integral(node):
            wanted.add(node)
    order = record.options.order
    return _run(
        gm,
        pipeline.FORWARD,
        record,
        Setting(machine_costs, is_training, wanted.__contains__, order=order, keeps_sums=keeps_sums),
    )


def run_joint_passes(gm: GraphModule, forward: Collection[Node], record: Record) -> None:
    """The passes behind autograd. What the forward computes has its order already, and the backward follows it or not."""
    order = "auto" if record.options.order == "auto" else "as_written"
    _run(gm, pipeline.JOINT, record, Setting(machine_costs, False, lambda node: False, lambda node: node not in forward, order))


def trains(example_inputs: Sequence[Any]) -> bool:
    """Whether a graph captured with these inputs will have a backward."""
    return torch.is_grad_enabled() and any(getattr(item, "requires_grad", False) for item in example_inputs)


def _run(gm: GraphModule, passes: Sequence[pipeline.Pass], record: Record, setting: Setting) -> float:
    sources: dict[str, str] = {}
    seconds = 0.0
    for item in passes:
        if not item.required and not record.wants(item.name):
            continue
        sources |= source_lines(node for node in gm.graph.nodes if node.name not in sources)
        remarks = item.run(gm.graph, setting)
        seconds += remarks.seconds
        record.note_moved(remarks.moved, sources)
        record.left.update(remarks.left)
        gm.recompile()
        record.dump_graph(item.name, gm)
    return seconds
