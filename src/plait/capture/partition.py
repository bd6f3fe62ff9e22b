"""The joint graph of a training step cut into forward and backward, with the plan of what is kept between them.

The default plan keeps everything the backward reads but values per edge, which are computed again inside the kernels, unless
there are few numbers per edge and they are asked for (see `passes.edge_scalars`). Under a budget, what is kept is dropped,
cheapest first, until the step is predicted to fit (see `passes.keep`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import default_partition
from torch.fx import Graph, GraphModule, Node

from plait.capture.assemble import EVERY_OUTPUT, assemble, is_fusable
from plait.capture.launch import StructureCall
from plait.capture.record import Prediction, Record
from plait.capture.tune import machine_costs
from plait.errors import CompilerError, MemoryBudgetError
from plait.passes import domains as domains_pass
from plait.passes.edge_scalars import EdgeScalars
from plait.passes.keep import Dropped, Keeper, is_extremum
from plait.passes.liveness import kept_bytes, step_peak
from plait.passes.recompute import bind_counts, recompute_edges
from plait.passes.structure import structural_nodes


@dataclass
class Halves:
    """The forward and the backward of a captured graph, cut apart.

    forward: (*inputs) -> (*values for inputs it writes to, *outputs, *saved tensors, *saved sizes), num_returned of them before
    the saved ones. backward: (*saved sizes, *saved tensors, *gradients of the outputs that have one) -> gradients by input.
    """

    forward: GraphModule
    backward: GraphModule
    num_returned: int


@dataclass(frozen=True)
class Joint:
    """A joint graph as AOTAutograd hands it over: its example inputs, how many outputs are the forward's, other arguments."""

    module: GraphModule
    inputs: Any
    num_returned: int
    others: dict[str, Any]

    def copy(self) -> Joint:
        """The same graph again; what names its nodes is left out."""
        others = {name: item for name, item in self.others.items() if name != "static_lifetime_input_nodes"}
        return replace(self, module=GraphModule(self.module, copy_graph(self.module.graph)), others=others)


def copy_graph(graph: Graph) -> Graph:
    """A copy that shares the values in `meta`, which must keep their symbols."""
    new = Graph()
    new.output(new.graph_copy(graph, {}))
    return new


@dataclass(frozen=True)
class Plan:
    """Names: of values per edge that the forward writes for the backward; of kept values that are computed again after all."""

    cached: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def boxed(gm: GraphModule, _: Any) -> Callable[..., Any]:
    """A graph as AOTAutograd calls it: a "compiler" that leaves it as it is."""
    return make_boxed_func(gm.forward)


def partition(joint: Joint, record: Record, budget: int | None) -> Halves:
    """Forward and backward, assembled. budget: bytes the step may hold at once, or None. Raises MemoryBudgetError."""
    plan = Plan()
    if record.wants("recompute"):
        plan = Plan(_cached(joint, record))
        if budget is not None:
            plan = replace(plan, dropped=_fitting(joint, record, budget, plan))
    halves = _cut(joint, record, plan)
    record.prediction = predict(halves)
    return halves


def predict(halves: Halves) -> Prediction:
    """Bytes a step of these halves keeps, and holds at most."""
    forward, backward = halves.forward.graph, halves.backward.graph
    return Prediction(
        kept_bytes(forward, halves.num_returned, _is_structure),
        step_peak(forward, backward, halves.num_returned, _is_structure, frees_early=True),
    )


def _is_structure(node: Node) -> bool:
    return isinstance(node.target, StructureCall) or (
        node.op == "call_function" and any(isinstance(item.target, StructureCall) for item in node.all_input_nodes)
    )


def _cut(joint: Joint, record: Record, plan: Plan, *, build: bool = True) -> Halves:
    """One plan carried out. Without `build` no kernel is compiled, and the graphs are there to be looked at."""
    spare = joint.copy() if has_extremum(joint.module.graph) else None
    graph, num_returned = joint.module.graph, joint.num_returned
    if record.wants("recompute"):
        record.recomputed.extend(_recompute(graph, num_returned, plan.cached - plan.dropped))
        if plan.dropped:
            keeper = Keeper(graph, num_returned, domains_pass.infer(graph), machine_costs())
            keeper.drop(plan.dropped)
    forward, backward = _divided(joint)
    forward = assemble(forward, "forward", record, num_returned=num_returned, build=build)
    if spare is not None and record.recomputed and has_extremum(forward.graph):
        # its gradient compares entries with the result bit by bit: what no kernel computed must not be computed again by one
        record.note("a maximum or minimum stays outside of the kernels: edge values are kept, not recomputed")
        record.recomputed.clear()
        forward, backward = _divided(spare)
        forward = assemble(forward, "forward", record, num_returned=num_returned, build=build)
    return Halves(forward, assemble(backward, "backward", record, num_returned=EVERY_OUTPUT, build=build), num_returned)


