"""View operators as maps of element numbers: a view costs nothing, it only says which element of its input is read.

Elements of an inner shape are numbered in row-major order.
"""

from __future__ import annotations

import torch

from plait.ir.ops import Cat, Expand, InnerReduce, Permute, Reshape, Slice
from plait.ir.program import Node

VIEWS = (Reshape, Expand, Permute, Slice)


class ElementMaps:
    """Element maps of a program's nodes, each computed once."""

    def __init__(self) -> None:
        self._views: dict[Node, tuple[int, ...]] = {}
        self._cats: dict[Node, tuple[tuple[int, int], ...]] = {}
        self._reductions: dict[Node, tuple[tuple[int, ...], ...]] = {}

    def view(self, node: Node) -> tuple[int, ...]:
        """Element of the input that each element of a view is."""
        found = self._views.get(node)
        if found is None:
            found = self._views[node] = tuple(_view(node).flatten().tolist())
        return found

    def cat(self, node: Node) -> tuple[tuple[int, int], ...]:
        """(number of the input, element of it) that each element of a `Cat` is."""
        found = self._cats.get(node)
        if found is None:
            assert isinstance(node.op, Cat)
            number = torch.cat([torch.full(value.type.shape, i) for i, value in enumerate(node.inputs)], node.op.axis)
            element = torch.cat([_elements(value.type.shape) for value in node.inputs], node.op.axis)
            found = tuple(zip(number.flatten().tolist(), element.flatten().tolist(), strict=True))
            self._cats[node] = found
        return found

    def reduction(self, node: Node) -> tuple[tuple[int, ...], ...]:
        """The input elements of every element of an `InnerReduce`, in row-major order of the reduced axes."""
        found = self._reductions.get(node)
        if found is None:
            assert isinstance(node.op, InnerReduce)
            elements = _elements(node.inputs[0].type.shape)
            axes = sorted(axis % max(elements.dim(), 1) for axis in node.op.axes)
            kept = [axis for axis in range(elements.dim()) if axis not in axes]
            entries = elements.numel() // max(node.type.numel, 1)
            table = elements.permute(*kept, *axes).reshape(node.type.numel, entries)
            found = self._reductions[node] = tuple(map(tuple, table.tolist()))
        return found


def reduced_run(node: Node) -> int:
    """Number of entries of the reduced axes at the end of the input's shape: they lie beside each other in memory.

    1 says that the last axis is not reduced, or has one entry.
    """
    assert isinstance(node.op, InnerReduce)
    shape = node.inputs[0].type.shape
    axes = {axis % max(len(shape), 1) for axis in node.op.axes}
    run, axis = 1, len(shape) - 1
    while axis >= 0 and axis in axes:
        run *= shape[axis]
        axis -= 1
    return run


def _elements(shape: tuple[int, ...]) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    return torch.arange(count).reshape(shape)


def _view(node: Node) -> torch.Tensor:
    elements = _elements(node.inputs[0].type.shape)
    match node.op:
        case Reshape():
            return elements.reshape(node.type.shape)
        case Expand():
            return elements.expand(node.type.shape)
        case Permute(axes):
            return elements.permute(axes)
        case Slice(axis, start, step):
            size = node.type.shape[axis]
            index = torch.arange(size) * step + start
            return elements.index_select(axis, index)
    raise AssertionError(f"not a view: {node.op}")
