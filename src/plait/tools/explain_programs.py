"""What fused programs move and compute, from their text; and how long they should take and do take."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from plait.capture.launch import Launch
from plait.costs import Costs
from plait.graph import Ordering
from plait.ir import ops
from plait.ir.interpret import interpret
from plait.ir.program import Node, Program, Space
from plait.tools.explain_count import Recorder
from plait.tools.explain_work import Sizes, Step

_INT32_END = 2**31
_VIEWS = (ops.Reshape, ops.Expand, ops.Permute, ops.Slice, ops.Cat)


def traffic(program: Program, num_edges: int, num_rows: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Bytes a program reads and writes: a tensor read by a map as often as the map has entries, the rest in full, index arrays
    too. A later pass over the same row finds it in the cache, and is not counted."""
    leading = {"edge": num_edges, "at": num_edges, "row": num_rows, "dense": 1}
    read = sum(leading[item.access] * math.prod(item.shape) * item.dtype.itemsize for item in program.inputs)
    index_bytes = 4 if all(size < _INT32_END for size in sizes) else 8
    read += len(program.maps) * num_edges * index_bytes
    if program.ordered:
        read += (num_rows + 1) * 8
        if program.needs_edge_position():
            read += num_edges * (8 if num_edges >= _INT32_END else 4)
    count = {Space.EDGE: num_edges, Space.ROW: num_rows, Space.DENSE: 1}
    written = sum(count[out.value.type.space] * out.value.type.numel * out.value.type.dtype.itemsize for out in program.outputs)
    return read, written


def launch_work(program: Program, seen: tuple[int, int, tuple[int, ...]], known: Sizes, capture: int | None = None) -> Step:
    """What one run of a program does. Operators: gathers, arithmetic and reductions (an activation is spelled in several).

    What a program without any map calls edges are rows of whatever it was given: `known` says which.
    A sum over inner axes of a product with a weight, edge by edge, counts as a matrix product on edges: it is one, written out.
    """
    num_edges, num_rows, sizes = seen
    on_edges = program.ordered or bool(program.maps) or known.rows_of([num_edges]) == "edges"
    count = {Space.EDGE: num_edges, Space.ROW: num_rows, Space.DENSE: 1}
    flops = [0, 0]  # on edges, and not
    operators = products = 0
    for node in program.nodes():
        if isinstance(node.op, _VIEWS) or (isinstance(node.op, ops.LEAVES) and not isinstance(node.op, ops.LoadAt)):
            continue
        space, elements = _extent(node)
        place = 0 if space is Space.EDGE and on_edges else 1
        operators += 1
        if _is_tile_product(node):
            products += 2 * num_edges * math.prod(_product_sizes(node))
            continue
        if not _is_arithmetic(node):
            continue
        done = count[space] * elements
        if place == 0 and _is_product(node):
            products += 2 * done
            flops[0] -= done  # its multiplications were counted as such
            continue
        flops[place] += done
    read, written = traffic(program, num_edges, num_rows, sizes)
    return Step(
        name=program.name,
        kind="program",
        capture=capture,
        direction="",
        rows="edges" if on_edges else "nodes",
        fused=operators,
        edge_product_flops=products,
        node_product_flops=0,
        edge_flops=max(flops[0], 0),
        node_flops=flops[1],
        read_bytes=read,
        written_bytes=written,
        reads=(),
        writes=(),
    )


def _is_tile_product(node: Node) -> bool:
    return isinstance(node.op, ops.Product | ops.TotalProduct)


def _product_sizes(node: Node) -> tuple[int, int]:
    return node.inputs[0].type.numel, node.type.shape[-1]


def _extent(node: Node) -> tuple[Space, int]:
    """Over which rows an operator works, and on how many elements of each: a reduction reads more than it returns."""
    if isinstance(node.op, ops.SegmentReduce | ops.TotalReduce | ops.InnerReduce):
        return node.inputs[0].type.space, node.inputs[0].type.numel
    return node.type.space, node.type.numel


def _is_arithmetic(node: Node) -> bool:
    if isinstance(node.op, ops.Uniform):
        return False
    types = (node.type, *(value.type for value in node.inputs))
    return isinstance(node.op, ops.Pointwise | ops.InnerReduce | ops.SegmentReduce | ops.TotalReduce) and any(
        type_.dtype.is_floating_point for type_ in types
    )


def _is_product(node: Node) -> bool:
    if not isinstance(node.op, ops.InnerReduce) or node.op.reduce is not ops.Reduce.SUM:
        return False
    factors = _below_views(node.inputs[0])
    if not isinstance(factors.op, ops.Pointwise) or factors.op.fn != "mul":
        return False
    return any(value.type.space is Space.DENSE and value.type.numel > 1 for value in map(_below_views, factors.inputs))


def _below_views(node: Node) -> Node:
    while isinstance(node.op, ops.Reshape | ops.Expand | ops.Permute):
        node = node.inputs[0]
    return node


