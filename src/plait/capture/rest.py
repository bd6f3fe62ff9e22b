"""What is not fused, given to Inductor: `rest="inductor"`.

Groups of aten operators between the launches become submodules that Inductor compiles; the launches and the structure stay
plain calls. A group that Inductor refuses runs as it is, with the reason recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from plait.capture.record import Record
from plait.passes.edit import hint, is_tensor, value


class _IsAten(OperatorSupportBase):
    """Functional aten operators on tensors; random draws stay outside, Inductor has a generator of its own."""

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: Node) -> bool:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not is_tensor(node):
            return False
        if node.target.namespace != "aten" or node.target._schema.is_mutable:
            return False
        return torch.Tag.nondeterministic_seeded not in node.target.tags


def compile_rest(gm: GraphModule, record: Record) -> GraphModule:
    """`gm` with its groups of aten operators compiled by Inductor."""
    partitioner = CapabilityBasedPartitioner(gm, _IsAten(), allows_single_node_partition=False)
    groups = partitioner.propose_partitions()
    fused = partitioner.fuse_partitions(groups, prefix="rest_")
    for node in fused.graph.nodes:
        if node.op != "call_module" or not str(node.target).startswith("rest_"):
            continue
        module = getattr(fused, str(node.target))
        setattr(fused, str(node.target), _Compiled(_inductor(module, node, record)))
    fused.recompile()
    return fused


class _Compiled(torch.nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def _inductor(module: GraphModule, node: Node, record: Record) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    output = next(item for item in module.graph.nodes if item.op == "output")
    single = isinstance(output.args[0], Node)
    if single:
        output.args = ((output.args[0],),)
        module.recompile()
    try:
        inputs = [_side_by_side(value(item)) for item in node.args]
        # Inductor lowers core operators only: the group is traced once more with its decompositions
        traced = make_fx(module, decomposition_table=select_decomp_table(), tracing_mode="real")(*inputs)
        compiled = compile_fx_inner(traced, inputs)
    except Exception as error:  # noqa: BLE001 Inductor's errors have no common base
        record.fall_back("rest", f"Inductor: {type(error).__name__}: {error}")
        return module.forward if not single else lambda *inputs: module(*inputs)[0]

    orders = [_order(item) for item in inputs]

    def run(*inputs: Any) -> Any:
        results = compiled([_in_order(item, order) for item, order in zip(inputs, orders, strict=True)])
        return results[0] if single else results

    return run


def _side_by_side(val: Any) -> Any:
    """What Inductor is told of a tensor: a slice, which a program may have written as a tensor of its own, is given as one."""
    return val if not isinstance(val, Tensor) or _order(val) is not None else val.new_empty(val.shape)


def _order(val: Any) -> tuple[int, ...] | None:
    """The axes of a tensor by how far apart its numbers lie in memory; None where they do not lie side by side."""
    if not isinstance(val, Tensor):
        return None
    strides, sizes = ([hint(item) for item in items] for items in (val.stride(), val.shape))
    if None in strides or None in sizes:
        return tuple(range(val.dim())) if val.is_contiguous() else None
    order = sorted(range(val.dim()), key=lambda axis: (-(strides[axis] or 0), sizes[axis] == 1, axis))
    distance = 1.0
    for axis in reversed(order):
        if sizes[axis] != 1 and strides[axis] != distance:
            return None
        distance *= sizes[axis] or 1
    return tuple(order)


def _in_order(item: Any, order: tuple[int, ...] | None) -> Any:
    """A value as Inductor was told it lies: what a program writes has its axes in order, whatever it stands for had."""
    if order is None or item.permute(order).is_contiguous():
        return item
    back = sorted(range(len(order)), key=order.__getitem__)
    return item.permute(order).contiguous().permute(back)
