"""From a region of the FX graph to a `Program`: the one function that crosses the boundary between the two IRs.

A region's values are tensors [E, ...] (edge), [num_rows, ...] (row) and weights; in the program they lose their leading axis.
Every aten operator a region may hold has a row in `LOWERINGS` (in `lower_ops`).

Legend: E edges, i.e. entries of the fine domain; the program's own map is the one its rows are ordered by.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from plait import operators
from plait.capture.expressions import Expressions, computing_dtype
from plait.capture.lower_ops import LOWERINGS
from plait.errors import UnsupportedError
from plait.ir import ops
from plait.ir.program import Input, Node, Output, Program, Space, Type
from plait.passes.domains import Domains
from plait.passes.edit import argument, arguments, aten, inner_sizes, is_call, static, total_product_of, value
from plait.passes.fuse import Region

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int64, torch.int32)


@dataclass(frozen=True)
class Lowered:
    """A program and what to call it with: `tensors` and `maps` are nodes of the FX graph, `coarse` for each map a tensor whose
    leading axis counts that map's coarse rows, `results` the FX node each output stands for."""

    program: Program
    tensors: tuple[fx.Node, ...]
    maps: tuple[fx.Node, ...]
    coarse: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]


def inner_shape(val: torch.Tensor, *, leading: bool = True) -> tuple[int, ...]:
    """The static sizes of a tensor without its leading axis; UnsupportedError if one of them is symbolic."""
    sizes = inner_sizes(val, leading=leading)
    if sizes is None:
        raise UnsupportedError(f"feature sizes of {tuple(val.shape)} are not static")
    return sizes


