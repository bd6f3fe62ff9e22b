"""The rules of a `Program`: what type every operator gives, and what a whole program must keep to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plait.errors import ProgramError
from plait.ir import ops
from plait.ir.ops import POINTWISE, Reduce
from plait.ir.program import Input, Node, Program, Space, Type
from plait.ir.text import node_to_text, number_values


def verify(program: Program) -> None:
    """Raise `ProgramError` at the first rule the program breaks, with the value, what was expected and what was found."""
    _verify_names(program)
    for source in program.inputs:
        _verify_input(source, program)
    numbers = number_values(program)
    for node in numbers:
        try:
            _verify_node(node, program)
        except ProgramError as error:
            raise ProgramError(f"{program.name}: {node_to_text(node, numbers, program)}\n  {error}") from None
    _verify_outputs(program)


def _verify_names(program: Program) -> None:
    _verify_distinct(program, "index maps", program.maps)
    # inputs and outputs share one list: both are parameters of the generated function
    names = [source.name for source in program.inputs] + [output.name for output in program.outputs]
    _verify_distinct(program, "inputs and outputs", names)


def _verify_distinct(program: Program, what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ProgramError(f"{program.name}: expected distinct names of {what}, got {name!r} twice")
        seen.add(name)


def _verify_input(source: Input, program: Program) -> None:
    where = f"{program.name}: input {source.name}"
    if source.access not in SPACES:
        raise ProgramError(f"{where}: expected access {', '.join(SPACES)}, got {source.access!r}")
    if source.access == "row" and not program.ordered:
        raise ProgramError(f"{where}: expected an ordered program for access 'row', got an unordered one")
    if source.access != "at" and source.index_map is not None:
        raise ProgramError(f"{where}: expected no index map for access {source.access!r}, got {source.index_map}")
    if source.access == "at" and source.index_map not in range(len(program.maps)):
        raise ProgramError(f"{where}: expected an index map from 0 to {len(program.maps) - 1}, got {source.index_map}")
    _verify_shape(source.shape, where)


def _verify_shape(shape: object, where: str) -> None:
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise ProgramError(f"{where}: expected a shape of static ints, got {shape}")


def _verify_node(node: Node, program: Program) -> None:
    _verify_shape(node.type.shape, "type")
    if node.type.space is Space.ROW and not program.ordered:
        raise ProgramError("expected an ordered program for a row value, got an unordered one")
    if any(isinstance(value.op, ops.TOTALS) for value in node.inputs):
        raise ProgramError("a total is complete only after the last row: it can be an output, no value can read it")
    types = tuple(value.type for value in node.inputs)
    expected = infer_type(node.op, types, shape=node.type.shape, dtype=node.type.dtype, sources=program.inputs)
    if node.type != expected:
        raise ProgramError(f"expected type {expected}, got {node.type}")


def _verify_outputs(program: Program) -> None:
    if not program.outputs:
        raise ProgramError(f"{program.name}: expected at least one output, got none")
    for output in program.outputs:
        value = output.value
        if value.type.space is Space.DENSE and not isinstance(value.op, ops.TOTALS):
            raise ProgramError(
                f"{program.name}: output {output.name}: expected an edge value, a row value or a total, "
                f"got {value.type} of {type(value.op).__name__}: nothing in it needs this program"
            )


# --- types -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Free:
    """The parts of a type that inputs don't fix: dtype of a cast, shape of a reshape, the tensors that loads read."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    sources: Sequence[Input]

    def need_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise ProgramError("expected a shape: the inputs don't fix it")
        return self.shape

    def need_dtype(self) -> torch.dtype:
        if self.dtype is None:
            raise ProgramError("expected a dtype: the inputs don't fix it")
        return self.dtype


def infer_type(
    op: ops.Op,
    inputs: Sequence[Type],
    *,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    sources: Sequence[Input] = (),
) -> Type:
    """The type of `op` on values of these types; `ProgramError` if it does not accept them.

    `shape` is read for Reshape, Expand, Slice and Uniform, `dtype` for Const, RowLength, Cast and Uniform, `sources` (the
    program's inputs) for loads.

    >>> str(infer_type(ops.Cast(), [Type(Space.EDGE, (4,), torch.bool)], dtype=torch.float32))
    'edge[4] float32'
    """
    arity = _arity(op)
    if arity is None and not inputs:
        raise ProgramError("expected at least one input, got none")
    if arity is not None and len(inputs) != arity:
        raise ProgramError(f"expected {arity} inputs, got {len(inputs)}")
    return INFER[type(op)](op, tuple(inputs), _Free(shape, dtype, sources))


def _arity(op: ops.Op) -> int | None:
    """Number of inputs, None if any number will do."""
    if isinstance(op, ops.LEAVES):
        return 0
    if isinstance(op, ops.Cat):
        return None
    if isinstance(op, ops.Product | ops.TotalProduct):
        return 2
    if not isinstance(op, ops.Pointwise):
        return 1
    if op.fn not in POINTWISE:
        raise ProgramError(f"expected a function of POINTWISE, got {op.fn!r}")
    return POINTWISE[op.fn].arity


