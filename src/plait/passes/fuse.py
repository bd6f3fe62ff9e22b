"""Grows edge programs: everything between gathers and reductions that can be done while one row's edges are at hand.

An *anchor* is a value that leaves the edges: a segment reduction, a sum over all edges, or an edge tensor that something
outside reads. Its *cone* is every fusable edge value below it, down to values that exist in memory. Anchors over the same map
share a region when that needs no value the region itself must produce first; a reduced value read back through the same map
chains inside the region (softmax), one read through a different map starts a new one, and that is the only reason for a
second kernel.

The same growing, over rows that are no entries of a map, fuses what is left between products and norms (`find_row_regions`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.anchors import (
    VIEWS,
    Facts,
    Predicate,
    anchor_map,
    escapes,
    facts_of,
    in_cone,
    is_same_in_rows,
    is_total,
    operands,
    reduced_value,
)
from plait.passes.domains import Domains, has_one_row
from plait.passes.edit import (
    PRODUCTS,
    SAME,
    aten,
    hint,
    inner_sizes,
    is_call,
    is_tensor,
    is_transpose,
    product_parts,
    static,
    total_product_of,
    value,
)


@dataclass(frozen=True, eq=False)
class Region:
    """A fused region of an FX graph: `members` in graph order, `outputs` among them, `rows` the ordering map or None."""

    rows: Node | None
    domain: Node
    row_domain: Node | None
    members: tuple[Node, ...]
    outputs: tuple[Node, ...]
    totals: frozenset[Node]


@dataclass(eq=False)
class _Draft:
    """A region while it grows."""

    rows: Node | None
    domain: Node
    anchors: list[Node] = field(default_factory=list)
    members: dict[Node, None] = field(default_factory=dict)
    leaves: set[Node] = field(default_factory=set)


def find_edge_regions(graph: Graph, domains: Domains, fusable: Predicate) -> list[Region]:
    """Edge programs of a canonical graph, in an order in which they can run. `fusable`: whether an operator has a lowering."""
    regions = _grow(graph, domains, fusable, lambda node: domains.is_edge(node) and not has_one_row(node))
    return [region for region in regions if _num_computing(region) >= 1 or region.rows is not None or region.totals]


# fewer operators than this cost less as they are than one more launch, but for large values: there most of the time of an
# operator goes into the pages of a fresh result, and a kernel writes into a buffer that was used before
_MIN_ROW_OPERATORS = 3
_LARGE = 1 << 20  # numbers
_MIN_ROWS = 512
# numbers of a weight, or of a weight's gradient: with more of them a tile's products no longer run from the cache, and the
# partial gradients of all tasks take more memory than they save
_MAX_WEIGHT = 1 << 18
# numbers per row: kernels unroll a row's columns, and the C++ compiler needs minutes and gigabytes for twelve thousand of them
MAX_COLUMNS = 4096


def find_row_regions(graph: Graph, domains: Domains, fusable: Predicate) -> list[Region]:
    """Elementwise work and inner reductions over nodes (or rows of any kind that is not edges), in the user's order of rows."""

    def inside(node: Node) -> bool:
        if domains.of(node) is None or domains.is_edge(node) or is_call(node, operators.gather, operators.segment_reduce):
            return False
        num_rows = static(value(node).shape[0])
        return num_rows is None or num_rows >= _MIN_ROWS

    # products of nodes are torch's: nothing is at hand that would otherwise be written
    regions = _grow(graph, domains, lambda node: fusable(node) and not is_call(node, *PRODUCTS), inside)
    return [region for region in regions if _num_computing(region) >= (1 if _is_large(region) else _MIN_ROW_OPERATORS)]


def is_tileable(node: Node) -> bool:
    """Whether a product is one that tiles of edges are made for: by a weight of static size that stays in the cache."""
    parts = product_parts(node)
    if parts is None or value(node).dtype not in (torch.float32, torch.float64):
        return False
    sizes = inner_sizes(value(node), leading=False) if total_product_of(node) else inner_sizes(value(parts[2]), leading=False)
    return sizes is not None and math.prod(sizes) <= _MAX_WEIGHT


def _is_large(region: Region) -> bool:
    return any(math.prod(hint(size) or 1.0 for size in value(node).shape) >= _LARGE for node in region.outputs)


def _num_computing(region: Region) -> int:
    """Operators of a region that compute floats, i.e. that are not views and copies."""
    return sum(
        1
        for node in region.members
        if value(node).dtype.is_floating_point
        and (torch.Tag.pointwise in getattr(node.target, "tags", ()) or is_call(node, *_REDUCTIONS))
        and not is_call(node, *_COPIES)
    )


_REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)
_COPIES = (aten.clone.default, *SAME, aten._to_copy.default)


