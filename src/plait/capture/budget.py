"""A training step within `memory_budget`: which kept values are dropped, and which order of products goes with that.

What a step holds is read off its assembled halves, which are made for every plan that is tried, without kernels. The order of
products is chosen before there is a backward, and as if a step kept what was propagated (see `passes.order`). Where a budget
may not leave room for that, the other choice is planned, too, and what is predicted to be faster is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch.fx import GraphModule

from plait.capture.partition import Joint, Plan, boxed, copy_graph, default_plan, partition, predict, recompute
from plait.capture.record import Record
from plait.capture.run_passes import run_forward_passes, run_joint_passes, trains
from plait.capture.tune import machine_costs
from plait.errors import MemoryBudgetError
from plait.passes import domains as domains_pass
from plait.passes.keep import Dropped, Keeper
from plait.passes.liveness import step_peak
from plait.passes.order import MARGIN
from plait.passes.recompute import forward_nodes

Cut = Callable[..., tuple[GraphModule, GraphModule]]


def budget_bytes(gm: GraphModule, example_inputs: Sequence[Any], record: Record) -> int | None:
    """The bytes that `memory_budget` stands for; None for inference, which keeps nothing, and where no plan is to be made."""
    budget = record.options.memory_budget
    if budget is None or not trains(example_inputs) or not record.wants("recompute"):
        return None
    if isinstance(budget, int):
        return budget
    return int(budget * eager_peak(gm, example_inputs)) or None


def eager_peak(gm: GraphModule, example_inputs: Sequence[Any]) -> int:
    """The bytes a training step of the captured graph is predicted to hold when it runs un-compiled."""
    found: list[int] = []

    def look(joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **others: Any) -> tuple[GraphModule, GraphModule]:
        forward, backward = default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **others)
        found.append(step_peak(forward.graph, backward.graph, num_fwd_outputs, lambda node: False, frees_early=True))
        return forward, backward

    _trace(gm, example_inputs, look)
    return found[0] if found else 0


def _trace(gm: GraphModule, example_inputs: Sequence[Any], look: Cut) -> None:
    """Takes a copy of a graph through autograd, for its joint graph to be looked at."""
    backend = aot_autograd(fw_compiler=boxed, bw_compiler=boxed, partition_fn=look)
    with torch._functorch.config.patch(donated_buffer=False):
        backend(GraphModule(gm, copy_graph(gm.graph)), example_inputs)


# --- what is dropped -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A plan for a budget: the values it drops, out of num_candidates, and the bytes its step holds at most."""

    plan: Plan
    dropped: tuple[Dropped, ...]
    held: int
    num_candidates: int


def plan_within(budget: int, joint: Joint, record: Record) -> Plan:
    """The plan to carry out; what it drops is in the record. Raises MemoryBudgetError when no plan fits."""
    fit = _fit(budget, joint, record)
    if fit.held > budget:
        raise MemoryBudgetError(
            f"memory_budget: a step may hold {_megabytes(budget)}; the smallest plan found for this graph holds "
            f"{_megabytes(fit.held)}, with {len(fit.dropped)} of {fit.num_candidates} kept values computed again in the "
            "backward\n"
            f"  Allow at least {fit.held} bytes, or train on mini-batches (plait.loader).",
            fit.held,
        )
    record.dropped = list(fit.dropped)
    return fit.plan


def _fit(budget: int, joint: Joint, record: Record) -> Fit:
    """Few values to drop so that the step fits, or what holds least where nothing does."""
    plan = default_plan(joint, record)
    candidates = _candidates(joint, plan.cached)
    tried: dict[frozenset[str], int] = {}

    def held(names: frozenset[str]) -> int:
        if names not in tried:
            halves = partition(joint.copy(), record.scratch(), replace(plan, dropped=names), build=False)
            tried[names] = predict(halves).peak_bytes
        return tried[names]

    order = [item.name for item in candidates]
    names = _shortest(order, held, budget)
    if held(names) > budget:
        names = _smaller(min(tried, key=held), order, held, budget)
    if held(names) <= budget:
        for item in sorted(candidates, key=lambda item: -item.seconds):  # the dearest that need not be dropped stays
            if item.name in names and held(names - {item.name}) <= budget:
                names -= {item.name}
    dropped = tuple(item for item in candidates if item.name in names)
    return Fit(replace(plan, dropped=names), dropped, held(names), len(candidates))


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
    recompute(graph, joint.num_returned, cached)
    return Keeper(graph, joint.num_returned, domains_pass.infer(graph), machine_costs()).order()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"


# --- the order of products -------------------------------------------------------------------------------------------


def counts_on_sums(forward: GraphModule, example_inputs: Sequence[Any], record: Record, budget: int) -> bool:
    """Whether the order of products is chosen as if what was propagated were kept for the gradients of weights.

    forward: the graph before the passes. Where it makes a difference, both choices are planned within the budget.
    """
    if record.options.order != "auto" or not record.wants("order"):
        return True
    graphs = {keeps: GraphModule(forward, copy_graph(forward.graph)) for keeps in (True, False)}
    seconds = {
        keeps: run_forward_passes(gm, example_inputs, record.scratch(), keeps_sums=keeps) for keeps, gm in graphs.items()
    }
    if str(graphs[True].graph) == str(graphs[False].graph):
        return True
    held: dict[bool, int] = {}
    for keeps, gm in graphs.items():
        fit = _planned(gm, example_inputs, record, budget)
        if keeps and not fit.dropped and fit.held <= budget:
            return True  # everything that was counted on is kept
        held[keeps] = fit.held
        seconds[keeps] += sum(item.seconds for item in fit.dropped)
    if max(held.values()) > budget:  # what holds less: the only one that fits, or the smaller figure in the error
        return held[True] < held[False]
    return seconds[True] * MARGIN <= seconds[False]


def _planned(gm: GraphModule, example_inputs: Sequence[Any], record: Record, budget: int) -> Fit:
    """What a plan within the budget comes to for a graph that the forward passes have run on."""
    found: list[Fit] = []

    def look(joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **others: Any) -> tuple[GraphModule, GraphModule]:
        trial = Joint(joint, inputs, num_fwd_outputs, others).copy()
        run_joint_passes(trial.module, forward_nodes(trial.module.graph, num_fwd_outputs), record.scratch())
        found.append(_fit(budget, trial, record.scratch()))
        return default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **others)

    _trace(gm, example_inputs, look)
    return found[0] if found else Fit(Plan(), (), 0, 0)  # no backward
