"""The graph passes, in order, with the reason for each place. A graph can be run after every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Graph

from plait.errors import OptionError
from plait.passes.axes import lead_rows
from plait.passes.both_ends import separate_ends
from plait.passes.canonicalize import canonicalize, materialize_fills
from plait.passes.decompose import decompose
from plait.passes.domains import Domains, infer
from plait.passes.dropout import decide_dropout
from plait.passes.edge_products import flatten_single_products, spell_edge_products
from plait.passes.identities import copy_where_needed, drop_identities
from plait.passes.inner_products import spell_inner_products
from plait.passes.maxima import spell_maxima
from plait.passes.neighbours import flatten_neighbours
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
    """What a pass says: `moved` for each law applied, `left` for what it did not touch, (node name, reason), `seconds` for what
    it predicts of what it chose."""

    moved: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


Run = Callable[[Graph, Setting], Remarks]


@dataclass(frozen=True)
class Pass:
    """A rewrite of a functional aten graph, in place; same numbers before and after. required: nothing compiles without.

    The setting says what the graph is for: training or not, whose gradients are wanted, what this machine is good at.
    """

    name: str
    run: Run
    required: bool = False


def _rewrite(edit: Callable[[Graph], object]) -> Run:
    """A pass that needs the graph alone."""

    def run(graph: Graph, setting: Setting) -> Remarks:
        edit(graph)
        return Remarks()

    return run


def _rewrite_by_domain(edit: Callable[[Graph, Domains], object]) -> Run:
    """A pass that asks what the rows of a value are."""
    return _rewrite(lambda graph: edit(graph, infer(graph)))


def _law(law: Callable[[Graph, Domains], list[str]]) -> Run:
    """A pass that says what it has moved."""
    return lambda graph, setting: Remarks(moved=tuple(law(graph, infer(graph))))


def _canonicalize(graph: Graph, setting: Setting) -> Remarks:
    return Remarks(left=tuple(canonicalize(graph)))


def _neighbours(graph: Graph, setting: Setting) -> Remarks:
    flatten_neighbours(graph, has_gradients=setting.is_training)
    return Remarks()


def _order(graph: Graph, setting: Setting) -> Remarks:
    ordered = order_products(graph, infer(graph), setting)
    return Remarks(moved=ordered.moved, seconds=ordered.seconds)


_fills, _merge, _places = _rewrite(materialize_fills), _rewrite(merge_equal), _rewrite(resolve_places)

FORWARD: tuple[Pass, ...] = (
    Pass("fills", _fills),  # first: canonicalize recognises what is scattered onto by its constant
    Pass("both_ends", _rewrite(separate_ends)),  # before canonicalize makes one gather of it, of twice as many rows
    Pass("canonicalize", _canonicalize),  # later passes know gather and segment_reduce only
    Pass("single_products", _rewrite(flatten_single_products)),  # before anything looks for products with weights
    Pass("neighbours", _neighbours),  # before anything asks for domains: entries of a matrix are edges
    Pass("axes", _rewrite(lead_rows)),  # rows of every edge value in front, before anything asks for domains
    Pass("places", _places),  # before anything asks which domain a gathered row is of
    Pass("selection", _rewrite_by_domain(select_by_position)),  # before equal positions become one
    Pass("merge", _merge),  # two layers' self-loop handling must be one before it is cut off as structure
    # needs the domains; before autograd, so that the backward has the same draws
    Pass("dropout", _rewrite_by_domain(decide_dropout), required=True),
    Pass("norms", _rewrite(expand_norms)),  # before autograd, which then derives gradients that fuse, too
    # the laws run before autograd, so that gradients are derived from what they leave: products over nodes, too
    Pass("types", _law(move_typed_products)),  # first: what it makes is gathered, and a product behind it can go to the pairs
    Pass("outer", _law(move_outer_products)),  # before products and sums: what it makes has a plain weight, which they move
    # before the cheap work: where a product is gone, the values between are gathered instead
    Pass("products", _law(move_products)),
    Pass("merge_products", _merge),  # both ends may have got the same product of the same rows
    Pass("narrow", _law(move_narrow_work)),  # decides by what is gathered, so equal gathers must be one by now
    Pass("behind", _law(move_behind_sums)),  # last: a product that has gone to the nodes needs no sum before it
    # behind the laws, which may have a better form for it; before autograd, which then derives elementwise products
    Pass("edge_products", _rewrite(spell_edge_products)),
    Pass("inner_products", _rewrite(spell_inner_products)),  # behind them: some are a product with a weight then
    Pass("maxima", _rewrite(spell_maxima)),  # before autograd, which gives the gradient to one entry; may be of such products
    Pass("merge_moved", _merge),  # counts and node values that several sums and ends have in common
    # behind the laws, which compare how many rows there are: of edges that are left nobody knows
    Pass("slices", _law(move_slices)),
    Pass("order", _order),  # after the laws, which make products before gathers; before autograd, which follows the order
    # last: what a pass made may lie otherwise in memory than what it stands for
    Pass("views", _rewrite(copy_where_needed), required=True),
)

JOINT: tuple[Pass, ...] = (
    Pass("identities", _rewrite(drop_identities)),  # autograd's detached and twice transposed values are the values themselves
    Pass("joint_fills", _fills),  # autograd makes new fills and new spellings
    Pass("joint_canonicalize", _canonicalize),
    Pass("decompose", _rewrite(decompose)),  # behind autograd, whose formulas for composite operators are composite, too
    Pass("decomposed_fills", _fills),
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