def _grow(graph: Graph, domains: Domains, fusable: Predicate, inside: Predicate) -> list[Region]:
    facts = facts_of(graph, domains, lambda node: fusable(node) and not domains.has_new_rows(node), inside)
    drafts: list[_Draft] = []
    anchors = [(node, found[0]) for node in graph.nodes if (found := anchor_map(node, facts)) is not None]
    # reductions first: edge tensors and totals then join the kernel that has most of their values at hand already
    for node, rows in sorted(anchors, key=lambda pair: pair[1] is None):
        _place(node, rows, drafts, facts)
    _give_back(drafts, facts)
    _absorb_epilogues(drafts, facts)
    read_by_others: set[Node] = set().union(*(draft.leaves for draft in drafts))
    return [_finish(draft, facts, read_by_others) for draft in drafts]


def _place(anchor: Node, rows: Node | None, drafts: list[_Draft], facts: Facts) -> None:
    domain = facts.domains.of(reduced_value(anchor))
    assert domain is not None
    is_edge_output = rows is None and not is_total(anchor, facts)
    best: tuple[int, _Draft, dict[Node, None], set[Node]] | None = None
    for draft in drafts:
        if draft.domain is not domain or (rows is not None and not _has_rows(draft, rows, anchor, facts)):
            continue
        if is_edge_output and draft.rows is not None and is_same_in_rows(anchor, draft.rows, facts):
            continue  # in a loop over rows it would be a value of rows
        cone, leaves = _cone(anchor, draft, facts)
        if not _can_join(draft, anchor, leaves, drafts, facts):
            continue
        shared = sum(1 for item in cone if item in draft.members) + sum(1 for leaf in leaves if leaf in draft.leaves)
        if shared and (best is None or shared >= best[0]):
            best = (shared, draft, cone, leaves)
    if best is not None:
        _, draft, cone, leaves = best
    else:
        draft = _Draft(rows, domain)
        cone, leaves = _cone(anchor, draft, facts)
        drafts.append(draft)
    draft.anchors.append(anchor)
    draft.members.update(cone)
    draft.leaves |= leaves


def _has_rows(draft: _Draft, rows: Node, anchor: Node, facts: Facts) -> bool:
    """Whether a draft's rows are those of a reduction: the same map, and as many of them."""
    if draft.rows is not rows:
        return False
    reductions = (item for item in draft.anchors if is_call(item, operators.segment_reduce))
    return all(facts.domains.of(item) is facts.domains.of(anchor) for item in reductions)


def _would_cycle(draft: _Draft, produced: int, leaves: set[Node], drafts: list[_Draft], facts: Facts) -> bool:
    """Whether some leaf comes from a region that itself reads what `draft` produces."""
    others = [other for other in drafts if other is not draft]
    behind: list[_Draft] = []  # regions that depend on `draft`, directly or through others
    grown = True
    while grown:
        reached = [other for other in others if any(facts.ancestors[leaf] & produced for leaf in other.leaves)]
        grown = len(reached) > len(behind)
        behind = reached
        for other in behind:
            produced |= _bits(other.anchors, facts)
    made_behind = _bits([anchor for other in behind for anchor in other.anchors], facts)
    return any(facts.ancestors[leaf] & made_behind for leaf in leaves)


def _cone(anchor: Node, draft: _Draft, facts: Facts) -> tuple[dict[Node, None], set[Node]]:
    """What `anchor` adds to `draft` (itself included), and the values it reads from memory."""
    members: dict[Node, None] = {}
    leaves: set[Node] = set()
    stack = [anchor]
    while stack:
        node = stack.pop()
        if node in members:
            continue
        members[node] = None
        through_other_map = is_call(node, operators.gather) and node.args[1] is not draft.rows
        for item in operands(node):
            if through_other_map:
                leaves.add(item)
                continue
            if item in draft.members:
                members[item] = None
                continue
            if in_cone(item, facts) or _is_chained(item, draft, facts) or _is_private_row_value(item, node, draft, facts):
                stack.append(item)
            elif is_tensor(item):
                leaves.add(item)
    return members, leaves


def _is_chained(node: Node, draft: _Draft, facts: Facts) -> bool:
    """Whether `node` is a row value made from what `draft` already reduces: its edges can read it in the same kernel."""
    if draft.rows is None or node.op != "call_function":
        return False
    seen: set[Node] = set()
    stack, reached = [node], False
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        if item in draft.anchors and is_call(item, operators.segment_reduce):
            reached = True
            continue
        if facts.domains.is_edge(item) or not _is_row_value(item, draft, facts):
            if any(facts.ancestors[item] >> facts.position[anchor] & 1 for anchor in draft.anchors):
                return False  # depends on the region by a way around it
            continue
        stack.extend(operand for operand in item.all_input_nodes if is_tensor(operand))
    return reached


