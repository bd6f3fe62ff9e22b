"""Where programs and kept values come from in the user's model: text and sizes for reports, which keep no graph alive."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.capture.launch import Launch, StructureCall
from plait.capture.lower import Lowered
from plait.passes.domains import Domains
from plait.passes.edit import is_tensor, is_view, results_of, source_line, static, value
from plait.passes.fuse import Region

Size = int | str  # text (`u0 + 10`) where only a run knows the number


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a captured graph.

    kind: input (the user's tensor, or a view of one), structure (computed once per graph), edge or computed. source: the line
    of the model that made it; position: which input of the captured graph it is, or None.
    """

    name: str
    sizes: tuple[Size, ...]
    dtype: torch.dtype
    kind: str
    source: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a program was made of. module: (path, class) of the innermost module all of it belongs to, or None.

    operators: the fused calls, views excepted; tensors: what it reads, by slot; rows: the ordering map; maps: the others;
    results: what it writes.
    """

    module: tuple[str, str] | None
    operators: tuple[Value, ...]
    tensors: tuple[Value, ...]
    rows: Value | None
    maps: tuple[Value, ...]
    results: tuple[Value, ...]


def describe_region(region: Region, lowered: Lowered, domains: Domains) -> Origin:
    """The origin of the program that `region` was lowered to."""
    return Origin(
        _common_module(region.members),
        tuple(describe(node, domains) for node in region.members if not is_view(node)),
        tuple(describe(node, domains) for node in lowered.tensors),
        describe(region.rows) if region.rows is not None else None,
        tuple(describe(node) for node in lowered.maps),
        tuple(describe(node, domains) for node in lowered.results),
    )


def kept_values(graph: Graph, num_returned: int) -> list[Value]:
    """What a forward graph hands to the backward: the tensors among its outputs behind the first `num_returned`."""
    return [describe(item) for item in results_of(graph)[num_returned:] if is_tensor(item)]


def source_lines(nodes: Iterable[Node]) -> dict[str, str]:
    """The line of the user's model behind every node, by name; passes take nodes away, so it is asked before them."""
    lines = {node.name: source_line(node) for node in nodes}
    return {name: line for name, line in lines.items() if line}


def describe(node: Node, domains: Domains | None = None) -> Value:
    """A tensor as a report shows it."""
    val = value(node)
    sizes = tuple(_size(size) for size in val.shape)
    owner = _viewed(node)
    position = getattr(node.meta.get("desc"), "idx", None) if node.op == "placeholder" else None
    return Value(_name(node), sizes, val.dtype, _kind(node, owner, domains), source_line(node), position)


def _size(size: Any) -> Size:
    number = static(size)
    if number is not None:
        return number
    return int(size.node.hint) if size.node.has_hint() else _shown(size.node.expr)


@functools.lru_cache(maxsize=1024)
def _shown(expression: Any) -> str:
    """Printed once: sympy takes milliseconds to order a sum's terms, and every value per edge has the same few sizes."""
    return str(expression)


def _name(node: Node) -> str:
    """The name a value had before a launch or the structure took its place."""
    call = node.args[0] if node.target is operator.getitem else None
    position = node.args[1] if call is not None else None
    target = getattr(call, "target", None)
    if isinstance(target, Launch) and isinstance(position, int):
        return target.program.outputs[position].name
    if isinstance(target, StructureCall) and isinstance(position, int):
        return str(results_of(target.module.graph)[position].name)
    return node.name


def _viewed(node: Node) -> Node:
    """What a chain of views shows."""
    while node.op == "call_function" and is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _kind(node: Node, owner: Node, domains: Domains | None) -> str:
    if owner.op == "placeholder":
        return "input"
    if owner.target is operator.getitem and isinstance(getattr(owner.args[0], "target", None), StructureCall):
        return "structure"
    return "edge" if domains is not None and domains.is_edge(node) else "computed"


def _common_module(nodes: tuple[Node, ...]) -> tuple[str, str] | None:
    stacks = [stack for node in nodes if (stack := _modules(node))]
    common = None
    for level in zip(*stacks, strict=False):
        if any(item != level[0] for item in level):
            break
        common = level[0]
    return common


def _modules(node: Node) -> list[tuple[str, str]]:
    """(path, class name) of the modules a call stands in, outermost first; a backward call belongs where its forward does."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    return [(str(path), getattr(kind, "__name__", str(kind))) for path, kind in stack.values()]