def edge_value_bytes(program: Program) -> int:
    """Bytes per edge of all the values that operators of their own would write."""
    values = [node for node in program.nodes() if node.type.space is Space.EDGE and not isinstance(node.op, _VIEWS)]
    return sum(node.type.numel * node.type.dtype.itemsize for node in values)


def sizes_of(launches: Sequence[Launch]) -> Sizes:
    """Entries of the maps that the programs were last run with, and the rows these point into."""
    entries: set[int] = set()
    targets: set[int] = set()
    for launch in launches:
        if launch.seen is None or not (launch.program.ordered or launch.program.maps):
            continue
        num_edges, num_rows, sizes = launch.seen
        entries.add(num_edges)
        targets.update(sizes)
        if launch.program.ordered:
            targets.add(num_rows)
    return Sizes(entries=frozenset(entries), targets=frozenset(targets))


# --- while they run --------------------------------------------------------------------------------------------------


class _Watched:
    """Stands where a launch has its kernel, and tells `done` about every run of it."""

    def __init__(self, launch: Launch, done: Callable[[Launch, Sequence[Tensor], list[Tensor], float], None]) -> None:
        self.launch = launch
        self.kernel = launch.kernel
        self.done = done

    def wait(self) -> None:
        if self.kernel is not None:
            self.kernel.wait()

    def __call__(
        self, tensors: Sequence[Tensor], ordering: Ordering, num_rows: int, num_edges: int, *, in_order: bool = False
    ) -> list[Tensor]:
        start = time.perf_counter()
        if self.kernel is None:
            with torch.utils._python_dispatch._disable_current_modes():  # a program counts as a program
                outputs = interpret(self.launch.program, tensors, ordering.of_sorted() if in_order else ordering)
        else:
            outputs = self.kernel(tensors, ordering, num_rows, num_edges, in_order=in_order)
        self.done(self.launch, tensors, outputs, time.perf_counter() - start)
        return outputs


@contextlib.contextmanager
def watched(
    launches: Sequence[Launch], done: Callable[[Launch, Sequence[Tensor], list[Tensor], float], None]
) -> Iterator[None]:
    """While it is open, `done(launch, tensors, outputs, seconds)` hears of every program that ran."""
    before = [launch.kernel for launch in launches]
    for launch in launches:
        launch.kernel = _Watched(launch, done)  # type: ignore[assignment]
    try:
        yield
    finally:
        for launch, kernel in zip(launches, before, strict=True):
            launch.kernel = kernel


def recorded_by(
    recorder: Recorder, captures: Mapping[int, int]
) -> Callable[[Launch, Sequence[Tensor], list[Tensor], float], None]:
    """What `watched` calls to have programs counted. captures: number of the capture by the `id` of a launch."""

    def done(launch: Launch, tensors: Sequence[Tensor], outputs: list[Tensor], seconds: float) -> None:
        seen = launch.seen
        assert seen is not None
        named = {out.name: item for out, item in zip(launch.program.outputs, outputs, strict=True)}
        recorder.program(
            launch.program.name, tensors, named, partial(launch_work, launch.program, seen, capture=captures[id(launch)])
        )

    return done


def measured_s(launches: Sequence[Launch], step: Callable[[], float], repeats: int) -> tuple[dict[int, float], float]:
    """Median seconds of every program (by `id` of its launch), and of the whole step, which says how long it took."""
    samples: dict[int, list[float]] = {}
    steps = []
    step()

    def done(launch: Launch, tensors: Sequence[Tensor], outputs: list[Tensor], seconds: float) -> None:
        samples.setdefault(id(launch), []).append(seconds)

    for _ in range(repeats):
        with watched(launches, done):
            step()
        steps.append(step())
    return {key: statistics.median(found) for key, found in samples.items()}, statistics.median(steps)


def predicted_s(launch: Launch, costs: Costs) -> float | None:
    """Seconds a program takes at best on a machine of these costs: rows read by a map as gathers of so many bytes out of so
    many rows, everything else as a stream, products as those of matrices, every thread as fast as one alone is. None where it
    never ran."""
    if launch.seen is None:
        return None
    num_edges, num_rows, sizes = launch.seen
    read, written = traffic(launch.program, num_edges, num_rows, sizes)
    streamed, gather_s = read + written, 0.0
    for item in launch.program.inputs:
        if item.index_map is None:
            continue
        row_bytes = math.prod(item.shape) * item.dtype.itemsize
        streamed -= num_edges * row_bytes
        gather_s += num_edges * costs.gather(row_bytes, max(sizes[item.index_map], 1))
    product_s = sum(
        costs.product(num_edges, *_product_sizes(node)) for node in launch.program.nodes() if _is_tile_product(node)
    )
    return (gather_s + costs.stream(streamed) + product_s) / torch.get_num_threads()
