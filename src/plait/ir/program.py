"""`Program`: one fused region, as a graph of typed values over one fine domain and one ordering map.

Words: a *row* is a row of the ordering map's coarse domain (dst in csc, src in csr); an *edge* is an entry of the fine domain,
whatever it is in the user's model (edges, nodes of a batch of graphs, triplets). A program without an ordering map (`ordered`
is False) has no ROW values and runs over its edges in the user's order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from plait.errors import ProgramError
from plait.ir.ops import LOADS, Op, SegmentReduce


class Space(enum.Enum):
    """Where a value's rows live inside a program."""

    EDGE = "edge"
    ROW = "row"
    DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Type:
    """space, inner shape (static ints, without the leading axis) and dtype of a value.

    >>> str(Type(Space.EDGE, (4, 32), torch.float32))
    'edge[4, 32] float32'
    """

    space: Space
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.space.value}{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """A value: an operator, its input values and its type. Equal only to itself; `Builder` makes equal subtrees one node."""

    op: Op
    inputs: tuple[Node, ...]
    type: Type


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor the caller passes: name for the reader, inner shape and dtype as in `Type`; `space` says what its leading
    axis counts, DENSE meaning that it has none and `shape` is the whole shape. `index_map` is set for tensors read by
    `LoadAt` and says which map's coarse rows its leading axis counts (space is then EDGE by use, not by size)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    access: str  # "edge", "row", "at", "dense": the leaf operator that reads it
    index_map: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A value the program writes: EDGE [E, ...] in the user's order, ROW [num_rows, ...], DENSE [...] (a `TotalReduce`)."""

    name: str
    value: Node


@dataclass(frozen=True, slots=True)
class Program:
    """One fused region.

    `maps` names the index maps read by `LoadAt` (number = position); `ordered` says whether an ordering map exists.
    """

    name: str
    ordered: bool
    maps: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    def nodes(self) -> Iterator[Node]:
        """Every value once, inputs before users, in an order that depends on the program alone."""
        return iter(topological([output.value for output in self.outputs]))

    def num_users(self) -> dict[Node, int]:
        counts: dict[Node, int] = {}
        for node in self.nodes():
            for value in node.inputs:
                counts[value] = counts.get(value, 0) + 1
        return counts

    def reads_maps(self) -> bool:
        """Whether rows of one domain meet those of another; otherwise it is elementwise work."""
        return self.ordered or bool(self.maps)

    def needs_edge_position(self) -> bool:
        """Whether any value depends on `edge_id`: edge tensors read or written in the user's order, or random draws."""
        from plait.ir.ops import LoadEdge, Uniform

        if any(output.value.type.space is Space.EDGE for output in self.outputs):
            return True
        return any(isinstance(node.op, LoadEdge | Uniform) for node in self.nodes())


def topological(roots: list[Node]) -> list[Node]:
    """Nodes below `roots`, inputs first; iterative, since chains of user code can be longer than Python's stack."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        stack.extend((value, False) for value in reversed(node.inputs) if id(value) not in seen)
    return order


def level(node: Node, memo: dict[Node, int]) -> int:
    """Number of passes over a row's edges that must end before `node` can be computed.

    An edge value that reads no reduced row value has level 0; a `SegmentReduce` is one more than what it reduces. Softmax
    over a row is therefore three levels: max, sum, weighted sum.
    """
    for value in topological([node]):
        if value in memo:
            continue
        below = max((memo[item] for item in value.inputs), default=0)
        memo[value] = below + 1 if isinstance(value.op, SegmentReduce) else below
    return memo[node]


class Builder:
    """Makes nodes, inferring types and giving back the same node for the same operator on the same inputs."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[Op, tuple[int, ...], Type], Node] = {}

    def node(self, op: Op, inputs: tuple[Node, ...], type_: Type) -> Node:
        key = (op, tuple(id(value) for value in inputs), type_)
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = Node(op, inputs, type_)
        return found


def join_spaces(values: tuple[Node, ...]) -> Space:
    """The space of a value computed row by row from `values`."""
    spaces = {value.type.space for value in values}
    for space in (Space.EDGE, Space.ROW):
        if space in spaces:
            return space
    return Space.DENSE


def slot_of(node: Node) -> int:
    """Number of the tensor input a load reads."""
    if not isinstance(node.op, LOADS):
        raise ProgramError(f"slot_of: {type(node.op).__name__} does not read a tensor input")
    return node.op.slot
