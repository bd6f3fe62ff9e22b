"""How a program with products runs: tile by tile of edges, the values that products read and write in arrays of the tile.

A tile is a number of edges in the ordering's order, whatever rows they belong to. Its values are computed step by step, each
step a loop over the tile's edges or a blocked product. Where a row's edges are wanted by several passes, these run over a chunk
of rows before the next chunk begins, and what an earlier pass stored is kept for the chunk.
"""

from __future__ import annotations

import dataclasses

from plait.codegen.schedule import Pass, Schedule, Scheduler, Sink, is_stored_reduction
from plait.codegen.target import Target
from plait.ir.ops import (
    TOTALS,
    LoadAt,
    LoadDense,
    LoadEdge,
    Permute,
    Pointwise,
    Product,
    SegmentReduce,
    TotalProduct,
)
from plait.ir.program import Node, Program, Space

TILE_BYTES = 256 << 10  # of a tile's arrays: they and the weights shall stay in the L2 cache
TILE_EDGES = 48  # a tile is a multiple of it: every block of rows a product is made of divides it
MAX_TILE = 192

# computed once and stored where several steps read them; everything else costs less than it takes to read it again
_COSTLY = frozenset({"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow", "atan2"})


def has_products(program: Program) -> bool:
    """Whether a program runs by tiles."""
    return any(isinstance(node.op, Product | TotalProduct) for node in program.nodes())


def schedule_tiles(program: Program, target: Target) -> Schedule:
    """Decide how a program with products (after `factor`) runs."""
    return _TileScheduler(program, target).result()


