"""The joint graph of a training step cut into forward and backward, with the plan of what is kept between them.

The default plan keeps everything the backward reads but values per edge, which are computed again inside the kernels, unless
there are few numbers per edge and they are asked for (see `passes.edge_scalars`), or the forward writes them anyway, since many
of its programs need them (see `passes.shared`). `capture.budget` looks for plans that keep
less.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import default_partition
from torch.fx import Graph, GraphModule, Node

from plait import operators
from plait.capture.assemble import EVERY_OUTPUT, assemble, is_fusable
from plait.capture.launch import StructureCall
from plait.capture.record import Prediction, Record
from plait.capture.tune import machine_costs
from plait.errors import CompilerError
from plait.passes import domains as domains_pass
from plait.passes import shared
from plait.passes.edge_scalars import EdgeScalars
from plait.passes.edit import is_call
from plait.passes.fuse import find_edge_regions
from plait.passes.keep import Keeper, is_extremum
from plait.passes.liveness import kept_bytes, step_peak
from plait.passes.recompute import bind_counts, recompute_edges, separate_backward
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


def default_plan(joint: Joint, record: Record) -> Plan:
    """The fastest plan, whatever it holds."""
    if not record.wants("recompute"):
        return Plan()
    cached = _cached(joint, record)
    return Plan(cached | _shared(joint, cached))


def boxed(gm: GraphModule, _: Any) -> Callable[..., Any]:
    """A graph as AOTAutograd calls it: a "compiler" that leaves it as it is."""
    return make_boxed_func(gm.forward)


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


def partition(joint: Joint, record: Record, plan: Plan, *, build: bool = True) -> Halves:
    """Forward and backward of a plan, assembled; edits the joint graph. Without `build` no kernel is compiled, and the graphs
    are there to be looked at."""
    spare = joint.copy() if has_extremum(joint.module.graph) else None
    graph, num_returned = joint.module.graph, joint.num_returned
    if record.wants("recompute"):
        record.recomputed.extend(recompute(graph, num_returned, plan.cached - plan.dropped))
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
    separate_backward(joint.module.graph, joint.num_returned)
    bind_counts(joint.module.graph, joint.num_returned)
    return default_partition(joint.module, joint.inputs, num_fwd_outputs=joint.num_returned, **joint.others)


def recompute(graph: Graph, num_returned: int, cached: Collection[str]) -> Sequence[str]:
    """Values per edge are made again in the backward, but the cached ones; their names. Edits the graph."""
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


def _shared(joint: Joint, cached: frozenset[str]) -> frozenset[str]:
    """The names of the values per edge that the forward writes anyway, one program for others: the backward reads them, too."""
    if sum(1 for node in joint.module.graph.nodes if is_call(node, operators.segment_reduce)) < shared.MIN_PROGRAMS:
        return frozenset()
    trial = joint.copy()
    recompute(trial.module.graph, trial.num_returned, cached)
    graph = _divided(trial)[0].graph
    domains = domains_pass.infer(graph)
    return frozenset(node.name for node in shared.share(graph, domains, find_edge_regions(graph, domains, is_fusable)))


def has_extremum(graph: Graph) -> bool:
    """Whether a graph has a maximum or minimum over rows; once it is assembled, as an operator of its own."""
    return any(map(is_extremum, graph.nodes))