def _is_private_row_value(item: Node, reader: Node, draft: _Draft, facts: Facts) -> bool:
    """Whether a row value that only `reader` reads can be computed where its row's edges are at hand."""
    reads_per_row = is_call(reader, operators.gather) or not facts.inside(reader)
    return reads_per_row and set(item.users) == {reader} and _is_row_value(item, draft, facts)


def _give_back(drafts: list[_Draft], facts: Facts) -> None:
    """A private row value whose reader another region computes as well is made in memory, for all of them: as an output of one
    region it would be read by regions which that one may wait for."""
    read = set().union(*(draft.leaves for draft in drafts))
    for draft in drafts:
        anchors = _bits(draft.anchors, facts)

        def is_own(item: Node, draft: _Draft = draft, anchors: int = anchors) -> bool:
            return item in draft.members and not facts.inside(item) and not facts.ancestors[item] & anchors

        stack = [item for item in draft.members if item in read and is_own(item)]
        draft.leaves.update(stack)
        while stack:
            node = stack.pop()
            draft.members.pop(node, None)
            stack.extend(item for item in node.all_input_nodes if is_own(item) and draft.members.keys().isdisjoint(item.users))


def _absorb_epilogues(drafts: list[_Draft], facts: Facts) -> None:
    """Elementwise work on reduced rows (a bias, an activation) joins their kernel, with what is made for it alone."""
    taken = {node for draft in drafts for node in draft.members}
    for node in facts.position:
        if node in taken or node.op != "call_function" or not is_tensor(node):
            continue
        for draft in drafts:
            is_behind = any(
                is_tensor(item) and item in draft.members and not facts.inside(item) for item in node.all_input_nodes
            )
            if draft.rows is None or not is_behind or not _is_row_value(node, draft, facts):
                continue
            joining, leaves = _epilogue(node, draft, taken, facts)
            if not _can_join(draft, node, leaves, drafts, facts):
                continue
            draft.members.update(joining)
            draft.leaves |= leaves
            taken.update(joining)
            break


def _epilogue(node: Node, draft: _Draft, taken: set[Node], facts: Facts) -> tuple[dict[Node, None], set[Node]]:
    """`node` and the row values below it that nobody else reads, and what they read from memory."""
    joining: dict[Node, None] = {}
    leaves: set[Node] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        joining[item] = None
        for operand in item.all_input_nodes:
            if operand in draft.members or operand in joining or not is_tensor(operand):
                continue
            if operand not in taken and set(operand.users) == {item} and _is_row_value(operand, draft, facts):
                stack.append(operand)
                continue
            leaves.add(operand)
    return joining, leaves


def _can_join(draft: _Draft, node: Node, leaves: set[Node], drafts: list[_Draft], facts: Facts) -> bool:
    """Whether `draft` may also make `node`: nothing that it reads then, directly or through other regions, waits for itself."""
    produced = _bits([*draft.anchors, node], facts)
    wanted = draft.leaves | leaves
    if any(facts.ancestors[leaf] & produced for leaf in wanted):
        return False
    return not _would_cycle(draft, produced, wanted, drafts, facts)


def _bits(nodes: list[Node], facts: Facts) -> int:
    return sum({1 << facts.position[node] for node in nodes})


def _is_row_value(node: Node, draft: _Draft, facts: Facts) -> bool:
    # draws are counted by edges inside of a program
    if node.op != "call_function" or is_call(node, operators.gather, operators.segment_reduce, operators.uniform, *PRODUCTS):
        return False
    if not facts.fusable(node):
        return False
    anchors = [item for item in draft.anchors if is_call(item, operators.segment_reduce)]
    return bool(anchors) and facts.domains.of(node) is not None and facts.domains.of(node) is facts.domains.of(anchors[0])


def _finish(draft: _Draft, facts: Facts, read_by_others: set[Node]) -> Region:
    members = tuple(sorted(draft.members, key=facts.position.__getitem__))
    inside = set(members)
    outputs = []
    for node in members:
        is_anchor = node in draft.anchors
        if is_call(node, *VIEWS):
            continue
        outside = node in read_by_others or escapes(node, lambda user, _: user in inside or _feeds_totals(user, inside))
        is_row = not facts.inside(node) and not is_total(node, facts)
        if outside and (is_anchor or is_row):
            outputs.append(node)
    reductions = [item for item in draft.anchors if is_call(item, operators.segment_reduce)]
    row_domain = facts.domains.of(reductions[0]) if reductions and draft.rows is not None else None
    totals = frozenset(node for node in members if is_total(node, facts))
    return Region(draft.rows, draft.domain, row_domain, members, tuple(outputs), totals)


def _feeds_totals(user: Node, inside: set[Node]) -> bool:
    """Whether `user` only turns a value for products over all edges that are made in the region."""
    return is_transpose(user) and bool(user.users) and all(item in inside for item in user.users)
