"""A `Program` in plain torch, value by value: the reference of generated kernels, and what runs where there is no compiler.

EDGE values are kept in the ordering's order ([E, *shape], entry k), ROW values per row ([num_rows, *shape]), DENSE values as
they are. A row value that meets an edge value is read by every edge of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plait.errors import ProgramError, ShapeError
from plait.graph import Ordering
from plait.ir import ops
from plait.ir.ops import Reduce
from plait.ir.program import Node, Output, Program, Space
from plait.segment import counter_uniform, gather, segment_reduce


def interpret(program: Program, tensors: Sequence[Tensor], structure: Ordering) -> list[Tensor]:
    """The program's outputs: EDGE ones [E, ...] in the user's order, ROW ones [num_rows, ...], DENSE ones [...].

    `tensors` are the program's inputs by position. Outputs are contiguous and share memory with nothing. An edge value is
    dropped after its last user, so that as few [E, ...] tensors as possible are alive at once.
    """
    _check_arguments(program, tensors, structure)
    frame = _Frame(tensors, structure)
    nodes = list(program.nodes())
    last_user = {value: node for node in nodes for value in node.inputs}
    kept = {output.value for output in program.outputs}
    values: dict[Node, Tensor] = {}
    for node in nodes:
        values[node] = EVALUATE[type(node.op)](node.op, node, [values[value] for value in node.inputs], frame)
        for value in set(node.inputs):
            if last_user[value] is node and value not in kept:
                del values[value]
    return _outputs(program.outputs, values, frame)


def _check_arguments(program: Program, tensors: Sequence[Tensor], structure: Ordering) -> None:
    if len(tensors) != len(program.inputs):
        names = ", ".join(source.name for source in program.inputs)
        raise ShapeError(f"interpret {program.name}: expected {len(program.inputs)} tensors ({names}), got {len(tensors)}")
    if len(structure.indices) != len(program.maps):
        names = ", ".join(program.maps)
        raise ShapeError(
            f"interpret {program.name}: expected {len(program.maps)} index maps ({names}), got {len(structure.indices)}"
        )
    if program.ordered and structure.indptr is None:
        raise ShapeError(f"interpret {program.name}: the program runs by rows, but its ordering has no indptr")


def _outputs(outputs: tuple[Output, ...], values: dict[Node, Tensor], frame: _Frame) -> list[Tensor]:
    """Output tensors as a kernel would write them: fresh and contiguous, edges in the user's order."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in frame.tensors}
    results = []
    for output in outputs:
        result = values[output.value]
        if output.value.type.space is Space.EDGE:
            result = frame.to_user_order(result)
        result = result.contiguous()
        if result.untyped_storage().data_ptr() in taken:
            result = result.clone()
        taken.add(result.untyped_storage().data_ptr())
        results.append(result)
    return results


@dataclass(frozen=True)
class _Frame:
    """What the operators read: the input tensors and the ordering."""

    tensors: Sequence[Tensor]
    structure: Ordering

    @cached_property
    def row_of_edge(self) -> Tensor:
        """int64 [E]: the row that entry k belongs to (ascending)."""
        lengths = self.row_length
        rows = torch.arange(self.structure.num_rows, device=lengths.device)
        return rows.repeat_interleave(lengths, output_size=self.structure.num_edges)

    @property
    def row_length(self) -> Tensor:
        indptr: Tensor | None = self.structure.indptr
        if indptr is None:
            raise ProgramError("interpret: a row value in a program without an ordering map")
        return indptr.diff()

    @property
    def edge_position(self) -> Tensor:
        """int [E]: place of entry k in the user's order."""
        edge_id: Tensor | None = self.structure.edge_id
        if edge_id is not None:
            return edge_id
        return torch.arange(self.structure.num_edges, device=self.device)

    @property
    def device(self) -> torch.device:
        if self.tensors:
            return self.tensors[0].device
        found = [t for t in (self.structure.indptr, self.structure.edge_id, *self.structure.indices) if t is not None]
        return found[0].device if found else torch.device("cpu")

    def to_user_order(self, value: Tensor) -> Tensor:
        """EDGE value [E, ...] by k -> [E, ...] by the user's position."""
        if self.structure.edge_id is None:
            return value
        return torch.empty_like(value).index_copy(0, self.structure.edge_id.long(), value)

    def lift(self, value: Tensor, source: Space, target: Space) -> Tensor:
        """A value of `source` as `target` sees it, with target's leading axis: dense ones repeated, row ones read per edge."""
        if source is target:
            return value
        if source is Space.ROW:
            return gather(value, self.row_of_edge)
        length = self.structure.num_edges if target is Space.EDGE else self.structure.num_rows
        return value.expand(length, *value.shape)


