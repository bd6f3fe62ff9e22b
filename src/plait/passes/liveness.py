"""How many bytes a graph holds while it runs, from its values alone: what a plan of memory is judged by.

Counted is what a step allocates: the results of its calls, without its inputs, without views, and without what is computed
once per graph. A size that depends on data counts as the largest it can be.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from plait.passes.edit import is_tensor, is_view, most, results_of, value

Buffer = tuple[Node, int]  # the call that makes it, and which of its results it is


def num_bytes(val: Any) -> int:
    """Bytes of a fake tensor's elements; 0 where nothing is known of a size: it can't be planned with."""
    return int(math.prod(most(size) or 0.0 for size in val.shape)) * val.dtype.itemsize if isinstance(val, Tensor) else 0


class Buffers:
    """Which memory every value of a graph stands in.

    is_free: calls whose results cost a step nothing. given: bytes of inputs that count.
    """

    def __init__(self, graph: Graph, is_free: Callable[[Node], bool], given: Mapping[Node, int] | None = None) -> None:
        self.size: dict[Buffer, int] = {}
        self._under: dict[Node, frozenset[Buffer]] = {}
        self._given = given or {}
        for node in graph.nodes:
            self._under[node] = self._place(node, is_free)

    def _place(self, node: Node, is_free: Callable[[Node], bool]) -> frozenset[Buffer]:
        if node in self._given:
            self.size[node, 0] = self._given[node]
            return frozenset([(node, 0)])
        if node.op != "call_function" or is_free(node):
            return frozenset()
        if node.target is operator.getitem:
            call, position = node.args
            assert isinstance(call, Node)
            whole = self._under[call]
            return frozenset(item for item in whole if item == (call, position)) or whole
        if is_view(node):
            return self.under(_written(node) or node.args[:1])
        val = node.meta.get("val")
        results = val if isinstance(val, list | tuple) else [val]
        made = {(node, position): num_bytes(item) for position, item in enumerate(results) if isinstance(item, Tensor)}
        self.size |= made
        return frozenset(made)

    def under(self, nodes: Iterable[Any]) -> frozenset[Buffer]:
        """The buffers of these values; what is no value has none."""
        return frozenset(item for node in nodes if isinstance(node, Node) for item in self._under[node])

    def total(self, buffers: Iterable[Buffer]) -> int:
        return sum(self.size[item] for item in buffers)


def _written(node: Node) -> list[Any]:
    """The operands that a call writes into, and returns."""
    schema = getattr(node.target, "_schema", None)
    found = []
    for position, item in enumerate(schema.arguments if schema is not None else ()):
        if item.alias_info is not None and item.alias_info.is_write:
            found.append(node.args[position] if position < len(node.args) else node.kwargs.get(item.name))
    return found


def peak(graph: Graph, buffers: Buffers, held: frozenset[Buffer] = frozenset()) -> int:
    """The most bytes that are held at once while the graph runs. held: buffers that stay after their last reader."""
    last: dict[Buffer, Node] = {}
    for node in graph.nodes:
        for item in buffers.under([node, *node.all_input_nodes]):
            last[item] = node
    dying: dict[Node, list[Buffer]] = {}
    for item, node in last.items():
        if item not in held and node.op != "output":
            dying.setdefault(node, []).append(item)
    now = most = 0
    for node in graph.nodes:
        now += buffers.total(item for item in buffers.under([node]) if item[0] is node)
        most = max(most, now)
        # an input that is read late was there from the beginning: placeholders come first
        now -= buffers.total(dying.get(node, ())) if node.op != "placeholder" else 0
    return most


def kept_bytes(forward: Graph, num_returned: int, is_free: Callable[[Node], bool]) -> int:
    """Bytes that a forward keeps for its backward, beyond the inputs and outputs, which others hold as well."""
    buffers = Buffers(forward, is_free)
    return buffers.total(_kept(results_of(forward), num_returned, buffers))


def step_peak(
    forward: Graph, backward: Graph, num_returned: int, is_free: Callable[[Node], bool], *, frees_early: bool = False
) -> int:
    """The most bytes a training step holds: outputs, gradients given and made, what is kept, and what is in between.

    frees_early: a kept tensor is freed behind its last reader of the backward, as in eager, not when the backward ends.
    """
    ahead = Buffers(forward, is_free)
    results = results_of(forward)
    returned = ahead.under(results[:num_returned])
    kept = _kept(results, num_returned, ahead)
    places = [node for node in backward.find_nodes(op="placeholder") if is_tensor(node)]
    saved = [item for item in results[num_returned:] if is_tensor(item)]
    tangents = sum(num_bytes(value(node)) for node in places[len(saved) :])
    given: dict[Node, int] = {}
    counted: set[Buffer] = set()
    for place, item in zip(places, saved, strict=False):
        own = (ahead.under([item]) & kept) - counted  # two views of one buffer count once
        given[place] = ahead.total(own)
        counted |= own
    behind = Buffers(backward, is_free, given)
    held = frozenset() if frees_early else behind.under(backward.find_nodes(op="placeholder"))
    return max(peak(forward, ahead, returned | kept), ahead.total(returned) + tangents + peak(backward, behind, held))


def _kept(results: list[Any], num_returned: int, buffers: Buffers) -> frozenset[Buffer]:
    return buffers.under(results[num_returned:]) - buffers.under(results[:num_returned])