def _load(op: ops.LoadEdge | ops.LoadRow | ops.LoadAt | ops.LoadDense, inputs: tuple[Type, ...], free: _Free) -> Type:
    if op.slot not in range(len(free.sources)):
        raise ProgramError(f"expected an input from 0 to {len(free.sources) - 1}, got slot {op.slot}")
    source, access = free.sources[op.slot], ACCESS[type(op)]
    if source.access != access:
        raise ProgramError(f"expected an input with access {access!r}, got {source.name} with {source.access!r}")
    if isinstance(op, ops.LoadAt) and op.map != source.index_map:
        raise ProgramError(f"expected index map {source.index_map} of input {source.name}, got {op.map}")
    return Type(SPACES[access], source.shape, source.dtype)


def _const(op: ops.Const, inputs: tuple[Type, ...], free: _Free) -> Type:
    dtype = free.need_dtype()
    if isinstance(op.value, float) and not dtype.is_floating_point:
        raise ProgramError(f"expected a floating dtype for {op.value!r}, got {_name(dtype)}")
    return Type(Space.DENSE, (), dtype)


def _row_length(op: ops.RowLength, inputs: tuple[Type, ...], free: _Free) -> Type:
    return Type(Space.ROW, (), free.need_dtype())


def _pointwise(op: ops.Pointwise, inputs: tuple[Type, ...], free: _Free) -> Type:
    function = POINTWISE[op.fn]
    if function.result == "second" and inputs[0].dtype is not torch.bool:
        raise ProgramError(f"expected a bool condition, got {inputs[0]}")
    same = inputs[1:] if function.result == "second" else inputs
    if len({value.shape for value in inputs}) > 1 or len({value.dtype for value in same}) > 1:
        raise ProgramError(f"expected inputs of one inner shape and dtype, got {_list(inputs)}")
    dtype = same[0].dtype
    if op.fn in FLOATING and not dtype.is_floating_point:
        raise ProgramError(f"expected floating inputs, got {_list(inputs)}")
    if function.result == "same" and dtype is torch.bool:
        raise ProgramError(f"expected numbers, got {_list(inputs)}: cast first, or use logical_and, logical_or")
    return Type(_join(inputs), same[0].shape, torch.bool if function.result == "bool" else dtype)


def _cast(op: ops.Cast, inputs: tuple[Type, ...], free: _Free) -> Type:
    return Type(inputs[0].space, inputs[0].shape, free.need_dtype())


def _reshape(op: ops.Reshape, inputs: tuple[Type, ...], free: _Free) -> Type:
    result = Type(inputs[0].space, free.need_shape(), inputs[0].dtype)
    if result.numel != inputs[0].numel:
        raise ProgramError(f"expected {inputs[0].numel} elements as in {inputs[0]}, got {result}")
    return result


def _expand(op: ops.Expand, inputs: tuple[Type, ...], free: _Free) -> Type:
    old, new = inputs[0].shape, free.need_shape()
    if len(old) != len(new) or any(before not in (1, after) for before, after in zip(old, new, strict=True)):
        raise ProgramError(f"expected {list(old)} with axes of size 1 repeated, got {list(new)}")
    return Type(inputs[0].space, new, inputs[0].dtype)


def _permute(op: ops.Permute, inputs: tuple[Type, ...], free: _Free) -> Type:
    old = inputs[0].shape
    if sorted(op.axes) != list(range(len(old))):
        raise ProgramError(f"expected each of the {len(old)} axes once, got {list(op.axes)}")
    return Type(inputs[0].space, tuple(old[axis] for axis in op.axes), inputs[0].dtype)


def _slice(op: ops.Slice, inputs: tuple[Type, ...], free: _Free) -> Type:
    old, new = inputs[0].shape, free.need_shape()
    _check_axis(op.axis, old)
    if op.start < 0 or op.step < 1:
        raise ProgramError(f"expected start >= 0 and step >= 1, got start {op.start}, step {op.step}")
    if len(new) != len(old):
        raise ProgramError(f"expected {len(old)} axes, got {list(new)}")
    length = new[op.axis]
    last = op.start + (length - 1) * op.step
    if length > 0 and last >= old[op.axis]:
        raise ProgramError(f"expected entries below {old[op.axis]} of axis {op.axis}, got entry {last}")
    return Type(inputs[0].space, _replaced(old, op.axis, length), inputs[0].dtype)


def _cat(op: ops.Cat, inputs: tuple[Type, ...], free: _Free) -> Type:
    first = inputs[0]
    _check_axis(op.axis, first.shape)
    for value in inputs:
        same_axes = len(value.shape) == len(first.shape) and _replaced(value.shape, op.axis, 0) == _replaced(
            first.shape, op.axis, 0
        )
        if not same_axes or value.dtype is not first.dtype:
            raise ProgramError(f"expected inputs that differ in axis {op.axis} only, got {_list(inputs)}")
    total = sum(value.shape[op.axis] for value in inputs)
    return Type(_join(inputs), _replaced(first.shape, op.axis, total), first.dtype)


