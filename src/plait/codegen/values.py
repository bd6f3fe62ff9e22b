"""The text of a value: computed with lanes over elements (`wide`) or with lanes over the edges of a block (`narrow`).

A value is asked for by element numbers; views only change the numbers on the way down. Both forms do the same operations in
the same order on every element, so the same value has the same bits in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from plait.codegen import expr
from plait.codegen.loops import mark, roll
from plait.codegen.schedule import INLINE_REDUCTION, Schedule, num_reduced
from plait.codegen.target import power_of_two_below
from plait.codegen.views import VIEWS, ElementMaps, reduced_run
from plait.ir.ops import Cast, Cat, Const, InnerReduce, Pointwise, Reduce, Uniform
from plait.ir.program import Node, Space

Lanes = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value is read. kind: "flat" (pointer[element]), "at" and "edge" (a row of a tensor per edge), "length",
    "lanes" (pointer[element * block + k]), "edges" (pointer[k * stride + element]), "row" (the row of edge k, in a tile).
    scalar: the C++ type of the numbers there."""

    kind: str
    pointer: str
    scalar: str
    index: int = 0  # number of the map, for "at"
    stride: int = 0  # for "edges"; 0: the number of elements


class Values:
    """One C++ scope: the text of the values asked for, each once. `hoisted`: for all edges, `lines`: for one (or a block)."""

    def __init__(
        self, schedule: Schedule, places: dict[Node, Place], maps: ElementMaps, map_names: tuple[str, ...], prefix: str = "v"
    ) -> None:
        self.schedule = schedule
        self.places = places
        self.maps = maps
        self.map_names = map_names
        self.hoisted: list[str] = []
        self.lines: list[str] = []
        self.touched: dict[tuple[str, int | None], tuple[Node, int, int]] = {}  # rows read per edge, for prefetching
        self.words: set[Node] = set()  # Uniform values whose row words the block must hold
        self._memo: dict[object, str] = {}
        self._count = 0
        self._prefix = prefix

    def new(self, kind: str, text: str, *, each_edge: bool) -> str:
        name = f"{self._prefix}{self._count}"
        self._count += 1
        (self.lines if each_edge else self.hoisted).append(f"const {kind} {name} = {text};")
        return name

    def new_variable(self, kind: str, text: str, out: list[str]) -> str:
        """A variable that later lines change."""
        name = f"{self._prefix}{self._count}"
        self._count += 1
        out.append(f"{kind} {name} = {text};")
        return name

    def adopt(self, inner: Values) -> None:
        """Take note of what a scope inside this one reads."""
        for key, (node, first, last) in inner.touched.items():
            _, low, high = self.touched.get(key, (node, first, last))
            self.touched[key] = (node, min(first, low), max(last, high))
        self.words |= inner.words

    def _once(self, key: object, make: Callable[[], str]) -> str:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def is_each_edge(self, node: Node) -> bool:
        """Whether a value is another for every edge; the others are computed before the loop over the edges."""
        return node.type.space is Space.EDGE

    # --- lanes over elements -----------------------------------------------------------------------------------------

    def wide(self, node: Node, lanes: Lanes) -> str:
        """A vector of the elements `lanes` of `node`, of one edge or of the row."""
        node, lanes = self.below_views(node, lanes)
        return self._once(("wide", node, lanes), lambda: self._wide(node, lanes))

    def below_views(self, node: Node, lanes: Lanes) -> tuple[Node, Lanes]:
        """The value and elements that are read through views."""
        while node not in self.places:
            if isinstance(node.op, VIEWS):
                table = self.maps.view(node)
                lanes = tuple(table[lane] for lane in lanes)
                node = node.inputs[0]
            elif isinstance(node.op, Cat):
                parts = self.maps.cat(node)
                numbers = {parts[lane][0] for lane in lanes}
                if len(numbers) > 1:
                    break
                lanes = tuple(parts[lane][1] for lane in lanes)
                node = node.inputs[numbers.pop()]
            elif isinstance(node.op, InnerReduce) and num_reduced(node) == 1:
                entries = self.maps.reduction(node)
                lanes = tuple(entries[lane][0] for lane in lanes)
                node = node.inputs[0]
            else:
                break
        return node, lanes

    def _wide(self, node: Node, lanes: Lanes) -> str:
        kind = f"{expr.scalar_name(node.type.dtype)}x{len(lanes)}"
        each_edge = self.is_each_edge(node)
        if node in self.places:
            return self.new(kind, self._wide_read(node, lanes, kind), each_edge=each_edge)
        match node.op:
            case Const(value):
                text = f"bc<{kind}>({expr.literal(value, node.type.dtype)})"
            case Pointwise(fn):
                text = expr.pointwise(fn, node.inputs[-1].type.dtype, kind, [self.wide(value, lanes) for value in node.inputs])
            case Cast():
                text = expr.cast(node.type.dtype, node.inputs[0].type.dtype, kind, self.wide(node.inputs[0], lanes))
            case Cat():
                text = self._wide_cat(node, lanes)
            case InnerReduce():
                return self._wide_reduce(node, lanes, kind)
            case Uniform():
                text = self._wide_uniform(node, lanes, kind)
            case _:
                raise AssertionError(f"{node.op} has no wide form")
        return self.new(kind, text, each_edge=each_edge)

    def _wide_read(self, node: Node, lanes: Lanes, kind: str) -> str:
        place = self.places[node]
        if place.kind == "length":
            return f"bc<{kind}>(({expr.scalar_name(node.type.dtype)}){self.row_length()})"
        if place.kind == "lanes":
            entries = [f"{place.pointer}[{mark(lane)} * {self.schedule.block} + k]" for lane in lanes]
            return f"bc<{kind}>({entries[0]})" if len(set(lanes)) == 1 else f"({kind}){{{', '.join(entries)}}}"
        pointer = place.pointer
        if place.kind in ("at", "edge"):
            pointer = self._row_pointer(node, place, lanes)
        if place.kind == "edges":
            pointer = f"({place.pointer} + k * {place.stride or node.type.numel})"
        if place.kind == "row":
            pointer = f"({place.pointer} + (i64)row_at[k] * {node.type.numel})"
        if len(set(lanes)) == 1:
            return f"{expr.access('bc', place.scalar)}<{kind}>({pointer}[{mark(lanes[0])}])"
        if lanes == tuple(range(lanes[0], lanes[0] + len(lanes))):
            return f"{expr.access('ld', place.scalar)}<{kind}>({pointer} + {mark(lanes[0])})"
        entry = {"u8": "-(i32)({0}[{1}] != 0)", "bf16": "widened({0}[{1}])"}.get(place.scalar, "{0}[{1}]")
        return f"({kind}){{{', '.join(entry.format(pointer, mark(lane)) for lane in lanes)}}}"

    def row_length(self) -> str:
        """The number of edges of the row."""
        return "(end - begin)"

    def _row_pointer(self, node: Node, place: Place, lanes: Lanes) -> str:
        map_number = place.index if place.kind == "at" else None
        key = (place.pointer, map_number)
        first, last = min(lanes), max(lanes) + 1
        if key in self.touched:
            _, low, high = self.touched[key]
            first, last = min(first, low), max(last, high)
        self.touched[key] = (node, first, last)
        row = f"(i64){self.map_names[place.index]}[e]" if place.kind == "at" else self.edge_position()
        return self._once(
            ("pointer", key),
            lambda: self.new(f"{place.scalar}*", f"{place.pointer} + {row} * {node.type.numel}", each_edge=True),
        )

    def edge_position(self) -> str:
        """The edge's position in the user's order."""
        return self._once("position", lambda: self.new("i64", "edge_id ? (i64)edge_id[e] : e", each_edge=True))

    def _wide_cat(self, node: Node, lanes: Lanes) -> str:
        parts = self.maps.cat(node)
        numbers = sorted({parts[lane][0] for lane in lanes})
        text = ""
        for number in numbers:
            inside = [parts[lane][1] for lane in lanes if parts[lane][0] == number]
            picked = tuple(parts[lane][1] if parts[lane][0] == number else inside[0] for lane in lanes)
            vector = self.wide(node.inputs[number], picked)
            mask = ", ".join("-1" if parts[lane][0] == number else "0" for lane in lanes)
            text = f"sel((i32x{len(lanes)}){{{mask}}}, {vector}, {text})" if text else vector
        return text

    def _wide_reduce(self, node: Node, lanes: Lanes, kind: str) -> str:
        """Entries one after the other; many of them as a loop."""
        assert isinstance(node.op, InnerReduce)
        reduce, table = node.op.reduce, self.maps.reduction(node)
        out = self.lines if self.is_each_edge(node) else self.hoisted
        name = self.new_variable(kind, f"bc<{kind}>({expr.identity(reduce.value, node.type.dtype)})", out)
        entries = [tuple(table[lane][number] for lane in lanes) for number in range(num_reduced(node))]
        if len(entries) <= INLINE_REDUCTION:
            for entry in entries:
                out.append(self.step(reduce, name, node.inputs[0], entry))
            return name
        pieces = []
        for entry in entries:
            inner = self.child()
            step = inner.step(reduce, name, node.inputs[0], entry)
            pieces.append([*inner.hoisted, *inner.lines, step])
            self.adopt(inner)
        out.extend(roll(pieces, f"r{self._count}"))
        return name

    def child(self) -> Values:
        """A scope inside this one; its names go on from this one's."""
        inner = type(self)(self.schedule, self.places, self.maps, self.map_names, self._prefix)
        inner._count = self._count
        return inner

    def step(self, reduce: Reduce, name: str, node: Node, lanes: Lanes, mask: str = "") -> str:
        """`name` with one more vector of `node` reduced into it; sums of products are fused, in every context."""
        return self._step(reduce, name, node, lanes, mask, self.wide)

    def _step(self, reduce: Reduce, name: str, node: Node, lanes: Lanes, mask: str, value: Callable[[Node, Lanes], str]) -> str:
        below, inside = self.below_views(node, lanes)
        is_product = below.op == Pointwise("mul") and below not in self.places and below.type.dtype.is_floating_point
        if reduce is Reduce.SUM and is_product:
            left, right = (value(item, inside) for item in below.inputs)
            text = f"fma({left}, {right}, {name})"
        else:
            text = expr.combine(reduce.value, name, value(below, inside))
        return f"{name} = sel({mask}, {text}, {name});" if mask else f"{name} = {text};"

    def _wide_uniform(self, node: Node, lanes: Lanes, kind: str) -> str:
        self.words.add(node)
        length = len(lanes)
        if lanes == tuple(range(lanes[0], lanes[0] + length)):
            channel = f"convert<u32x{length}>(iota<{length}>()) + (u32){mark(lanes[0])}"
        else:
            channel = f"(u32x{length}){{{', '.join('(u32)' + mark(lane) for lane in lanes)}}}"
        words = f"words_{self.schedule.names[node]}[k]"
        return f"uniform<{kind}>(bc<u32x{length}>({words}), {channel}, {self.seed(node)})"

    def seed(self, node: Node) -> str:
        value, lanes = self.below_views(node.inputs[0], (0,))
        if isinstance(value.op, Const):
            return expr.literal(value.op.value, torch.int64)
        return f"{self.places[value].pointer}[{lanes[0]}]"

    # --- lanes over the edges of a block -----------------------------------------------------------------------------

    def narrow(self, node: Node, element: int) -> str:
        """A vector of element `element` of `node` for the edges of a block."""
        node, (element,) = self.below_views(node, (element,))
        return self._once(("narrow", node, element), lambda: self._narrow(node, element))

    def _narrow(self, node: Node, element: int) -> str:
        dtype, block = node.type.dtype, self.schedule.block
        kind = f"{expr.scalar_name(dtype)}x{block}"
        each_edge = self.is_each_edge(node)
        if node in self.places:
            return self.new(kind, self._narrow_read(node, element, kind), each_edge=each_edge)
        match node.op:
            case Const(value):
                text = f"bc<{kind}>({expr.literal(value, dtype)})"
            case Pointwise(fn):
                text = expr.pointwise(fn, node.inputs[-1].type.dtype, kind, [self.narrow(v, element) for v in node.inputs])
            case Cast():
                text = expr.cast(dtype, node.inputs[0].type.dtype, kind, self.narrow(node.inputs[0], element))
            case InnerReduce():
                return self._narrow_reduce(node, element, kind)
            case Uniform():
                self.words.add(node)
                words = f"ld<u32x{block}>(words_{self.schedule.names[node]})"
                text = f"uniform<{kind}>({words}, bc<u32x{block}>({element}u), {self.seed(node)})"
            case _:
                raise AssertionError(f"{node.op} has no narrow form")
        return self.new(kind, text, each_edge=each_edge)

    def _narrow_read(self, node: Node, element: int, kind: str) -> str:
        place = self.places[node]
        match place.kind:
            case "length":
                return f"bc<{kind}>(({expr.scalar_name(node.type.dtype)})(end - begin))"
            case "flat":
                return f"{expr.access('bc', place.scalar)}<{kind}>({place.pointer}[{element}])"
            case "lanes":
                return f"ld<{kind}>({place.pointer} + {element * self.schedule.block})"
            case "edges":
                return f"strided<{kind}>({place.pointer} + {element}, {node.type.numel})"
            case "at":
                index = f"at_{self.map_names[place.index]}"
            case _:
                index = "position"
        self._memo[("index", index)] = index
        if place.scalar == "f32" and node.type.numel % 4 == 0:
            four = self._once(
                ("four", node, element // 4), lambda: self._gather4(node, place.pointer, element // 4 * 4, index, kind)
            )
            return f"{four}.{'abcd'[element % 4]}"
        return f"{expr.access('gather', place.scalar)}<{kind}>({place.pointer} + {element}, {index}, {node.type.numel})"

    def _gather4(self, node: Node, pointer: str, element: int, index: str, kind: str) -> str:
        """Four neighbouring elements at once; heads come in fours."""
        return self.new("auto", f"gather4<{kind}>({pointer} + {element}, {index}, {node.type.numel})", each_edge=True)

    def indices(self) -> list[str]:
        """The index arrays the narrow values read: "at_<map>" and "position"."""
        return sorted({key[1] for key in self._memo if isinstance(key, tuple) and key[0] == "index"})

    def need_position(self) -> str:
        """The block's positions in the user's order, as an array."""
        self._memo[("index", "position")] = "position"
        return "position"

    def narrow_step(self, reduce: Reduce, name: str, node: Node, element: int, mask: str = "") -> str:
        """`name` with element `element` of every edge of the block reduced into it."""
        return self._step(reduce, name, node, (element,), mask, lambda value, lanes: self.narrow(value, lanes[0]))

    def _narrow_reduce(self, node: Node, element: int, kind: str) -> str:
        """The order of the wide form (`lane_tiles`, `fold`), with one variable for each of its lanes."""
        assert isinstance(node.op, InnerReduce)
        reduce, value = node.op.reduce, node.inputs[0]
        if not num_reduced(node):
            return self.new(kind, f"bc<{kind}>({expr.identity(reduce.value, node.type.dtype)})", each_edge=True)
        entries = self.maps.reduction(node)[element]
        partial: list[str] = []
        tiles = lane_tiles(node, self.schedule.target.lanes(node.type.dtype))
        for lane in range(len(tiles[0][0])):
            name = self.new_variable(kind, f"bc<{kind}>({expr.identity(reduce.value, node.type.dtype)})", self.lines)
            for tile, skipped in tiles:
                if lane >= skipped:
                    self.lines.append(self.narrow_step(reduce, name, value, entries[tile[lane]]))
            partial.append(name)
        for distance in (2, 1, 8, 4):
            if distance >= len(tiles[0][0]):
                continue
            for lane in [lane for lane in range(len(partial)) if not lane & distance and partial[lane]]:
                partial[lane] = self.new(
                    kind, expr.combine(reduce.value, partial[lane], partial[lane | distance]), each_edge=True
                )
                partial[lane | distance] = ""
        return partial[0]


def lane_tiles(node: Node, full: int) -> list[tuple[Lanes, int]]:
    """How an inner reduction walks its entries: tiles of entry numbers, one per lane, and how many lanes at the front of
    a tile were already taken by the one before (the last tile of a run overlaps it). Depends on the shape alone."""
    run, entries = reduced_run(node), num_reduced(node)
    lanes = power_of_two_below(max(1, min(run, full)))
    tiles: list[tuple[Lanes, int]] = []
    for start in range(0, entries, run):
        for first in range(0, run, lanes):
            skipped = max(0, first + lanes - run)
            begin = start + first - skipped
            tiles.append((tuple(range(begin, begin + lanes)), skipped))
    return tiles