def _divided(joint: Joint) -> tuple[GraphModule, GraphModule]:
    """Forward and backward by torch's default partition, which keeps what the backward reads."""
    bind_counts(joint.module.graph, joint.num_returned)
    return default_partition(joint.module, joint.inputs, num_fwd_outputs=joint.num_returned, **joint.others)


def _recompute(graph: Graph, num_returned: int, cached: Collection[str]) -> Sequence[str]:
    is_recomputable = _is_recomputable(graph)
    return recompute_edges(graph, num_returned, domains_pass.infer(graph), is_recomputable, cached).recomputed


def _is_recomputable(graph: Graph) -> Callable[[Node], bool]:
    structure = set(structural_nodes(graph))
    return lambda node: is_fusable(node) and node not in structure


def _cached(joint: Joint, record: Record) -> frozenset[str]:
    """The names of the values per edge that the forward writes for the backward."""
    graph, choice = joint.module.graph, record.options.edge_scalars
    if choice == "recomputed":
        return frozenset()
    scalars = EdgeScalars(graph, joint.num_returned, domains_pass.infer(graph), _is_recomputable(graph))
    found = scalars.all()
    if found and choice == "auto":
        try:
            found = scalars.cheapest(machine_costs())
        except CompilerError:  # no kernel can be measured, and none will run
            found = set()
    return frozenset(node.name for node in found)


def has_extremum(graph: Graph) -> bool:
    """Whether a graph has a maximum or minimum over rows; once it is assembled, as an operator of its own."""
    return any(map(is_extremum, graph.nodes))


# --- budgets ---------------------------------------------------------------------------------------------------------


def _fitting(joint: Joint, record: Record, budget: int, plan: Plan) -> frozenset[str]:
    """The names of the values to drop so that the step fits, and few of them. Raises MemoryBudgetError when no plan does."""
    candidates = _candidates(joint, plan.cached)
    tried: dict[frozenset[str], int] = {}

    def held(names: frozenset[str]) -> int:
        if names not in tried:
            tried[names] = predict(_cut(joint.copy(), record.scratch(), replace(plan, dropped=names), build=False)).peak_bytes
        return tried[names]

    order = [item.name for item in candidates]
    names = _shortest(order, held, budget)
    if held(names) > budget:
        names = _smaller(min(tried, key=held), order, held, budget)
    if held(names) > budget:
        raise MemoryBudgetError(
            f"memory_budget: a step may hold {_megabytes(budget)}; the smallest plan found for this graph holds "
            f"{_megabytes(held(names))}, with {len(names)} of {len(candidates)} kept values computed again in the backward\n"
            f"  Allow at least {held(names)} bytes, or train on mini-batches (plait.loader)."
        )
    for item in sorted(candidates, key=lambda item: -item.seconds):  # the dearest that need not be dropped stays
        if item.name in names and held(names - {item.name}) <= budget:
            names -= {item.name}
    record.dropped = [item for item in candidates if item.name in names]
    return names


def _shortest(order: Sequence[str], held: Callable[[frozenset[str]], int], budget: int) -> frozenset[str]:
    """The cheapest values to drop, no more of them than it takes to fit; all of them where nothing does.

    Twice as many at a time and then by bisection: a plan is tried by being carried out, which takes half a compilation.
    """

    def fits(count: int) -> bool:
        return held(frozenset(order[:count])) <= budget

    low = high = 0  # how many are dropped: fewer than `low` do not fit
    while high < len(order) and not fits(high):
        low, high = high + 1, min(2 * high + 1, len(order))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return frozenset(order[:low])


def _smaller(
    names: frozenset[str], candidates: Sequence[str], held: Callable[[frozenset[str]], int], budget: int
) -> frozenset[str]:
    """A plan that holds less, by dropping or keeping one value at a time as long as that helps or it fits."""
    num_in_vain = 0
    for name in itertools.cycle(candidates):
        other = names ^ {name}
        names, num_in_vain = (other, 0) if held(other) < held(names) else (names, num_in_vain + 1)
        if num_in_vain == len(candidates) or held(names) <= budget:
            break
    return names


def _candidates(joint: Joint, cached: Collection[str]) -> list[Dropped]:
    graph = joint.copy().module.graph
    _recompute(graph, joint.num_returned, cached)
    return Keeper(graph, joint.num_returned, domains_pass.infer(graph), machine_costs()).order()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"


def eager_peak(gm: GraphModule, example_inputs: Sequence[Any]) -> int:
    """The bytes a training step of the captured graph is predicted to hold when it runs un-compiled."""
    found: list[int] = []

    def look(joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **others: Any) -> tuple[GraphModule, GraphModule]:
        forward, backward = default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **others)
        found.append(step_peak(forward.graph, backward.graph, num_fwd_outputs, lambda node: False, frees_early=True))
        return forward, backward

    backend = aot_autograd(fw_compiler=boxed, bw_compiler=boxed, partition_fn=look)
    with torch._functorch.config.patch(donated_buffer=False):
        backend(GraphModule(gm, copy_graph(gm.graph)), example_inputs)
    return found[0] if found else 0