@dataclass
class Lowering(Expressions):
    """The state of lowering one region: the values so far, the tensors read."""

    region: Region
    domains: Domains
    values: dict[fx.Node, Node] = field(default_factory=dict)
    unrounded: dict[fx.Node, Node] = field(default_factory=dict)  # of bfloat16 values: what sums add up
    inputs: dict[tuple[fx.Node, str, int | None], Input] = field(default_factory=dict)
    maps: dict[fx.Node, fx.Node] = field(default_factory=dict)

    # --- operands ---------------------------------------------------------------------------------------------------

    def operand(self, node: object, rank: int, dtype: torch.dtype | None = None) -> Node:
        """The value of an operand of an operator whose inner result has `rank` axes; numbers take `dtype`."""
        if isinstance(node, bool | int | float):
            return self.const(node, dtype or torch.float32)
        if not isinstance(node, fx.Node) or not isinstance(value(node), torch.Tensor):
            raise UnsupportedError(f"operand {node!r} is not a tensor or a static number")
        if node in self.values:
            return self.pad(self.values[node], rank)
        return self.pad(self._leaf(node, rank), rank)

    def _leaf(self, node: fx.Node, rank: int) -> Node:
        val = value(node)
        domain = self.domains.of(node)
        if domain is not None and val.dim() == rank + 1 and domain is self.region.domain:
            return self._load(node, "edge", None)
        if domain is not None and val.dim() == rank + 1 and domain is self.region.row_domain:
            return self._load(node, "row", None)
        if val.dim() == rank + 1 and static(val.shape[0]) != 1:
            raise UnsupportedError(f"{node.name} has rows of its own, neither edges nor rows of this program")
        loaded = self._load(node, "dense", None)
        if val.dim() == rank + 1:
            return self.reshape(loaded, loaded.type.shape[1:])
        return loaded

    def _load(self, node: fx.Node, access: str, index_map: int | None) -> Node:
        val = value(node)
        if val.dtype not in DTYPES:
            raise UnsupportedError(f"dtype {val.dtype} is not compiled")
        shape = inner_shape(val, leading=access != "dense")
        key = (node, access, index_map)
        if key not in self.inputs:
            self.inputs[key] = Input(f"{_identifier(node.name)}", shape, val.dtype, access, index_map)
        slot = list(self.inputs).index(key)
        space = {"edge": Space.EDGE, "row": Space.ROW, "at": Space.EDGE, "dense": Space.DENSE}[access]
        op: ops.Op
        if index_map is not None:
            op = ops.LoadAt(slot, index_map)
        elif access == "edge":
            op = ops.LoadEdge(slot)
        else:
            op = ops.LoadRow(slot) if access == "row" else ops.LoadDense(slot)
        return self.cast(self.builder.node(op, (), Type(space, shape, val.dtype)), computing_dtype(val.dtype))

    # --- operators that meet a map ----------------------------------------------------------------------------------

    def gather(self, node: fx.Node) -> Node:
        """gather(x, own map) is x itself, read per row; by another map it is a load at that map's entry."""
        x, index = arguments(node)[:2]
        if index is self.region.rows and (x in self.values or self.domains.of(x) is self.region.row_domain):
            return self.values[x] if x in self.values else self._load(x, "row", None)
        if index not in self.maps:
            self.maps[index] = x
        return self._load(x, "at", list(self.maps).index(index))

    def segment_reduce(self, node: fx.Node) -> Node:
        values, _, _, name = arguments(node)[:4]
        reduce = ops.Reduce(name)
        item = self._summand(values) if reduce is ops.Reduce.SUM else self._argument(values)
        init = float(argument(node, 4, "init", 0.0))
        include = bool(argument(node, 5, "include_init", False))
        if item.type.space is not Space.EDGE:
            return self.reduce_constant(item, reduce, init)
        return self.builder.node(
            ops.SegmentReduce(reduce, init, include), (item,), Type(Space.ROW, item.type.shape, item.type.dtype)
        )

    def _argument(self, node: fx.Node) -> Node:
        return self.values[node] if node in self.values else self._leaf(node, value(node).dim() - 1)

    def _summand(self, node: fx.Node) -> Node:
        """What a sum adds up: in float32, and rounded once behind it."""
        return self.unrounded[node] if node in self.unrounded else self._argument(node)

    def uniform(self, node: fx.Node) -> Node:
        seed = node.args[0]
        assert isinstance(seed, fx.Node)
        if self.domains.of(node) is not self.region.domain:
            raise UnsupportedError("random draws per row, not per edge")
        val = value(node)
        return self.builder.node(
            ops.Uniform(), (self._load(seed, "dense", None),), Type(Space.EDGE, inner_shape(val), val.dtype)
        )

    def total(self, node: fx.Node) -> Node:
        """sum over axis 0 (and perhaps others) = inner reduction, then the sum over all edges; kept axes are the caller's."""
        x, axes = arguments(node)[:2]
        dim = value(x).dim()
        item = self._summand(x)
        inner = tuple(axis % dim - 1 for axis in axes if axis % dim != 0)
        if inner:
            item = self.inner_reduce(item, ops.Reduce.SUM, inner)
        if item.type.space is not Space.EDGE:
            item = self.pointwise("mul", item, self.row_length(item))
        return self.builder.node(ops.TotalReduce(), (item,), Type(Space.DENSE, item.type.shape, item.type.dtype))

    def total_product(self, node: fx.Node) -> Node:
        """mm(t(a), b) of two values of edges: the sum over all of them."""
        factors = total_product_of(node)
        assert factors is not None
        a, b = map(self._argument, factors)
        if Space.DENSE in (a.type.space, b.type.space):
            raise UnsupportedError("a product over all edges of what looks like a weight")
        return self.builder.node(
            ops.TotalProduct(), (a, b), Type(Space.DENSE, (*a.type.shape, *b.type.shape), value(node).dtype)
        )

    def lower(self, node: fx.Node) -> Node:
        """The value of a node; a bfloat16 one is computed in float32 and rounded, as PyTorch does behind every operator."""
        result = self._lowered(node)
        if value(node).dtype is not torch.bfloat16 or node in self.region.totals:
            return result
        self.unrounded[node] = result
        return self.rounded(result)

    def _lowered(self, node: fx.Node) -> Node:
        if node.target is operators.gather:
            return self.gather(node)
        if node.target is operators.segment_reduce:
            return self.segment_reduce(node)
        if node.target is operators.uniform:
            return self.uniform(node)
        if is_call(node, aten.sum.dim_IntList) and node in self.region.totals:
            return self.total(node)
        if is_call(node, aten.mm.default) and node in self.region.totals:
            return self.total_product(node)
        result = LOWERINGS[node.target](self, node)
        expected = value(node)
        if result.type.shape != inner_shape(expected) or result.type.dtype != computing_dtype(expected.dtype):
            raise UnsupportedError(
                f"{node.target}: lowered to {result.type}, expected {tuple(expected.shape)} {expected.dtype}"
            )
        return result


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def lower(region: Region, domains: Domains, name: str) -> Lowered:
    """The program of a region; raises UnsupportedError where the region holds what programs do not."""
    state = Lowering(region=region, domains=domains)
    for node in region.members:
        state.values[node] = state.lower(node)
    outputs = []
    for node in region.outputs:
        result = state.values[node]
        if result.type.space is Space.ROW and domains.of(node) is region.domain:
            raise UnsupportedError(f"{node.name} is the same for all edges of a row and is wanted per edge")
        if result.type.space is Space.DENSE and node not in region.totals:
            # where there is one edge, statically: its values look like weights
            raise UnsupportedError(f"{node.name} is made of values of one row, which nothing tells from weights")
        if node not in region.totals:
            result = state.cast(result, value(node).dtype)
        outputs.append(Output(_identifier(node.name), result))
    return _pruned(state, tuple(outputs), name)