def _inner_reduce(op: ops.InnerReduce, inputs: tuple[Type, ...], free: _Free) -> Type:
    old = inputs[0].shape
    if not op.axes or len(set(op.axes)) != len(op.axes):
        raise ProgramError(f"expected one or more distinct axes, got {list(op.axes)}")
    for axis in op.axes:
        _check_axis(axis, old)
    if op.reduce in (Reduce.MAX, Reduce.MIN) and any(old[axis] == 0 for axis in op.axes):
        raise ProgramError(f"expected axes with entries for {op.reduce.value}, got {inputs[0]}")
    _check_number(inputs[0])
    return Type(inputs[0].space, tuple(size for axis, size in enumerate(old) if axis not in op.axes), inputs[0].dtype)


def _uniform(op: ops.Uniform, inputs: tuple[Type, ...], free: _Free) -> Type:
    seed = Type(Space.DENSE, (), torch.int64)
    if inputs[0] != seed:
        raise ProgramError(f"expected a seed {seed}, got {inputs[0]}")
    if free.need_dtype() not in (torch.float32, torch.float64):
        raise ProgramError(f"expected float32 or float64 (narrower ones can't hold 24 bits), got {_name(free.need_dtype())}")
    return Type(Space.EDGE, free.need_shape(), free.need_dtype())


def _segment_reduce(op: ops.SegmentReduce, inputs: tuple[Type, ...], free: _Free) -> Type:
    if inputs[0].space is not Space.EDGE:
        raise ProgramError(f"expected an edge value, got {inputs[0]}")
    _check_number(inputs[0])
    return Type(Space.ROW, inputs[0].shape, inputs[0].dtype)


def _total_reduce(op: ops.TotalReduce, inputs: tuple[Type, ...], free: _Free) -> Type:
    if inputs[0].space is Space.DENSE:
        raise ProgramError(f"expected an edge or a row value, got {inputs[0]}")
    _check_number(inputs[0])
    return Type(Space.DENSE, inputs[0].shape, inputs[0].dtype)


def _product(op: ops.Product, inputs: tuple[Type, ...], free: _Free) -> Type:
    value, weight = inputs
    if value.space is Space.DENSE or len(value.shape) != 1:
        raise ProgramError(f"expected an edge or a row value with one axis, got {value}")
    if weight.space is not Space.DENSE or len(weight.shape) != 2 or weight.shape[0] != value.shape[0]:
        raise ProgramError(f"expected a weight dense[{value.shape[0]}, ...], got {weight}")
    _check_factors(value, weight)
    return Type(Space.EDGE, weight.shape[1:], value.dtype)


def _total_product(op: ops.TotalProduct, inputs: tuple[Type, ...], free: _Free) -> Type:
    for value in inputs:
        if value.space is Space.DENSE or len(value.shape) != 1:
            raise ProgramError(f"expected edge or row values with one axis, got {value}")
    _check_factors(*inputs)
    return Type(Space.DENSE, (inputs[0].shape[0], inputs[1].shape[0]), inputs[0].dtype)


def _check_factors(a: Type, b: Type) -> None:
    if a.dtype is not b.dtype or not a.dtype.is_floating_point:
        raise ProgramError(f"expected factors of one floating dtype, got {_list((a, b))}")


def _check_axis(axis: int, shape: tuple[int, ...]) -> None:
    if axis not in range(len(shape)):
        raise ProgramError(f"expected an axis from 0 to {len(shape) - 1}, got {axis}")


def _check_number(value: Type) -> None:
    if value.dtype is torch.bool:
        raise ProgramError(f"expected numbers to reduce, got {value}: cast first")


def _replaced(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _join(inputs: tuple[Type, ...]) -> Space:
    spaces = {value.space for value in inputs}
    return next(space for space in (Space.EDGE, Space.ROW, Space.DENSE) if space in spaces)


def _list(inputs: tuple[Type, ...]) -> str:
    return " and ".join(str(value) for value in inputs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# the access an input must have to be read by a load, and the space of what is read
ACCESS: dict[type[Any], str] = {ops.LoadEdge: "edge", ops.LoadRow: "row", ops.LoadAt: "at", ops.LoadDense: "dense"}
SPACES = {"edge": Space.EDGE, "row": Space.ROW, "at": Space.EDGE, "dense": Space.DENSE}

# torch would promote ints here; a program casts first
FLOATING = frozenset(
    {"div", "atan2", "reciprocal", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"}
)

INFER: dict[type[Any], Callable[..., Type]] = {
    ops.LoadEdge: _load,
    ops.LoadRow: _load,
    ops.LoadAt: _load,
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
