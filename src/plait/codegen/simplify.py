"""Small laws that hold for every program, applied before it is scheduled: equal values once, views that change nothing away."""

from __future__ import annotations

from collections.abc import Callable

from plait.ir.ops import Cast, Expand, Op, Reshape
from plait.ir.program import Builder, Node, Output, Program, Type, topological

Make = Callable[[Op, tuple[Node, ...], Type], Node]


class Rebuild:
    """Makes nodes that are equal to no other; `node` applies the laws of this file."""

    def __init__(self) -> None:
        self._builder = Builder()

    def node(self, op: Op, inputs: tuple[Node, ...], type_: Type) -> Node:
        if isinstance(op, Reshape | Expand | Cast) and inputs[0].type == type_:
            return inputs[0]  # f(x) = x
        if isinstance(op, Reshape) and isinstance(inputs[0].op, Reshape):
            return self.node(op, inputs[0].inputs, type_)  # reshape(reshape(x)) = reshape(x)
        return self._builder.node(op, inputs, type_)


def rebuild(program: Program, rule: Callable[[Node, Rebuild], Node | None] | None = None) -> Program:
    """The same program with equal subtrees as one node, dead values gone, and `rule` applied to every node, inputs first."""
    make = Rebuild()
    new: dict[Node, Node] = {}
    for node in topological([output.value for output in program.outputs]):
        value = make.node(node.op, tuple(new[item] for item in node.inputs), node.type)
        changed = rule(value, make) if rule is not None else None
        new[node] = value if changed is None else changed
    outputs = tuple(Output(output.name, new[output.value]) for output in program.outputs)
    return Program(program.name, program.ordered, program.maps, program.inputs, outputs)
