"""The graph passes, in order, with the reason for each place. A graph can be run after every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Graph

from plait.errors import OptionError
from plait.passes import domains
from plait.passes.axes import lead_rows
from plait.passes.canonicalize import canonicalize, materialize_fills
from plait.passes.dropout import decide_dropout
from plait.passes.identities import copy_where_needed, drop_identities
from plait.passes.norms import expand_norms
from plait.passes.order import order_products
from plait.passes.order_costs import Setting
from plait.passes.places import resolve_places
from plait.passes.reorganise import (
    move_behind_sums,
    move_narrow_work,
    move_outer_products,
    move_products,
    move_slices,
    move_typed_products,
)
from plait.passes.selection import select_by_position
from plait.passes.structure import merge_equal


@dataclass(frozen=True)
class Remarks:
    """What a pass says: `moved` for each law applied, `left` for what it did not touch, (node name, reason)."""

    moved: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pass:
    """A rewrite of a functional aten graph, in place; same numbers before and after. required: nothing compiles without.

    The setting says what the graph is for: training or not, whose gradients are wanted, what this machine is good at.
    """

    name: str
    run: Callable[[Graph, Setting], Remarks]
    required: bool = False


def _fills(graph: Graph, setting: Setting) -> Remarks:
    materialize_fills(graph)
    return Remarks()


def _identities(graph: Graph, setting: Setting) -> Remarks:
    drop_identities(graph)
    return Remarks()


def _canonicalize(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(left=tuple(canonicalize(graph)))


def _axes(graph: Graph, setting: Setting) -> Remarks:
    lead_rows(graph)
    return Remarks()


def _places(graph: Graph, setting: Setting) -> Remarks:
    resolve_places(graph)
    return Remarks()


def _selection(graph: Graph, setting: Setting) -> Remarks:
    select_by_position(graph, domains.infer(graph))
    return Remarks()


def _views(graph: Graph, setting: Setting) -> Remarks:
    copy_where_needed(graph)
    return Remarks()


def _merge(graph: Graph, setting: Setting) -> Remarks:
    merge_equal(graph)
    return Remarks()


def _dropout(graph: Graph, setting: Setting) -> Remarks:
    decide_dropout(graph, domains.infer(graph))
    return Remarks()


def _norms(graph: Graph, setting: Setting) -> Remarks:
    expand_norms(graph)
    return Remarks()


def _products(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_products(graph, domains.infer(graph))))


def _types(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_typed_products(graph, domains.infer(graph))))


def _outer(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_outer_products(graph, domains.infer(graph))))


def _narrow(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_narrow_work(graph, domains.infer(graph))))


def _behind(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_behind_sums(graph, domains.infer(graph))))


def _slices(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(move_slices(graph, domains.infer(graph))))


def _order(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(moved=tuple(order_products(graph, domains.infer(graph), setting)))


FORWARD: tuple[Pass, ...] = (
    Pass("fills", _fills),  # first: canonicalize recognises what is scattered onto by its constant
    Pass("canonicalize", _canonicalize),  # later passes know gather and segment_reduce only
    Pass("axes", _axes),  # rows of every edge value in front, before anything asks for domains
    Pass("places", _places),  # before anything asks which domain a gathered row is of
    Pass("selection", _selection),  # before equal positions become one
    Pass("merge", _merge),  # two layers' self-loop handling must be one before it is cut off as structure
    Pass("dropout", _dropout, required=True),  # needs the domains; before autograd, so that the backward has the same draws
    Pass("norms", _norms),  # before autograd, which then derives gradients that fuse, too
    # the laws run before autograd, so that gradients are derived from what they leave: products over nodes, too
    Pass("types", _types),  # first: what it makes is gathered, and a product behind it can go to the pairs
    Pass("outer", _outer),  # before products and sums: what it makes has a plain weight, which they move
    Pass("products", _products),  # before the cheap work: where a product is gone, the values between are gathered instead
    Pass("merge_products", _merge),  # both ends may have got the same product of the same rows
    Pass("narrow", _narrow),  # decides by what is gathered, so equal gathers must be one by now
    Pass("behind", _behind),  # last: a product that has gone to the nodes needs no sum before it
    Pass("merge_moved", _merge),  # counts and node values that several sums and ends have in common
    Pass("slices", _slices),  # behind the laws, which compare how many rows there are: of edges that are left nobody knows
    Pass("order", _order),  # after the laws, which make products before gathers; before autograd, which follows the order
    Pass("views", _views, required=True),  # last: what a pass made may lie otherwise in memory than what it stands for
)

JOINT: tuple[Pass, ...] = (
    Pass("identities", _identities),  # autograd's detached and twice transposed values are the values themselves
    Pass("joint_fills", _fills),  # autograd makes new fills and new spellings
    Pass("joint_canonicalize", _canonicalize),
    Pass("joint_places", _places),  # behind canonicalize: the gradient of a sum over edges is a gather, read slice by slice
    Pass("joint_merge", _merge),  # what the backward computes as the forward did is kept once, or recomputed on purpose
    Pass("joint_order", _order),  # the gradient of x is a propagation too
)

AFTER = ("recompute", "structure", "edge_regions", "row_regions")  # the steps that need more than a graph, in `capture.backend`
STAGES = (*(item.name for item in FORWARD), *(item.name for item in JOINT), *AFTER)


def wanted(stage: str, stop_after: str | None) -> bool:
    """Whether a stage runs when the user asked to stop after one; OptionError for a name that is none."""
    if stop_after is None:
        return True
    if stop_after not in STAGES:
        raise OptionError(f"stop_after: expected one of {', '.join(STAGES)}, got {stop_after!r}")
    return STAGES.index(stage) <= STAGES.index(stop_after)