def _pruned(state: Lowering, outputs: tuple[Output, ...], name: str) -> Lowered:
    """The program with only the inputs and maps its outputs need, numbered anew."""
    program = Program(name, state.region.rows is not None, (), (), outputs)
    used_slots = _ordered(node.op.slot for node in program.nodes() if isinstance(node.op, ops.LOADS))
    used_maps = _ordered(node.op.map for node in program.nodes() if isinstance(node.op, ops.LoadAt))
    keys = list(state.inputs)
    maps = list(state.maps)
    slot_number = {slot: number for number, slot in enumerate(used_slots)}
    map_number = {index: number for number, index in enumerate(used_maps)}
    inputs = []
    taken = {output.name for output in outputs}
    for slot in used_slots:
        item = state.inputs[keys[slot]]
        index_map = map_number[item.index_map] if item.index_map is not None else None
        label = _free_name(item.name, taken)
        taken.add(label)
        inputs.append(Input(label, item.shape, item.dtype, item.access, index_map))
    rebuilt: dict[Node, Node] = {}
    for node in program.nodes():
        op = node.op
        if isinstance(op, ops.LoadAt):
            op = ops.LoadAt(slot_number[op.slot], map_number[op.map])
        elif isinstance(op, ops.LOADS):
            op = type(op)(slot_number[op.slot])
        rebuilt[node] = state.builder.node(op, tuple(rebuilt[item] for item in node.inputs), node.type)
    final = Program(
        name,
        state.region.rows is not None,
        tuple(_identifier(maps[index].name) for index in used_maps),
        tuple(inputs),
        tuple(Output(output.name, rebuilt[output.value]) for output in outputs),
    )
    used_map_nodes = [maps[index] for index in used_maps]
    return Lowered(
        final,
        tuple(keys[slot][0] for slot in used_slots),
        tuple(used_map_nodes),
        tuple(state.maps[node] for node in used_map_nodes),
        state.region.outputs,
    )


def _free_name(name: str, taken: set[str]) -> str:
    """The name itself, or with the first number that nothing else bears."""
    suffixes = ("", *(f"_{number}" for number in range(2, len(taken) + 3)))
    return next(name + suffix for suffix in suffixes if name + suffix not in taken)


def _ordered(numbers: Iterable[int]) -> list[int]:
    return sorted(set(numbers))
