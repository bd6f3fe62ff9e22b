"""Programs written in Python for the tests of code generation: values with operators, types inferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from plait.ir import ops
from plait.ir.ops import Reduce
from plait.ir.program import Builder, Input, Node, Output, Program, Space, Type
from plait.ir.verify import verify

DENSE, ROW, EDGE = Space.DENSE, Space.ROW, Space.EDGE


@dataclass(frozen=True)
class Value:
    """A node and the draft it belongs to; shapes are broadcast as in torch."""

    draft: Draft
    node: Node

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.type.shape

    def __add__(self, other: Any) -> Value:
        return self.draft.call("add", self, other)

    def __sub__(self, other: Any) -> Value:
        return self.draft.call("sub", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.draft.call("mul", self, other)

    def __truediv__(self, other: Any) -> Value:
        return self.draft.call("div", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.draft.call("gt", self, other)

    def eq(self, other: Any) -> Value:
        return self.draft.call("eq", self, other)

    def exp(self) -> Value:
        return self.draft.call("exp", self)

    def where(self, yes: Any, no: Any) -> Value:
        return self.draft.call("where", self, yes, no)

    def leaky(self, slope: float = 0.2) -> Value:
        return (self > 0.0).where(self, self * slope)

    def relu(self) -> Value:
        return (self > 0.0).where(self, 0.0)

    def to(self, dtype: torch.dtype) -> Value:
        return self._apply(ops.Cast(), self.shape, dtype)

    def view(self, *shape: int) -> Value:
        return self._apply(ops.Reshape(), shape)

    def expand(self, *shape: int) -> Value:
        if shape == self.shape:
            return self
        lead = (1,) * (len(shape) - len(self.shape)) + self.shape
        value = self if lead == self.shape else self.view(*lead)
        return value if lead == shape else value._apply(ops.Expand(), shape)

    def permute(self, *axes: int) -> Value:
        return self._apply(ops.Permute(axes), tuple(self.shape[axis] for axis in axes))

    def slice(self, axis: int, start: int, size: int, step: int = 1) -> Value:
        shape = list(self.shape)
        shape[axis] = size
        return self._apply(ops.Slice(axis, start, step), tuple(shape))

    def inner(self, *axes: int, reduce: Reduce = Reduce.SUM) -> Value:
        axes = tuple(axis % len(self.shape) for axis in axes)
        shape = tuple(size for axis, size in enumerate(self.shape) if axis not in axes)
        return self._apply(ops.InnerReduce(reduce, axes), shape)

    def segment(self, reduce: Reduce = Reduce.SUM, init: float = 0.0, include_init: bool = False) -> Value:
        type_ = Type(ROW, self.shape, self.node.type.dtype)
        return self.draft.value(ops.SegmentReduce(reduce, init, include_init), (self,), type_)

    def product(self, weight: Value) -> Value:
        return self.draft.value(ops.Product(), (self, weight), Type(EDGE, weight.shape[1:], self.node.type.dtype))

    def total_product(self, other: Value) -> Value:
        type_ = Type(DENSE, (*self.shape, *other.shape), self.node.type.dtype)
        return self.draft.value(ops.TotalProduct(), (self, other), type_)

    def max(self) -> Value:
        return self.segment(Reduce.MAX)

    def total(self) -> Value:
        return self.draft.value(ops.TotalReduce(), (self,), Type(DENSE, self.shape, self.node.type.dtype))

    def _apply(self, op: ops.Op, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Value:
        type_ = self.node.type
        return self.draft.value(op, (self,), Type(type_.space, shape, dtype or type_.dtype))


class Draft:
    """A program in the making."""

    def __init__(self, name: str, *, ordered: bool = True, maps: tuple[str, ...] = ("src",)) -> None:
        self.name, self.ordered, self.maps = name, ordered, maps
        self.inputs: list[Input] = []
        self.outputs: list[Output] = []
        self.builder = Builder()

    def value(self, op: ops.Op, inputs: tuple[Value, ...], type_: Type) -> Value:
        return Value(self, self.builder.node(op, tuple(item.node for item in inputs), type_))

    def load(self, access: str, *shape: int, dtype: torch.dtype = torch.float32, map: int = 0, name: str = "") -> Value:
        slot = len(self.inputs)
        self.inputs.append(Input(name or f"x{slot}", shape, dtype, access, map if access == "at" else None))
        table: dict[str, tuple[ops.Op, Space]] = {
            "at": (ops.LoadAt(slot, map), EDGE),
            "edge": (ops.LoadEdge(slot), EDGE),
            "row": (ops.LoadRow(slot), ROW),
            "dense": (ops.LoadDense(slot), DENSE),
        }
        op, space = table[access]
        return self.value(op, (), Type(space, shape, dtype))

    def const(self, value: float | int | bool, dtype: torch.dtype = torch.float32) -> Value:
        return self.value(ops.Const(value), (), Type(DENSE, (), dtype))

    def length(self, dtype: torch.dtype = torch.float32) -> Value:
        return self.value(ops.RowLength(), (), Type(ROW, (), dtype))

    def uniform(self, seed: Value, *shape: int, dtype: torch.dtype = torch.float32) -> Value:
        return self.value(ops.Uniform(), (seed,), Type(EDGE, shape, dtype))

    def call(self, fn: str, *arguments: Any) -> Value:
        numeric = [item for item in arguments if isinstance(item, Value) and (fn != "where" or item is not arguments[0])]
        dtype = numeric[0].node.type.dtype
        values = [item if isinstance(item, Value) else self.const(item, dtype) for item in arguments]
        shape = tuple(torch.broadcast_shapes(*(item.shape for item in values)))
        values = [item.expand(*shape) for item in values]
        spaces = {item.node.type.space for item in values}
        space = EDGE if EDGE in spaces else ROW if ROW in spaces else DENSE
        result = ops.POINTWISE[fn].result
        out = torch.bool if result == "bool" else dtype
        return self.value(ops.Pointwise(fn), tuple(values), Type(space, shape, out))

    def cat(self, axis: int, *values: Value) -> Value:
        shape = list(values[0].shape)
        shape[axis] = sum(item.shape[axis] for item in values)
        spaces = {item.node.type.space for item in values}
        space = EDGE if EDGE in spaces else ROW if ROW in spaces else DENSE
        return self.value(ops.Cat(axis), values, Type(space, tuple(shape), values[0].node.type.dtype))

    def out(self, value: Value, name: str = "") -> None:
        self.outputs.append(Output(name or f"y{len(self.outputs)}", value.node))

    def program(self) -> Program:
        program = Program(self.name, self.ordered, self.maps, tuple(self.inputs), tuple(self.outputs))
        verify(program)
        return program
