"""How a program's loops run: passes over a row's edges, stages of a pass, and where every value that is stored lives.

The words: a pass is one loop over the edges of a row, in blocks of as many edges as a vector has lanes. Within a block,
*narrow* stages (lanes are edges; values of a few elements) and *wide* stages (lanes are elements of one edge's row) alternate
as the values need each other. A *sink* is a value that is stored: an accumulator of a row, an output, an array of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plait.codegen.target import Target, lane_bytes
from plait.codegen.views import VIEWS, reduced_run
from plait.errors import UnsupportedError
from plait.ir.ops import (
    TOTALS,
    Cat,
    Const,
    InnerReduce,
    LoadAt,
    LoadDense,
    LoadEdge,
    LoadRow,
    Pointwise,
    RowLength,
    SegmentReduce,
    TotalReduce,
    Uniform,
)
from plait.ir.program import Node, Program, Space, topological

NARROW_ELEMENTS = 8  # more vectors than this per value would leave the registers
INLINE_REDUCTION = 32  # entries of an inner reduction that are written out as straight code
COSTLY = frozenset(
    {"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"}
    | {"pow", "atan2", "sqrt", "rsqrt", "div", "reciprocal"}
)


@dataclass(frozen=True)
class Sink:
    """kind: "segment" (accumulator of a row), "total" (of everything), "output" (an EDGE output), "array" (read later in the
    block), "keep" (read in a later pass), "product". `value` is what is computed, `node` what the stored result is."""

    kind: str
    node: Node
    value: Node
    stage: int
    name: str

    @property
    def wide(self) -> bool:
        return self.stage % 2 == 1


@dataclass(frozen=True)
class Pass:
    """One loop over the edges of a row. `stages[s]`: even s narrow, odd s wide. `reads`: values kept by earlier passes.

    Of a program that runs by tiles: one loop over the tiles, a stage per step; `kept`: values that later passes read."""

    level: int
    stages: tuple[tuple[Sink, ...], ...]
    reads: tuple[Node, ...]
    kept: frozenset[Node] = frozenset()

    def sinks(self) -> Iterator[Sink]:
        for stage in self.stages:
            yield from stage

    @property
    def is_streaming(self) -> bool:
        """Only row accumulators, all wide: no block arrays, so the whole row is one block. Draws need arrays of their own, and
        what an earlier pass kept lies in blocks."""
        if self.reads or not all(sink.wide and sink.kind in ("segment", "total") and sink.stage == 1 for sink in self.sinks()):
            return False
        return not any(isinstance(node.op, Uniform) for node in topological([sink.value for sink in self.sinks()]))


@dataclass(frozen=True)
class Schedule:
    """The decisions about one program, and why."""

    target: Target
    block: int
    passes: tuple[Pass, ...]
    row_values: tuple[Node, ...]  # ROW values that are stored, inputs first
    dense_values: tuple[Node, ...]  # DENSE values that are stored, inputs first
    narrow: frozenset[Node]
    names: dict[Node, str]
    reasons: tuple[str, ...]
    tile: int = 0  # edges of a tile; 0: the program runs row by row

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def schedule(program: Program, target: Target) -> Schedule:
    """Decide how `program` (after `factor`) runs."""
    return Scheduler(program, target).result()


class Scheduler:
    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.nodes = list(program.nodes())
        self.levels = levels_of(self.nodes)
        self.narrow = frozenset(_narrow_values(self.nodes))
        self.stored_coarse: set[Node] = set()
        self.names = _names(program, self.nodes)

    def result(self) -> Schedule:
        after = after_total(self.nodes)
        for node in self.nodes:
            if node in after and node.type.space is not Space.DENSE:
                raise UnsupportedError(f"{self.program.name}: a value of every edge or row reads a sum over all of them")
            if isinstance(node.op, (SegmentReduce, *TOTALS)):
                self.stored_coarse.add(node)
            if node.type.space is not Space.EDGE and is_stored_reduction(node, self.narrow):
                self.stored_coarse.add(node)
        passes = self.passes()
        for node in self.nodes:
            if isinstance(node.op, TotalReduce) and node.inputs[0].type.space is Space.ROW:
                self.demand(node.inputs[0])
        for output in self.program.outputs:
            if output.value.type.space is not Space.EDGE:
                self.demand(output.value)
                self.demand_dense(output.value)
        for node in list(self.stored_coarse):
            if node.type.space is Space.ROW and not isinstance(node.op, SegmentReduce):
                self.demand_dense(node)
        row = tuple(node for node in self.nodes if node in self.stored_coarse and node.type.space is Space.ROW)
        dense = tuple(node for node in self.nodes if node in self.stored_coarse and node.type.space is Space.DENSE)
        size = max((lane_bytes(node.type.dtype) for node in self.nodes if node.type.space is Space.EDGE), default=4)
        block = self.target.vector_bytes // size
        return Schedule(self.target, block, passes, row, dense, self.narrow, self.names, self.reasons(passes, block))

    def passes(self) -> tuple[Pass, ...]:
        sinks: dict[int, list[tuple[str, Node, Node]]] = {}
        for node in self.nodes:
            value = node.inputs[0] if node.inputs else node
            if isinstance(node.op, SegmentReduce):
                sinks.setdefault(self.levels[value], []).append(("segment", node, value))
            if isinstance(node.op, TotalReduce) and value.type.space is Space.EDGE:
                sinks.setdefault(self.levels[value], []).append(("total", node, value))
        for value in dict.fromkeys(output.value for output in self.program.outputs):
            if value.type.space is Space.EDGE:
                sinks.setdefault(self.levels[value], []).append(("output", value, value))
        walks: list[_PassWalk] = []
        for number in sorted(sinks):
            walk = _PassWalk(self, number, walks)
            for kind, node, value in sinks[number]:
                if node.type.numel or kind == "total":
                    walk.sink(kind, node, value)
            walks.append(walk)
        return tuple(walk.result() for walk in walks)

    def demand(self, node: Node) -> None:
        """Edges read `node`: below its views, what is neither read from memory nor a number must be stored first."""
        for value in below_views(node):
            if not isinstance(value.op, LoadRow | LoadDense | Const | RowLength):
                self.stored_coarse.add(value)
                if value.type.space is Space.ROW:
                    self.demand_dense(value)

    def demand_dense(self, node: Node) -> None:
        for value in topological([node]):
            for item in value.inputs:
                if value.type.space is Space.ROW and item.type.space is Space.DENSE:
                    self.demand(item)

    def reasons(self, passes: tuple[Pass, ...], block: int) -> tuple[str, ...]:
        what = (
            "rows in parallel, tasks of about 4096 edges and rows" if self.program.ordered else "edges in parallel, 4096 a task"
        )
        lines = [f"{what}, the same tasks for any number of threads"]
        for number, item in enumerate(passes):
            kind = "one stream over the row" if item.is_streaming else f"blocks of {block} edges"
            lines.append(f"pass {number}: {kind}")
            for stage, sinks in enumerate(item.stages):
                if sinks:
                    mode = "wide, lanes are elements" if stage % 2 else "narrow, lanes are edges"
                    lines.append(f"  {mode}: " + ", ".join(f"{sink.kind} {sink.name}" for sink in sinks))
            if item.reads:
                lines.append("  kept from an earlier pass, not computed again: " + ", ".join(self.names[n] for n in item.reads))
        return tuple(lines)


class _PassWalk:
    """Finds the stages of one pass by walking down from its sinks."""

    def __init__(self, scheduler: Scheduler, number: int, before: list[_PassWalk]) -> None:
        self.scheduler = scheduler
        self.number = number
        self.before = before
        self.narrow_stages: dict[Node, int] = {}
        self.wide_stages: dict[Node, int] = {}
        self.sinks: list[Sink] = []
        self.stored: dict[Node, int] = {}  # stage of the values in block arrays
        self.keeps: set[Node] = set()
        self.reads: list[Node] = []

    def sink(self, kind: str, node: Node, value: Node) -> None:
        stage = self.narrow_stage(value) if value in self.scheduler.narrow else self.wide_stage(value)
        self.sinks.append(Sink(kind, node, value, stage, self.scheduler.names[node]))

    def narrow_stage(self, node: Node) -> int:
        """The first narrow stage that can compute `node` with lanes over edges."""
        if node not in self.narrow_stages:
            self.narrow_stages[node] = self._narrow_stage(node)
        return self.narrow_stages[node]

    def _narrow_stage(self, node: Node) -> int:
        if node.type.space is not Space.EDGE:
            self.scheduler.demand(node)
            return 0
        if self._is_kept(node):
            return 0
        if is_stored_reduction(node, self.scheduler.narrow):
            return self._store_reduction(node) + 1
        if isinstance(node.op, Uniform):
            self.scheduler.demand(node.inputs[0])
            return 0
        return max((self.narrow_stage(value) for value in node.inputs), default=0)

    def wide_stage(self, node: Node) -> int:
        """The first wide stage that can compute `node` with lanes over its elements."""
        if node not in self.wide_stages:
            self.wide_stages[node] = self._wide_stage(node)
        return self.wide_stages[node]

    def _wide_stage(self, node: Node) -> int:
        if node.type.space is not Space.EDGE:
            self.scheduler.demand(node)
            return 1
        if isinstance(node.op, LoadAt | LoadEdge):
            return 1
        if isinstance(node.op, (*VIEWS, Cat)):
            return max(self.wide_stage(value) for value in node.inputs)
        if is_stored_reduction(node, self.scheduler.narrow):
            return 1 if self._is_kept(node) else self._store_reduction(node) + 2
        if node in self.scheduler.narrow:
            if self._is_kept(node):
                return 1
            stage = self.narrow_stage(node)
            self.stored.setdefault(node, stage)
            return stage + 1
        if isinstance(node.op, Uniform):
            self.scheduler.demand(node.inputs[0])
            return 1
        return max((self.wide_stage(value) for value in node.inputs), default=1)

    def _store_reduction(self, node: Node) -> int:
        return self.stored.setdefault(node, self.wide_stage(node.inputs[0]))

    def _is_kept(self, node: Node) -> bool:
        """Whether an earlier pass has computed `node` in narrow form; then it keeps it in the row buffer."""
        if node in self.reads:
            return True
        if node not in self.scheduler.narrow or isinstance(node.op, (*VIEWS, Cat)):
            return False
        for walk in self.before:
            if node in walk.narrow_stages and node not in walk.reads:
                walk.keeps.add(node)
                self.reads.append(node)
                return True
        return False

    def result(self) -> Pass:
        names = self.scheduler.names
        sinks = list(self.sinks)
        for node in self.scheduler.nodes:
            if node in self.keeps:
                stage = self.stored.get(node, self.narrow_stages[node])
                sinks.append(Sink("keep", node, node, stage, names[node]))
            elif node in self.stored:
                sinks.append(Sink("array", node, node, self.stored[node], names[node]))
        last = max((sink.stage for sink in sinks), default=-1)
        stages = tuple(tuple(sink for sink in sinks if sink.stage == stage) for stage in range(last + 1))
        return Pass(self.number, stages, tuple(self.reads))


def levels_of(nodes: list[Node]) -> dict[Node, int]:
    """`level` of all values, given inputs before users; one walk, where `level` would make one for every value."""
    levels: dict[Node, int] = {}
    for node in nodes:
        below = max((levels[value] for value in node.inputs), default=0)
        levels[node] = below + isinstance(node.op, SegmentReduce)
    return levels


def below_views(node: Node) -> Iterator[Node]:
    """The values that a chain of views and joins reads."""
    stack = [node]
    while stack:
        value = stack.pop()
        if isinstance(value.op, (*VIEWS, Cat)):
            stack.extend(value.inputs)
        else:
            yield value


def num_reduced(node: Node) -> int:
    """How many entries of its input each element of an `InnerReduce` reads."""
    return node.inputs[0].type.numel // node.type.numel if node.type.numel else 0


def is_stored_reduction(node: Node, narrow: frozenset[Node]) -> bool:
    """Whether an inner reduction is computed in a stage of its own, lanes over what it reads, and stored."""
    if not isinstance(node.op, InnerReduce) or num_reduced(node) <= 1:
        return False
    entries, run = num_reduced(node), reduced_run(node)
    if node.type.space is not Space.EDGE:
        return run > 1 or entries > INLINE_REDUCTION
    if node.inputs[0] in narrow:
        return False
    return run > 1 or node in narrow or entries > INLINE_REDUCTION


def _narrow_values(nodes: list[Node]) -> Iterator[Node]:
    """EDGE values computed with lanes over edges: single numbers, and small values near costly functions.

    A small value that is only gathered, scaled and summed is cheaper as one short vector per edge.
    """
    small = [node for node in nodes if node.type.space is Space.EDGE and 0 < node.type.numel <= NARROW_ELEMENTS]
    users: dict[Node, list[Node]] = {node: [] for node in small}
    for node in small:
        for value in node.inputs:
            if value in users:
                users[value].append(node)
    levels = levels_of(nodes)
    stack = [node for node in small if node.type.numel == 1 or _is_costly(node) or levels[node] > 0]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.type.numel > 1:
            stack.extend(value for value in (*node.inputs, *users[node]) if value in users)
    return (node for node in small if node in seen)


def _is_costly(node: Node) -> bool:
    if isinstance(node.op, Pointwise):
        return node.op.fn in COSTLY
    return isinstance(node.op, Uniform | InnerReduce)


def after_total(nodes: list[Node]) -> set[Node]:
    """The values that depend on a sum over everything."""
    found: set[Node] = set()
    for node in nodes:
        if isinstance(node.op, TOTALS) or any(value in found for value in node.inputs):
            found.add(node)
    return found


def _names(program: Program, nodes: list[Node]) -> dict[Node, str]:
    """A name for every value: the output or input it is, else its operator and number. They depend on what the program does
    alone, not on what its tensors are called: captures of one model for other sizes then share their kernels."""
    names: dict[Node, str] = {}
    for number, node in enumerate(nodes):
        op = node.op
        if isinstance(op, LoadEdge | LoadRow | LoadAt | LoadDense):
            names[node] = f"t{op.slot}"
            continue
        kind = op.fn if isinstance(op, Pointwise) else type(op).__name__.lower()
        names[node] = f"{kind}{number}"
    for number, output in enumerate(program.outputs):
        if not isinstance(output.value.op, LoadEdge | LoadRow | LoadAt | LoadDense):
            names[output.value] = f"out{number}"
    used: set[str] = set()
    for number, node in enumerate(nodes):
        if names[node] in used:
            names[node] += f"_{number}"
        used.add(names[node])
    return names