# One function per operator: (its op, its node, its input values, the frame) -> its value.


def _load_edge(op: ops.LoadEdge, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    tensor = frame.tensors[op.slot]
    return tensor if frame.structure.edge_id is None else gather(tensor, frame.structure.edge_id)


def _load(op: ops.LoadRow | ops.LoadDense, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return frame.tensors[op.slot]


def _load_at(op: ops.LoadAt, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return gather(frame.tensors[op.slot], frame.structure.indices[op.map])


def _const(op: ops.Const, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return torch.full(node.type.shape, op.value, dtype=node.type.dtype, device=frame.device)


def _row_length(op: ops.RowLength, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return frame.row_length.to(node.type.dtype)


def _pointwise(op: ops.Pointwise, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    function: Callable[..., Tensor] = getattr(torch, op.fn)  # the names of POINTWISE are torch's
    return function(*_lifted(node, inputs, frame))


def _cast(op: ops.Cast, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return inputs[0].to(node.type.dtype)


def _reshape(op: ops.Reshape, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return inputs[0].reshape(_leading(node, inputs[0]) + node.type.shape)


def _expand(op: ops.Expand, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return inputs[0].expand(_leading(node, inputs[0]) + node.type.shape)


def _permute(op: ops.Permute, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    offset = _offset(node)
    return inputs[0].permute(*range(offset), *(axis + offset for axis in op.axes))


def _slice(op: ops.Slice, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    window = slice(op.start, op.start + node.type.shape[op.axis] * op.step, op.step)
    return inputs[0][(slice(None),) * (op.axis + _offset(node)) + (window,)]


def _cat(op: ops.Cat, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return torch.cat(_lifted(node, inputs, frame), dim=op.axis + _offset(node))


def _inner_reduce(op: ops.InnerReduce, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return INNER[op.reduce](inputs[0], [axis + _offset(node) for axis in op.axes])


def _uniform(op: ops.Uniform, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return counter_uniform(inputs[0], frame.edge_position, node.type.shape, node.type.dtype)


def _product(op: ops.Product, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return frame.lift(inputs[0], node.inputs[0].type.space, Space.EDGE) @ inputs[1]


def _segment_reduce(op: ops.SegmentReduce, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    rows, num_rows = frame.row_of_edge, frame.structure.num_rows
    return segment_reduce(inputs[0], rows, num_rows, reduce=op.reduce.value, init=op.init, include_init=op.include_init)


def _total_reduce(op: ops.TotalReduce, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    return inputs[0].sum(0, dtype=node.type.dtype)


def _total_product(op: ops.TotalProduct, node: Node, inputs: list[Tensor], frame: _Frame) -> Tensor:
    a, b = (frame.lift(item, value.type.space, Space.EDGE) for item, value in zip(inputs, node.inputs, strict=True))
    return a.t() @ b


def _lifted(node: Node, inputs: list[Tensor], frame: _Frame) -> list[Tensor]:
    spaces = [value.type.space for value in node.inputs]
    return [frame.lift(tensor, space, node.type.space) for tensor, space in zip(inputs, spaces, strict=True)]


def _offset(node: Node) -> int:
    """Number of leading axes of the node's tensor."""
    return 0 if node.type.space is Space.DENSE else 1


def _leading(node: Node, tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[: _offset(node)])


def _prod(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes, reverse=True):  # torch.prod takes one axis at a time
        x = x.prod(axis, dtype=x.dtype)
    return x


INNER: dict[Reduce, Callable[[Tensor, list[int]], Tensor]] = {
    Reduce.SUM: lambda x, axes: x.sum(axes, dtype=x.dtype),
    Reduce.PROD: _prod,
    Reduce.MAX: lambda x, axes: x.amax(axes),
    Reduce.MIN: lambda x, axes: x.amin(axes),
}

EVALUATE: dict[type[Any], Callable[..., Tensor]] = {
    ops.LoadEdge: _load_edge,
    ops.LoadRow: _load,
    ops.LoadAt: _load_at,
    ops.LoadDense: _load,
    ops.Const: _const,
    ops.RowLength: _row_length,
    ops.Pointwise: _pointwise,
    ops.Cast: _cast,
    ops.Reshape: _reshape,
    ops.Expand: _expand,
    ops.Permute: _permute,
    ops.Slice: _slice,
    ops.Cat: _cat,
    ops.InnerReduce: _inner_reduce,
    ops.Uniform: _uniform,
    ops.Product: _product,
    ops.SegmentReduce: _segment_reduce,
    ops.TotalReduce: _total_reduce,
    ops.TotalProduct: _total_product,
}