def stride_of(node: Node, target: Target) -> int:
    """How many numbers lie between two edges of a value in a tile: whole vectors."""
    lanes = target.lanes(node.type.dtype)
    return -(-node.type.numel // lanes) * lanes


class _TileScheduler(Scheduler):
    """Passes have a stage per step: "array" stores a value for the tile, "product" a product, the others as in the row form."""

    def __init__(self, program: Program, target: Target) -> None:
        super().__init__(program, target)
        self.narrow = frozenset()
        self.shared: set[Node] = set()  # costly values that are stored, as several steps read them
        self.tile = 0

    def result(self) -> Schedule:
        return dataclasses.replace(super().result(), tile=self.tile)

    def passes(self) -> tuple[Pass, ...]:
        walks = self._walks()
        while (found := self._computed_twice(walks)) is not None:
            self.shared.add(found)
            walks = self._walks()
        passes = tuple(walk.result() for walk in walks)
        self.tile = self._tile_edges(passes)
        return passes

    def _walks(self) -> list[_Walk]:
        sinks: dict[int, list[tuple[str, Node]]] = {}
        for node in self.nodes:
            level = max((self.levels[value] for value in node.inputs), default=0)
            if isinstance(node.op, SegmentReduce) and node.type.numel:
                sinks.setdefault(level, []).append(("segment", node))
            on_edges = isinstance(node.op, TotalProduct) or any(value.type.space is Space.EDGE for value in node.inputs)
            if isinstance(node.op, TOTALS) and on_edges:
                sinks.setdefault(level, []).append(("total", node))
        for value in dict.fromkeys(output.value for output in self.program.outputs):
            if value.type.space is Space.EDGE and value.type.numel:
                sinks.setdefault(self.levels[value], []).append(("output", value))
        walks: list[_Walk] = []
        for level in sorted(sinks):
            walk = _Walk(self, level, walks)
            for kind, node in sinks[level]:
                walk.sink(kind, node)
            walks.append(walk)
        return walks

    def _computed_twice(self, walks: list[_Walk]) -> Node | None:
        """The last costly value that more than one step computes."""
        counts: dict[Node, int] = {}
        for walk in walks:
            for stage in walk.stages:
                for node in walk.computed_in(stage):
                    counts[node] = counts.get(node, 0) + 1
        for node in reversed(self.nodes):
            if counts.get(node, 0) > 1 and isinstance(node.op, Pointwise) and node.op.fn in _COSTLY:
                return node
        return None

    def _tile_edges(self, passes: tuple[Pass, ...]) -> int:
        arrays = [{sink.node for sink in item.sinks() if sink.kind in ("array", "product")} for item in passes]
        sizes = [sum(stride_of(node, self.target) * node.type.dtype.itemsize for node in nodes) for nodes in arrays]
        fitting = TILE_BYTES // max(*sizes, 1) if sizes else MAX_TILE
        return max(TILE_EDGES, min(fitting, MAX_TILE) // TILE_EDGES * TILE_EDGES)

    def reasons(self, passes: tuple[Pass, ...], block: int) -> tuple[str, ...]:
        lines = [f"tiles of {self.tile} edges, tasks of whole rows; the same for any number of threads"]
        for number, item in enumerate(passes):
            lines.append(f"pass {number}")
            lines += ["  " + ", ".join(f"{sink.kind} {sink.name}" for sink in stage) for stage in item.stages]
            if item.reads:
                lines.append("  kept from an earlier pass, not computed again: " + ", ".join(self.names[n] for n in item.reads))
        return tuple(lines)


class _Walk:
    """The steps of one pass, found by walking down from its sinks."""

    def __init__(self, scheduler: _TileScheduler, level: int, before: list[_Walk]) -> None:
        self.scheduler = scheduler
        self.level = level
        self.before = before
        self.stages: list[list[Sink]] = []
        self.stored: set[Node] = set()
        self.kept: set[Node] = set()
        self.reads: list[Node] = []
        self._seen: set[Node] = set()

    def sink(self, kind: str, node: Node) -> None:
        if isinstance(node.op, TotalProduct):
            for value in node.inputs:
                self._store(value)
            self._add("total", node, node)
            return
        value = node if kind == "output" else node.inputs[0]
        self._visit(value)
        last = self.stages[-1][-1] if self.stages else None
        # reductions side by side read what they share once
        if kind == "segment" and last is not None and last.kind == "segment" and last.node.type.shape == node.type.shape:
            self.stages[-1].append(Sink(kind, node, value, 1, self.scheduler.names[node]))
        else:
            self._add(kind, node, value)

    def computed_in(self, stage: list[Sink]) -> set[Node]:
        """The edge values a step computes on the way to its own."""
        if stage[0].kind == "product" or isinstance(stage[0].node.op, TotalProduct):
            return set()
        roots = [sink.value for sink in stage]
        found: set[Node] = set()
        stack = [root for root in roots if root not in self.stored or stage[0].kind == "array"]
        while stack:
            node = stack.pop()
            if node in found or node.type.space is not Space.EDGE:
                continue
            found.add(node)
            stack.extend(value for value in node.inputs if value not in self.stored)
        return found

    def result(self) -> Pass:
        stages = tuple(
            tuple(dataclasses.replace(sink, stage=number) for sink in stage) for number, stage in enumerate(self.stages)
        )
        return Pass(self.level, stages, tuple(self.reads), frozenset(self.kept))

    def _add(self, kind: str, node: Node, value: Node) -> None:
        self.stages.append([Sink(kind, node, value, 1, self.scheduler.names[node])])
        if kind in ("array", "product"):
            self.stored.add(node)

    def _store(self, value: Node) -> None:
        self._visit(value)
        if value not in self.stored:
            self._add("array", value, value)

    def _visit(self, node: Node) -> None:
        """Steps for everything below `node` that is stored."""
        if node in self._seen:
            return
        self._seen.add(node)
        if node.type.space is not Space.EDGE:
            self.scheduler.demand(node)
            return
        if isinstance(node.op, LoadAt | LoadEdge) or self._is_kept(node):
            return
        if isinstance(node.op, Product):
            self._store(node.inputs[0])
            self._need_weight(node.inputs[1])
            self._add("product", node, node)
            return
        for value in node.inputs:
            self._visit(value)
        if is_stored_reduction(node, frozenset()) or node in self.scheduler.shared:
            self._add("array", node, node)

    def _need_weight(self, weight: Node) -> None:
        """A weight is packed from where it lies; one that is computed, or part of another, is stored first."""
        lies = weight.inputs[0] if isinstance(weight.op, Permute) else weight
        if not isinstance(lies.op, LoadDense):
            self.scheduler.stored_coarse.add(lies)
            self.scheduler.demand_dense(lies)

    def _is_kept(self, node: Node) -> bool:
        """Whether an earlier pass has stored `node`."""
        for walk in self.before:
            if node in walk.stored and node not in walk.reads:
                walk.kept.add(node)
                self.reads.append(node)
                self.stored.add(node)
                return True
        return False
