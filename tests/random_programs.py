"""Random programs, by seed.

`random_program(seed)` is a plain function of an integer, so that a hundred programs can be printed, compiled into one library
and run. Numbers stay tame on purpose: what goes into exp is bounded, what divides is at least 0.5, and what jumps (a
comparison, a floor) reads only values that every engine computes to the last bit. A difference between two engines is then a
mistake and not rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from plait.ir import ops
from plait.ir.ops import Reduce
from plait.ir.program import Builder, Input, Node, Output, Program
from plait.ir.verify import infer_type


def random_program(seed: int, *, dtype: torch.dtype = torch.float32, ordered: bool | None = None) -> Program:
    """A valid program, the same for the same seed: messages over gathers, edge, row and dense inputs; then up to three
    reductions over the rows, each of which the edges read again; edge, row and total outputs."""
    rng = random.Random(seed)
    is_ordered = rng.random() < 0.85 if ordered is None else ordered
    draft = _Draft(rng, dtype, is_ordered)
    draft.add_inputs()
    edge = draft.message()
    rows: list[_Value] = []
    if is_ordered:
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            row, edge = draft.reduce_and_read(edge)
            rows.append(row)
    return without_unused(Program(f"random_{seed}", is_ordered, MAPS, tuple(draft.inputs), draft.outputs(edge, rows)))


MAPS = ("src", "rel", "dst")
ROLES = {"": (), "h": (0,), "c": (1,), "hc": (0, 1)}  # which of the two inner axes (heads, channels) a value has


@dataclass(frozen=True)
class _Value:
    """A node, the inner axes it has, and whether every engine computes it to the last bit."""

    node: Node
    role: str
    exact: bool = False


class _Draft:
    """A program being drawn: its inputs so far, and the values that later steps may read."""

    def __init__(self, rng: random.Random, dtype: torch.dtype, ordered: bool) -> None:
        self.rng, self.dtype, self.ordered = rng, dtype, ordered
        self.axes = (rng.choice((1, 2, 3, 4)), rng.choice((1, 3, 4, 5, 8, 16, 17, 32)))
        self.builder = Builder()
        self.inputs: list[Input] = []
        self.edges: list[_Value] = []
        self.others: list[_Value] = []  # row and dense values

    # small constructions, types inferred

    def make(self, op: ops.Op, *inputs: Node, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Node:
        types = [value.type for value in inputs]
        return self.builder.node(op, inputs, infer_type(op, types, shape=shape, dtype=dtype, sources=self.inputs))

    def call(self, fn: str, *inputs: Node) -> Node:
        return self.make(ops.Pointwise(fn), *inputs)

    def number(self, value: float, like: Node) -> Node:
        """A constant with the shape and dtype of `like`."""
        dtype = like.type.dtype
        scalar = self.make(ops.Const(float(value) if dtype.is_floating_point else int(value)), dtype=dtype)
        return self.expand(scalar, like.type.shape)

    def expand(self, x: Node, shape: tuple[int, ...]) -> Node:
        """x with leading axes of size 1 added, and axes of size 1 repeated."""
        padded = (1,) * (len(shape) - len(x.type.shape)) + x.type.shape
        x = x if padded == x.type.shape else self.make(ops.Reshape(), x, shape=padded)
        return x if padded == shape else self.make(ops.Expand(), x, shape=shape)

    def shape_of(self, role: str) -> tuple[int, ...]:
        return tuple(self.axes[axis] for axis in ROLES[role])

    def fit(self, value: _Value, role: str) -> Node:
        """The value with the axes of `role`: missing ones repeated, others averaged or their largest entry taken."""
        node = value.node
        surplus = tuple(place for place, name in enumerate(value.role) if name not in role)
        if surplus:
            size = max(1, *(node.type.shape[place] for place in surplus))
            if self.rng.random() < 0.5:
                node = self.make(ops.InnerReduce(self.rng.choice((Reduce.MAX, Reduce.MIN)), surplus), node)
            else:
                node = self.make(ops.InnerReduce(Reduce.SUM, surplus), node)
                node = self.call("mul", node, self.number(1 / size, node))
        shape = self.shape_of(role)
        if value.role == "h" and role == "hc":
            node = self.make(ops.Reshape(), node, shape=(self.axes[0], 1))
        return self.expand(node, shape)

    # steps

    def add_inputs(self) -> None:
        rng = self.rng
        for name, count in (("src", rng.choice((1, 1, 2))), ("rel", rng.choice((0, 0, 1))), ("dst", rng.choice((0, 0, 1)))):
            for _ in range(count):
                self.edges.append(self.add_input("at", MAPS.index(name)))
        for _ in range(rng.choice((0, 1, 2))):
            self.edges.append(self.add_input("edge"))
        for access, limit in (("row", 2 if self.ordered else 0), ("dense", 2)):
            for _ in range(rng.randint(0, limit)):
                self.others.append(self.add_input(access))

    def add_input(self, access: str, index_map: int | None = None, role: str | None = None) -> _Value:
        """A new input and its load, as floats: one in six is stored as ints or bools."""
        role = self.rng.choice(tuple(ROLES)) if role is None else role
        dtype = self.rng.choice((*[self.dtype] * 10, torch.int64, torch.bool))
        slot = len(self.inputs)
        self.inputs.append(Input(f"{access}_{slot}", self.shape_of(role), dtype, access, index_map))
        load = {"at": ops.LoadAt(slot, index_map or 0), "edge": ops.LoadEdge(slot), "row": ops.LoadRow(slot)}
        node = self.make(load.get(access, ops.LoadDense(slot)))
        return _Value(node if dtype is self.dtype else self.make(ops.Cast(), node, dtype=self.dtype), role, exact=True)

    def message(self) -> _Value:
        for _ in range(self.rng.randint(1, 5)):
            self.edges.append(self.step())
        return self.edges[-1]

    def step(self) -> _Value:
        """A new edge value from one that is there."""
        x = self.rng.choice((self.edges[-1], self.rng.choice(self.edges)))
        step = self.rng.choice(
            (self.unary, self.unary, self.binary, self.binary, self.binary, self.select, self.move, self.small_product)
        )
        return step(x)

    def unary(self, x: _Value) -> _Value:
        name = self.rng.choice(tuple(UNARY))
        if name in JUMPING and not x.exact:
            name = "tanh"
        node = UNARY[name](self, x.node)
        return _Value(node, x.role, exact=x.exact and name in EXACT)

    def binary(self, x: _Value) -> _Value:
        y = self.rng.choice(self.edges + self.others)
        role = self.rng.choice((x.role, y.role, "".join(axis for axis in "hc" if axis in x.role + y.role)))
        a, b = self.fit(x, role), self.fit(y, role)
        if self.rng.random() < 0.5:
            a, b = b, a
        return _Value(BINARY[self.rng.choice(tuple(BINARY))](self, a, b), role)

    def select(self, x: _Value) -> _Value:
        """where(condition, x, something else); the condition compares exact values, or is dropout's draw."""
        candidates = [value for value in self.edges + self.others if value.exact]
        if self.rng.random() < 0.3:
            condition = self.call("ge", self.uniform(x.node.type.shape), self.number(0.3, x.node))
            return _Value(self.call("where", condition, x.node, self.number(0.0, x.node)), x.role)
        tested = self.rng.choice(candidates)
        left = self.expand_exact(tested, x.role)
        if left is None:
            left = self.number(1.0, x.node)
        condition = self.call(
            self.rng.choice(("gt", "ge", "lt", "le", "eq", "ne")), left, self.number(self.rng.choice((0, 0.5, -1)), left)
        )
        if self.rng.random() < 0.3:
            condition = self.call("logical_not", condition)
        if self.rng.random() < 0.3:
            condition = self.call(
                self.rng.choice(("logical_and", "logical_or")), condition, self.call("gt", left, self.number(-1.5, left))
            )
        slope = self.call("mul", x.node, self.number(0.1, x.node))
        return _Value(self.call("where", condition, x.node, slope), x.role)

    def expand_exact(self, value: _Value, role: str) -> Node | None:
        """`fit` without arithmetic, None if axes would have to go."""
        return self.fit(value, role) if set(value.role) <= set(role) else None

    def uniform(self, shape: tuple[int, ...]) -> Node:
        slot = len(self.inputs)
        self.inputs.append(Input(f"seed_{slot}", (), torch.int64, "dense"))
        return self.make(ops.Uniform(), self.make(ops.LoadDense(slot)), shape=shape, dtype=self.dtype)

    def move(self, x: _Value) -> _Value:
        """The same entries in other places: rotated, interleaved, transposed or flattened and back."""
        if "c" not in x.role:
            return self.unary(x)
        node, rank = x.node, len(x.node.type.shape)
        size, axis = node.type.shape[-1], rank - 1
        kind = self.rng.choice(("rotate", "stride", "transpose", "flatten"))
        if kind == "rotate":
            cut = self.rng.randint(0, size)
            parts = (self.part(node, axis, cut, 1, size - cut), self.part(node, axis, 0, 1, cut))
            node = self.make(ops.Cat(axis), *parts)
        elif kind == "stride":
            parts = tuple(self.part(node, axis, start, 2, (size - start + 1) // 2) for start in (0, 1))
            node = self.make(ops.Cat(axis), *parts)
        elif kind == "transpose" and rank == 2:
            flipped = self.call("neg", self.make(ops.Permute((1, 0)), node))
            node = self.make(ops.Permute((1, 0)), self.call("tanh", flipped))
        else:
            flat = self.make(ops.Reshape(), node, shape=(node.type.numel,))
            node = self.make(ops.Reshape(), self.call("sigmoid", flat), shape=node.type.shape)
        return _Value(node, x.role, exact=x.exact and kind in ("rotate", "stride"))

    def part(self, x: Node, axis: int, start: int, step: int, length: int) -> Node:
        shape = (*x.type.shape[:axis], length, *x.type.shape[axis + 1 :])
        return self.make(ops.Slice(axis, start, step), x, shape=shape)

    def small_product(self, x: _Value) -> _Value:
        """x [..., C] times a dense [C, C] (for few channels): a product whose left side differs per edge, summed at once."""
        if "c" not in x.role or self.axes[1] > 8:
            return self.binary(x)
        size = self.axes[1]
        slot = len(self.inputs)
        self.inputs.append(Input(f"weight_{slot}", (size, size), self.dtype, "dense"))
        shape = (*x.node.type.shape, size)
        left = self.make(ops.Reshape(), x.node, shape=(*x.node.type.shape, 1))
        product = self.call(
            "mul", self.make(ops.Expand(), left, shape=shape), self.expand(self.make(ops.LoadDense(slot)), shape)
        )
        summed = self.make(ops.InnerReduce(Reduce.SUM, (len(shape) - 2,)), product)
        return _Value(self.call("mul", summed, self.number(1 / size, summed)), x.role)

    def reduce_and_read(self, edge: _Value) -> tuple[_Value, _Value]:
        """A reduction of the edges, and a new edge value that reads its result."""
        kind = self.rng.choice(("softmax", "mean", "sum", "max", "max", "min", "prod"))
        row = REDUCTIONS[kind](self, edge)
        if self.rng.random() < 0.4:
            row = _Value(UNARY[self.rng.choice(("tanh", "rescale", "square", "root"))](self, row.node), row.role)
        bounded = _Value(self.call("tanh", self.call("mul", row.node, self.number(0.25, row.node))), row.role)
        self.others += [bounded, row] if kind in ("max", "min") else [bounded]
        if kind in ("max", "min") and edge.exact and row.exact:
            is_extreme = self.make(ops.Cast(), self.call("eq", edge.node, row.node), dtype=self.dtype)
            self.edges.append(_Value(is_extreme, edge.role, exact=True))
        role = self.rng.choice((edge.role, row.role))
        function = BINARY[self.rng.choice(("sub", "mul", "divide", "soft_gate"))]
        value = _Value(function(self, self.fit(edge, role), self.fit(bounded, role)), role)
        self.edges.append(value)
        return row, (self.step() if self.rng.random() < 0.5 else value)

    def segment(self, reduce: Reduce, node: Node, init: float = 0.0, include_init: bool = False) -> Node:
        return self.make(ops.SegmentReduce(reduce, init, include_init), node)

    def count(self, like: Node) -> Node:
        """max(entries of the row, 1)."""
        length = self.make(ops.RowLength(), dtype=self.dtype)
        return self.expand(self.call("maximum", length, self.number(1.0, length)), like.type.shape)

    def outputs(self, edge: _Value, rows: list[_Value]) -> tuple[Output, ...]:
        rng = self.rng
        outputs = []
        if rows:
            last = rows[-1]
            if rng.random() < 0.5:  # what the edges read at the very end
                last = _Value(self.segment(Reduce.SUM, edge.node), edge.role)
            outputs.append(Output("row_out", last.node))
            if len(rows) > 1 and rng.random() < 0.5:
                outputs.append(Output("kept", rows[0].node))
        if not rows or rng.random() < 0.3:
            outputs.append(Output("edge_out", edge.node))
        if rng.random() < 0.3:
            outputs.append(Output("total", self.make(ops.TotalReduce(), rng.choice([edge, *rows]).node)))
        return tuple(outputs)


# What a step can do to x; arguments of exp, log, sqrt and div are kept where rounding stays rounding.
UNARY: dict[str, Callable[[_Draft, Node], Node]] = {
    "neg": lambda d, x: d.call("neg", x),
    "abs": lambda d, x: d.call("abs", x),
    "sign": lambda d, x: d.call("sign", x),
    "floor": lambda d, x: d.call("floor", x),
    "ceil": lambda d, x: d.call("ceil", x),
    "round": lambda d, x: d.call("round", x),
    "trunc": lambda d, x: d.call("trunc", x),
    "tanh": lambda d, x: d.call("tanh", x),
    "sigmoid": lambda d, x: d.call("sigmoid", x),
    "erf": lambda d, x: d.call("erf", x),
    "exp": lambda d, x: d.call("exp", d.call("tanh", x)),
    "expm1": lambda d, x: d.call("expm1", d.call("tanh", x)),
    "log": lambda d, x: d.call("log", _positive(d, x)),
    "log1p": lambda d, x: d.call("log1p", d.call("abs", x)),
    "root": lambda d, x: d.call("sqrt", _positive(d, x)),
    "rsqrt": lambda d, x: d.call("rsqrt", _positive(d, x)),
    "reciprocal": lambda d, x: d.call("reciprocal", _positive(d, x)),
    "sin": lambda d, x: d.call("sin", d.call("tanh", x)),
    "cos": lambda d, x: d.call("cos", d.call("tanh", x)),
    "square": lambda d, x: d.call("mul", d.call("tanh", x), d.call("tanh", x)),
    "rescale": lambda d, x: d.call("add", d.call("mul", x, d.number(0.5, x)), d.number(0.25, x)),
    "leaky_relu": lambda d, x: d.call("maximum", x, d.call("mul", x, d.number(0.2, x))),
}
JUMPING = ("sign", "floor", "ceil", "round", "trunc")
EXACT = ("neg", "abs", *JUMPING)

BINARY: dict[str, Callable[[_Draft, Node, Node], Node]] = {
    "add": lambda d, a, b: d.call("add", a, b),
    "sub": lambda d, a, b: d.call("sub", a, b),
    "mul": lambda d, a, b: d.call("mul", d.call("tanh", a), b),
    "divide": lambda d, a, b: d.call("div", a, _positive(d, b)),
    "maximum": lambda d, a, b: d.call("maximum", a, b),
    "minimum": lambda d, a, b: d.call("minimum", a, b),
    "power": lambda d, a, b: d.call("pow", _positive(d, d.call("tanh", a)), d.call("tanh", b)),
    "angle": lambda d, a, b: d.call("atan2", a, _positive(d, b)),
    "soft_gate": lambda d, a, b: d.call("mul", a, d.call("sigmoid", b)),
}


def _positive(d: _Draft, x: Node) -> Node:
    """|x| + 0.5"""
    return d.call("add", d.call("abs", x), d.number(0.5, x))


def _softmax_sum(d: _Draft, edge: _Value) -> _Value:
    """Three reductions that wait for each other: max, sum of exp, weighted sum. Scores are bounded as attention's are."""
    score = d.call("mul", d.call("tanh", edge.node), d.number(3.0, edge.node))
    shifted = d.call("exp", d.call("sub", score, d.segment(Reduce.MAX, score)))
    weight = d.call("div", shifted, d.segment(Reduce.SUM, shifted))
    other = d.rng.choice(d.edges)
    role = "hc" if "c" in other.role and "h" in edge.role else edge.role
    product = d.call("mul", d.fit(_Value(weight, edge.role), role), d.fit(other, role))
    return _Value(d.segment(Reduce.SUM, product), role)


def _mean(d: _Draft, edge: _Value) -> _Value:
    total = d.segment(Reduce.SUM, edge.node)
    return _Value(d.call("div", total, d.count(total)), edge.role)


def _sum(d: _Draft, edge: _Value) -> _Value:
    """A sum over what may be thousands of entries; later steps see it divided by the count, as its rounding grows with it."""
    total = d.segment(Reduce.SUM, edge.node, d.rng.choice((0.0, 0.0, 0.5)))
    return _Value(d.call("div", total, d.call("mul", d.count(total), d.number(0.5, total))), edge.role)


def _extreme(reduce: Reduce) -> Callable[[_Draft, _Value], _Value]:
    def build(d: _Draft, edge: _Value) -> _Value:
        init, include = d.rng.choice(((0.0, False), (0.0, False), (0.0, True), (1.5, False), (-0.5, True)))
        return _Value(d.segment(reduce, edge.node, init, include), edge.role, exact=edge.exact)

    return build


def _product(d: _Draft, edge: _Value) -> _Value:
    """Factors near 1 that are exact in binary: thousands of them still give a number, and a factor that is rounded the same way
    every time would be off by thousands of roundings."""
    exact = edge if edge.exact else next(value for value in d.edges if value.exact)
    above = d.call("gt", exact.node, d.number(0.25, exact.node))
    factor = d.call("where", above, d.number(1 + 2**-9, exact.node), d.number(1 - 2**-10, exact.node))
    return _Value(d.segment(Reduce.PROD, factor, 1.0), exact.role)


REDUCTIONS: dict[str, Callable[[_Draft, _Value], _Value]] = {
    "softmax": _softmax_sum,
    "mean": _mean,
    "sum": _sum,
    "max": _extreme(Reduce.MAX),
    "min": _extreme(Reduce.MIN),
    "prod": _product,
}


def without_unused(program: Program) -> Program:
    """The program with only the inputs and maps that its values read, renumbered."""
    nodes = list(program.nodes())
    slots = sorted({node.op.slot for node in nodes if isinstance(node.op, ops.LOADS)})
    maps = sorted({node.op.map for node in nodes if isinstance(node.op, ops.LoadAt)})
    new_nodes: dict[Node, Node] = {}
    for node in nodes:
        op = node.op
        if isinstance(op, ops.LOADS):
            op = replace(op, slot=slots.index(op.slot))
        if isinstance(op, ops.LoadAt):
            op = replace(op, map=maps.index(op.map))
        new_nodes[node] = Node(op, tuple(new_nodes[value] for value in node.inputs), node.type)
    inputs = [program.inputs[slot] for slot in slots]
    return Program(
        program.name,
        program.ordered,
        tuple(program.maps[number] for number in maps),
        tuple(replace(s, index_map=None if s.index_map is None else maps.index(s.index_map)) for s in inputs),
        tuple(Output(output.name, new_nodes[output.value]) for output in program.outputs),
    )
