"""A forward, backward or inference graph with its fused regions replaced by kernel launches."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import _disable_current_modes

from plait import operators
from plait.capture.inplace import write_in_place
from plait.capture.launch import PRODUCTS, QUICK, Launch, StructureCall
from plait.capture.lower import DTYPES, Lowered, lower
from plait.capture.lower_ops import LOWERINGS
from plait.capture.origin import describe, describe_region, kept_values
from plait.capture.record import Record
from plait.capture.rest import compile_rest
from plait.codegen.kernel import compile_programs
from plait.errors import CompilerError, UnsupportedError
from plait.ir.text import to_text
from plait.ir.verify import verify
from plait.native.compiler import toolchain
from plait.passes import domains as domains_pass
from plait.passes.edit import Editor, aten, inner_sizes, is_integral, is_tensor, replace, stable_topological_sort, stored, value
from plait.passes.fuse import MAX_COLUMNS, Region, find_edge_regions, find_row_regions, is_tileable
from plait.passes.shared import share
from plait.passes.structure import own_maps, split_structure

EVERY_OUTPUT = 1 << 30  # as a number of outputs
_PLAIT = (operators.gather, operators.segment_reduce, operators.uniform)


def is_fusable(node: Node) -> bool:
    """Whether an operator has a lowering for this dtype and these inner sizes."""
    if node.op != "call_function" or not is_tensor(node):
        return False
    if node.target not in LOWERINGS and node.target not in _PLAIT:
        return False
    if not domains_pass.keeps_rows(node) and node.target is not aten.sum.dim_IntList:  # a sum over rows may be a total
        return False
    val = value(node)
    if val.dim() == 0 or val.dtype not in DTYPES or val.device.type != "cpu":
        return False
    if torch.Tag.pointwise in getattr(node.target, "tags", ()) and not all(map(is_tensor, node.all_input_nodes)):
        return False  # a number that is known when the model runs: a size of the graph
    inner = inner_sizes(val)
    if inner is None or math.prod(inner) > MAX_COLUMNS:
        return False
    return node.target not in PRODUCTS or is_tileable(node)


def assemble(gm: GraphModule, direction: str, record: Record, *, num_returned: int, build: bool = True) -> GraphModule:
    """Splits off the structure, fuses, lowers, starts the build of the kernels; returns the graph that runs. Edits `gm`.

    The first `num_returned` outputs reach the user; the backward graph has index maps of its own, the others the user's.
    """
    graph = gm.graph
    if direction == "backward":
        _drop_asserts(graph)
    else:
        own_maps(graph, num_returned)
    structure = split_structure(graph, StructureCall, num_returned) if record.wants("structure") else None
    if structure is not None:
        record.dump_graph(f"{direction}_structure", structure.module)
        record.structure.extend(node.name for node in structure.outputs)
        record.structural.extend(describe(node) for node in structure.outputs if is_tensor(node))
    edge_work = _edge_work(graph)
    launches: list[Launch] = []
    if record.wants("edge_regions"):
        launches += _fuse(graph, find_edge_regions, direction, record, 0)
    if record.wants("row_regions"):
        launches += _fuse(graph, find_row_regions, direction, record, len(launches))
    record.launches[direction] = launches
    if build and any(launch.program.reads_maps() for launch in launches):
        build_kernels(launches, record)  # now, while the other half is assembled; rows alone may not be worth it
    if direction == "forward":
        record.kept = kept_values(graph, num_returned)
    _note_leftovers(graph, edge_work, direction, record)
    record.is_rewritten |= bool(launches) or structure is not None or record.options.rest == "inductor"
    if record.options.rest == "inductor":
        gm.recompile()
        gm = compile_rest(gm, record)
    else:
        record.is_rewritten |= write_in_place(graph)
        record.is_rewritten |= quicken(graph)
    gm.recompile()
    record.dump_graph(f"{direction}_final", gm)
    for launch in launches:
        record.dump(launch.program.name, to_text(launch.program))
    return gm


def _fuse(graph: Graph, find: Callable[..., list[Region]], direction: str, record: Record, first_number: int) -> list[Launch]:
    """Regions become launches in `graph`; a region that holds what programs do not stays as it is, with the reason."""
    domains = domains_pass.infer(graph)
    regions = find(graph, domains, is_fusable)
    if share(graph, domains, regions):
        domains = domains_pass.infer(graph)
        regions = find(graph, domains, is_fusable)
    pairs: list[tuple[Region, Lowered]] = []
    for region in regions:  # all are lowered before the first is put in: that changes the graph
        try:
            lowered = lower(region, domains, f"{direction}_{first_number + len(pairs)}")
        except UnsupportedError as error:
            record.note(f"{direction}: {', '.join(node.name for node in region.outputs)} not fused: {error}")
            continue
        verify(lowered.program)
        record.origins[lowered.program.name] = describe_region(region, lowered, domains)
        pairs.append((region, lowered))
    replaced: dict[Node, Node] = {}
    launches: list[Launch] = []
    for region, lowered in pairs:
        launch = Launch(lowered.program, lambda reason: record.fall_back("build", reason), wrap=_wraps(region))
        _install(graph, region, lowered, launch, replaced)
        launches.append(launch)
    for node in graph.find_nodes(op="call_function", target=stored):
        replace(node, node.args[0])
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
    return launches


def build_kernels(launches: list[Launch], record: Record) -> None:
    """Starts the build of all kernels of a graph in one shared object; without a compiler the interpreter runs."""
    if not launches or launches[0].kernel is not None:
        return
    try:
        with _disable_current_modes():  # AOTAutograd traces with fake tensors; the schedules are made of real ones
            toolchain()
            kernels = compile_programs([launch.program for launch in launches])
    except CompilerError as error:
        record.fall_back("build", str(error))
        return
    for launch, kernel in zip(launches, kernels, strict=True):
        launch.kernel = kernel
        record.dump(launch.program.name, kernel.source, "cpp")


def quicken(graph: Graph) -> bool:
    """The same calls with less around them, for what runs as it is.

    Matrix products write into reused buffers (half of a dense step on many rows is page faults on fresh ones), and a size is
    or a transpose is asked of the tensor, not of an operator, which takes ten to twenty times as long.
    Returns whether there are such products.
    """
    has_products = False
    for node in graph.nodes:
        if node.op != "call_function" or node.kwargs:
            continue
        if node.target in PRODUCTS and value(node).device.type == "cpu":
            node.target = PRODUCTS[node.target]
            has_products = True
        elif node.target in QUICK:
            node.target = QUICK[node.target]
    return has_products


def _install(graph: Graph, region: Region, lowered: Lowered, launch: Callable[..., Any], replaced: dict[Node, Node]) -> None:
    """One call in place of the region; dead code elimination takes the region's nodes away.

    `replaced` says what now stands for the results of regions installed before; this region's are added.
    """
    anchor = graph.output_node()
    edit = Editor(graph, anchor)
    # not even the size of what a kernel makes now may be asked of the node it stands for, which would stay
    sizes = tuple(edit.size(replaced.get(node, node), 0) for node in lowered.coarse)
    tensors = tuple(replaced.get(node, node) for node in lowered.tensors)
    num_rows = _num_rows(edit, region, lowered, tensors)
    num_edges = _num_edges(edit, region, lowered, tensors)
    with graph.inserting_before(anchor):
        call = graph.call_function(launch, (num_edges, num_rows, region.rows, tuple(lowered.maps), sizes, tensors))
        types = [output.value.type for output in lowered.program.outputs]
        call.meta["val"] = [
            value(node).new_empty(item.shape if node in region.totals else value(node).shape, dtype=item.dtype)
            for node, item in zip(lowered.results, types, strict=True)
        ]
        for position, node in enumerate(lowered.results):
            with graph.inserting_before(anchor):
                item = graph.call_function(operator.getitem, (call, position))
            item.meta = {**node.meta, "val": call.meta["val"][position]}
            if node in region.totals:
                item = _as_total(edit, item, node)
            node.replace_all_uses_with(item, delete_user_cb=lambda user, item=item: user is not item)  # type: ignore[misc]
            replaced[node] = item


def _wraps(region: Region) -> bool:
    """Whether some map of the region may hold negative entries that count from the end."""
    return any(
        node.args[-1] is True
        for node in region.members
        if (node.target is operators.gather and len(node.args) > 2)
        or (node.target is operators.segment_reduce and len(node.args) > 6)
    )


def _as_total(edit: Editor, item: Node, node: Node) -> Node:
    """A total in the shape and dtype of `node`: programs leave out axes of size 1, and sum bfloat16 up in float32."""
    val = value(node)
    result = edit.call(aten.view.default, item, list(val.shape))
    if value(result).dtype is not val.dtype:
        result = edit.call(aten._to_copy.default, result, dtype=val.dtype)
    result.meta = dict(node.meta)
    return result


def _num_rows(edit: Editor, region: Region, lowered: Lowered, tensors: tuple[Node, ...]) -> Any:
    for node in region.members:
        if node.target is operators.segment_reduce and node.args[1] is region.rows:
            return node.args[2]
    for node, item in zip(tensors, lowered.program.inputs, strict=True):
        if item.access == "row":
            return edit.size(node, 0)
    return 0


def _num_edges(edit: Editor, region: Region, lowered: Lowered, tensors: tuple[Node, ...]) -> Any:
    if region.rows is not None:
        return edit.size(region.rows, 0)
    if lowered.maps:
        return edit.size(lowered.maps[0], 0)
    for node, item in zip(tensors, lowered.program.inputs, strict=True):
        if item.access == "edge":
            return edit.size(node, 0)
    for node in region.members:
        if node.target is operators.uniform:
            return node.args[1]
    raise UnsupportedError("a region whose number of edges is unknown")


def _drop_asserts(graph: Graph) -> None:
    """The backward's copies of checks of sizes: the sizes come from the forward, which has checked them."""
    for node in graph.find_nodes(op="call_function", target=aten._assert_scalar.default):
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _edge_work(graph: Graph) -> set[Node]:
    """Operators that make or read edge values. Found before kernels are put in: their results belong to no domain."""
    domains = domains_pass.infer(graph)

    def is_edge(node: Node) -> bool:
        return is_tensor(node) and not is_integral(node) and domains.is_edge(node)

    return {node for node in graph.nodes if _is_work(node) and any(map(is_edge, (node, *node.all_input_nodes)))}


def _note_leftovers(graph: Graph, edge_work: set[Node], direction: str, record: Record) -> None:
    """Edge work that stayed outside of every kernel, by operator."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.name in record.left and not is_integral(node):
            record.note(f"{direction}: {record.left[node.name]}")
        if node in edge_work:
            if is_tensor(node) and value(node).dtype is torch.float16:
                record.fall_back("fuse", "work on edges in float16 is not compiled; kernels know float32, float64 and bfloat16")
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    for name, count in sorted(counts.items()):
        record.note(f"{direction}: {name} on edges runs unfused ({count}x)")


def _is_work(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target is not aten.sym_size.int and not node.target.is_view
