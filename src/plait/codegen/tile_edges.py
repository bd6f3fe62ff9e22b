"""The text of one pass of a program that runs by tiles: the loop over the tiles, and in it a loop over edges per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plait.codegen import expr
from plait.codegen.edges import FOLDED, GROUP, PassPrinter
from plait.codegen.loops import indent, mark, roll
from plait.codegen.schedule import Pass, Sink, is_stored_reduction
from plait.codegen.target import power_of_two_below
from plait.codegen.tiles import stride_of
from plait.codegen.values import Lanes, Place, Values
from plait.codegen.views import reduced_run
from plait.ir.ops import Reduce, SegmentReduce, TotalProduct
from plait.ir.program import Node, Space

if TYPE_CHECKING:
    from plait.codegen.tile_cpp import TilePrinter


class TileValues(Values):
    """Values in a loop over the edges of a tile: the row of edge k is `row_at[k]`, counted from the chunk's first."""

    def is_each_edge(self, node: Node) -> bool:
        return node.type.space is not Space.DENSE

    def row_length(self) -> str:
        return "(indptr_rows[row_at[k] + 1] - indptr_rows[row_at[k]])"


class TilePassPrinter(PassPrinter):
    """Prints one pass over the tiles of a chunk."""

    def __init__(self, printer: TilePrinter, item: Pass, number: int) -> None:
        super().__init__(printer, item, number)
        self.tiles = printer

    def lines(self) -> list[str]:
        self.tiles.prefetched = set()
        for node in self.item.reads:
            self._place(node)
        body: list[str] = []
        for stage in self.item.stages:
            body += self._stage(stage)
        loop = f"for (i64 e0 = first; e0 < last; e0 += {self.schedule.tile}) {{"
        return [*self._starts(), loop, *indent(self._tile(body)), "}"]

    def _starts(self) -> list[str]:
        """Every row's accumulators before its first edge."""
        if not self.tiles.program.ordered:
            return []
        lines = []
        for sink in self.item.sinks():
            if sink.kind == "segment":
                pointer, numel = self.tiles.places[sink.node].pointer, sink.node.type.numel
                start = self.tiles.segment_start(sink.node)
                lines.append(f"const {expr.scalar_name(sink.node.type.dtype)} start_{sink.name} = {start};")
                lines.append(f"for (i64 i = 0; i < {numel}; ++i) {pointer}[row * {numel} + i] = start_{sink.name};")
        if not lines:
            return ["i64 row_now = 0;"]
        begin = "const i64 begin = indptr_rows[row], end = indptr_rows[row + 1];"
        return ["for (i64 row = 0; row < row1 - row0; ++row) {", *indent([begin, *lines]), "}", "i64 row_now = 0;"]

    def _tile(self, body: list[str]) -> list[str]:
        size = self.schedule.tile
        lines = [f"const i32 n = (i32)smaller({size}, last - e0);"]
        if self.tiles.program.ordered:
            lines += [f"i32 row_at[{size}];", "row_now = rows_of_tile(row_at, indptr_rows, row_now, e0, n);"]
        if self.uses_ahead:
            lines.append(f"const i64 ahead = smaller({self._distance()}, num_edges - e0 - n);")
        if self.words:
            lines += [f"alignas(64) i64 position[{size}];", f"tile_position<{size}>(position, edge_id, e0, n);"]
        for node in sorted(self.words, key=lambda item: self.schedule.names[item]):
            words, seed = f"words_{self.schedule.names[node]}", self.tiles.values().seed(node)
            lines += [f"alignas(64) u32 {words}[{size}];", f"random_row<{size}>({words}, position, {seed});"]
        for node in self.tiles.kept:
            name, scalar = self.schedule.names[node], expr.scalar_name(node.type.dtype)
            if node in self.tiles.places:
                stride = stride_of(node, self.schedule.target)
                lines.append(f"{scalar}* const tile_{name} = kept_{name} + (e0 - first) * {stride};")
        return lines + body

    # --- steps ---------------------------------------------------------------------------------------------------------

    def _stage(self, sinks: Sequence[Sink]) -> list[str]:
        sink = sinks[0]
        if sink.kind == "segment":
            return self._segments(sinks)
        if sink.kind == "output":
            return self._stores(sink, None)
        if isinstance(sink.node.op, TotalProduct):
            return [self._total_product(sink.node)]
        if sink.kind == "total":
            return self._total(sink)
        if sink.kind == "product":
            return [self._product(sink.node)]
        if is_stored_reduction(sink.node, frozenset()) and reduced_run(sink.node) > 1:
            lines = self._folds(sink.node)
        else:
            lines = self._stores(sink, self._array(sink.node))
        self._place(sink.node)
        return lines

    def _array(self, node: Node) -> Place:
        name, scalar = self.schedule.names[node], expr.scalar_name(node.type.dtype)
        return Place("edges", f"tile_{name}", scalar, stride=stride_of(node, self.schedule.target))

    def _place(self, node: Node) -> Place:
        """The array of a value, which later steps read: of the tile, or of the chunk if a later pass reads it."""
        place = self.tiles.places[node] = self._array(node)
        name = self.schedule.names[node]
        if node in self.item.kept or node in self.item.reads:
            self.tiles.kept[node] = name
        else:
            room = 64  # blocks of a transposed product read over the end
            array = (place.scalar, place.pointer, self.schedule.tile * place.stride + room)
            if array not in self.tiles.scratch:  # every pass stores it again
                self.tiles.scratch.append(array)
        return place

    def _stores(self, sink: Sink, place: Place | None) -> list[str]:
        tiles = self.tiles.tiles(sink.node, sink.value)
        pieces = []
        for first in range(0, len(tiles), GROUP):
            values = self.tiles.values()
            body = [line for lanes in tiles[first : first + GROUP] for line in self._store_at(values, sink, lanes, place)]
            pieces.append([*values.hoisted, *self._each_edge(values, body)])
        return roll(pieces, "g")

    def _store_at(self, values: Values, sink: Sink, lanes: Lanes, place: Place | None) -> list[str]:
        if place is None:
            return self._store_lines(values, sink, lanes, None)
        return [f"st({place.pointer} + k * {place.stride} + {mark(lanes[0])}, {values.wide(sink.value, lanes)});"]

    def _folds(self, node: Node) -> list[str]:
        place, pieces = self._array(node), []
        for first in range(0, node.type.numel, FOLDED):
            values = self.tiles.values()
            elements = range(first, min(first + FOLDED, node.type.numel))
            body = self.tiles.folds(
                values,
                values.lines,
                node,
                elements,
                lambda element: f"{place.pointer}[k * {place.stride} + {mark(element)}]",
            )
            pieces.append([*values.hoisted, *self._each_edge(values, body)])
        return roll(pieces, "g")

    def _product(self, node: Node) -> str:
        value, weight = node.inputs
        source, place = self.tiles.places[value], self._place(node)
        sizes = ", ".join([self.tiles.vector(node), *map(str, weight.type.shape)])
        packed = self.tiles.packed(weight)
        return f"multiply<{sizes}>({source.pointer}, {source.stride}, {packed}, {place.pointer}, {place.stride}, n);"

    def _total_product(self, node: Node) -> str:
        a, b = (self.tiles.places[value] for value in node.inputs)
        self.tiles.total_tiles[node] = []
        sizes = ", ".join([self.tiles.vector(node), *map(str, node.type.shape)])
        total = self.tiles.total(node)
        return f"add_outer<{sizes}>({a.pointer}, {a.stride}, {b.pointer}, {b.stride}, {total}, {b.stride}, n);"

    def _total(self, sink: Sink) -> list[str]:
        tiles = self.tiles.tiles(sink.node, sink.value)
        pieces, numbered = [], self._accumulator_tiles(sink, tiles)
        for first in range(0, len(numbered), GROUP):
            values = self.tiles.values()
            before, after = [], []
            for number, tile in enumerate(numbered[first : first + GROUP]):
                before += self._load_accumulator(tile, f"a{number}")
                after += self._finish_accumulator(tile, f"a{number}")
                values.lines.append(values.step(Reduce.SUM, f"a{number}", sink.value, tile[3]))
            pieces.append([*values.hoisted, *before, *self._each_edge(values, []), *after])
        return roll(pieces, "g")

    def _segments(self, sinks: Sequence[Sink]) -> list[str]:
        """Reductions over rows: one row's edges after the other, its accumulators in registers as long as the tile has any."""
        lines: list[str] = []
        for together in self._together(sinks, {sink: self.tiles.tiles(sink.node, sink.value) for sink in sinks}):
            tiles = _disjoint(self.tiles.tiles(together[0].node, together[0].value))
            size = max(1, GROUP // len(together))
            lines += roll([self._row_runs(together, tiles[at : at + size]) for at in range(0, len(tiles), size)], "g")
        return lines

    def _row_runs(self, sinks: Sequence[Sink], tiles: Sequence[Lanes]) -> list[str]:
        values = self.tiles.values()
        before, after = [], []
        for number, (sink, lanes) in enumerate((sink, lanes) for sink in sinks for lanes in tiles):
            op, numel = sink.node.op, sink.node.type.numel
            assert isinstance(op, SegmentReduce)
            kind = f"{expr.scalar_name(sink.node.type.dtype)}x{len(lanes)}"
            address = f"{self.tiles.places[sink.node].pointer} + row * {numel} + {mark(lanes[0])}"
            before.append(f"{kind} a{number} = ld<{kind}>({address});")
            after.append(f"st({address}, a{number});")
            values.lines.append(values.step(op.reduce, f"a{number}", sink.value, lanes))
        loop = self._each_edge(values, [])
        loop[0] = "for (; k < stop; ++k) {"
        run = ["const i64 row = row_at[k];", "const i32 stop = (i32)smaller(n, indptr_rows[row + 1] - e0);"]
        return [*values.hoisted, "for (i32 k = 0; k < n;) {", *indent([*run, *before, *loop, *after]), "}"]


def _disjoint(tiles: Sequence[Lanes]) -> list[Lanes]:
    """The same elements in vectors that don't overlap: what one has added to an accumulator in memory, no other may read."""
    found: list[Lanes] = []
    done: set[int] = set()
    for lanes in tiles:
        rest = tuple(lane for lane in lanes if lane not in done)
        done.update(rest)
        while rest:
            length = power_of_two_below(len(rest))
            found.append(rest[:length])
            rest = rest[length:]
    return found
