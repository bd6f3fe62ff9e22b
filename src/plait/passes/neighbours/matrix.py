"""The int matrices that rows are gathered by, and what is known of their entries: rows, columns, sizes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch.fx import Graph, Node

from plait import operators
from plait.passes.edit import RESHAPES, Editor, arguments, aten, is_call, is_integral, same_shape, same_size, static, value


class Matrix:
    """A tensor of ints [*rows, K], and every other of the same sizes. An entry is one of its numbers, in memory order."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.rank = int(value(node).dim())

    def has_entries(self, node: Any) -> bool:
        """Whether a value is [*rows, K, ...]."""
        return same_shape(value(node).shape[: self.rank], value(self.node).shape)

    @cached_property
    def edit(self) -> Editor:
        return behind(self.node)

    @cached_property
    def table(self) -> Node:
        """The matrix with one axis of rows, [R, K]."""
        if self.rank == 2:
            return self.node
        return self.edit.call(aten.reshape.default, self.node, [-1, self.edit.size(self.node, self.rank - 1)])

    @cached_property
    def num_rows(self) -> Any:
        return self.edit.size(self.table, 0)

    @cached_property
    def num_columns(self) -> Any:
        return self.edit.size(self.table, 1)

    @cached_property
    def rows(self) -> Node:
        """The row of every entry, int [E]."""
        return self.edit.call(operators.matrix_rows, self.table)

    @cached_property
    def columns(self) -> Node:
        """The column of every entry, int [E]."""
        return self.edit.call(operators.matrix_columns, self.table)

    @cached_property
    def sizes(self) -> list[Any]:
        """[*rows, K], as arguments of a call."""
        return [self.edit.size(self.node, axis) for axis in range(self.rank)]

    def is_gather(self, node: Node) -> bool:
        """Whether a call gathers a row for each entry of a matrix of these sizes."""
        source = _matrix_of(node)
        return source is not None and same_shape(value(source).shape, value(self.node).shape)

    def counts_entries(self, size: Any) -> bool:
        """Whether a size is E."""
        return same_size(size, value(self.node).numel())


def find_matrices(graph: Graph) -> list[Matrix]:
    """One for all of the same sizes, the first of them."""
    found: list[Matrix] = []
    for node in graph.nodes:
        source = _matrix_of(node)
        if source is not None and not any(item.is_gather(node) for item in found):
            found.append(Matrix(source))
    return found


def _matrix_of(node: Node) -> Node | None:
    """The matrix by which a gather's rows are chosen, one for each of its entries."""
    index = node.args[1] if is_call(node, operators.gather) else None
    source = arguments(index)[0] if isinstance(index, Node) and is_call(index, *RESHAPES) else None
    return source if isinstance(source, Node) and is_integral(source) and value(source).dim() > 1 else None


def behind(node: Node) -> Editor:
    """Adds nodes behind one, or behind all inputs where it is one."""
    anchor = node.next
    while anchor.op == "placeholder":
        anchor = anchor.next
    return Editor(node.graph, anchor)


def inner_shape(node: Node, rank: int) -> list[int] | None:
    """The sizes behind the first `rank` axes, if all are static."""
    sizes = [static(size) for size in value(node).shape[rank:]]
    return None if None in sizes else [size for size in sizes if size is not None]
