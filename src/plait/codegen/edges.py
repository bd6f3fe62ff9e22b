"""The text of one pass: a loop over the edges of a row, its blocks, stages and accumulators."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from plait.codegen import expr
from plait.codegen.loops import indent, mark, plain, roll, tile_groups
from plait.codegen.schedule import Pass, Sink, num_reduced
from plait.codegen.values import Lanes, Place, Values
from plait.codegen.views import reduced_run
from plait.ir.ops import Reduce, SegmentReduce, TotalReduce
from plait.ir.program import Node

if TYPE_CHECKING:
    from plait.codegen.cpp import Printer

GROUP = 8  # vectors accumulated together when a value has more of them than there are registers
STRAIGHT = 24  # vectors written out as straight code
PREFETCH_LINES = 64  # cache lines on their way at a time
FOLDED = 4  # inner reductions folded together

Group = Callable[[Sequence["Tile"]], list[str]]
Tile = tuple[Sink, int, int, Lanes]  # sink, number of the tile, where its accumulator lies, elements


class PassPrinter:
    """Prints one pass. `start`, `hoisted`, `block` and `finish` are the lines before the edges, of a block, and after."""

    def __init__(self, printer: Printer, item: Pass, number: int) -> None:
        self.printer = printer
        self.schedule = printer.schedule
        self.item = item
        self.number = number
        self.start: list[str] = []
        self.block: list[str] = []
        self.finish: list[str] = []
        self.words: set[Node] = set()
        self.uses_ahead = False
        self.lines_ahead = 0
        self.before = set(printer.prefetched)  # rows that an earlier pass has brought into the cache
        self.narrow = printer.values("n")
        self.stored: list[Node] = []  # places that end with this pass
        self.kept_pointers: list[str] = []

    def lines(self) -> list[str]:
        self._place_kept()
        if self.item.is_streaming:
            lines = self._stream()
        else:
            for number, sinks in enumerate(self.item.stages):
                if sinks and number % 2 == 0:
                    self._narrow_stage(sinks)
                elif sinks:
                    self._wide_stage(sinks)
            lines = [*self.start, *self.narrow.hoisted, *self._blocks(), *self.finish]
        for node in self.stored:
            del self.printer.places[node]
        if self.uses_ahead:
            lines = [f"const i64 ahead = smaller({self._distance()}, num_edges - end);", *lines]
        return lines

    def _distance(self) -> int:
        return min(max(PREFETCH_LINES // max(self.lines_ahead, 1), 2), 16)

    # --- places ------------------------------------------------------------------------------------------------------

    def _place_kept(self) -> None:
        """Values read from or written to the row buffers: one pointer for the row, one for the block."""
        for node in self.item.reads:
            self._place_lanes(node, self._block_pointer(node))
        for sink in self.item.sinks():
            if sink.kind == "keep":
                name = self._buffer(sink.node)
                if f"memory_{name}" not in self.printer.buffers:
                    self.printer.buffers.append(f"memory_{name}")
                self._block_pointer(sink.node)

    def _buffer(self, node: Node) -> str:
        return f"kept_{self.schedule.names[node]}"

    def _block_pointer(self, node: Node) -> str:
        name, scalar = self._buffer(node), expr.scalar_name(node.type.dtype)
        size = node.type.numel
        length = f"(end - begin + {self.schedule.block - 1}) / {self.schedule.block} * {self.schedule.block * size}"
        self.start.append(f"{scalar}* const all_{name} = memory_{name}.of<{scalar}>({length});")
        self.kept_pointers.append(f"{scalar}* const {name} = all_{name} + (e0 - begin) * {size};")
        return name

    def _place_lanes(self, node: Node, pointer: str, kind: str = "lanes") -> None:
        self.printer.places[node] = Place(kind, pointer, expr.scalar_name(node.type.dtype))
        self.stored.append(node)

    def _array_place(self, sink: Sink) -> Place:
        """Where a value read later in the block is stored: lanes of the block beside each other if narrow."""
        node, scalar = sink.node, expr.scalar_name(sink.node.type.dtype)
        if sink.kind == "keep":
            return Place("lanes", self._buffer(node), scalar)
        name = f"s{self.number}_{sink.name}"
        self.printer.scratch.append((scalar, name, node.type.numel * self.schedule.block))
        return Place("lanes" if node in self.schedule.narrow else "edges", name, scalar)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _blocks(self) -> list[str]:
        size, block = self.schedule.block, []
        block.append(f"const i32 n = (i32)smaller({size}, end - e0);")
        block += self.kept_pointers
        self.words |= self.narrow.words
        if self.words:
            self.narrow.need_position()
        for index in self.narrow.indices():
            if index == "position":
                block.append(f"alignas(64) i64 position[{size}];")
                block.append(f"load_position<{size}>(position, edge_id, e0, n);")
            else:
                block.append(f"alignas(64) index_t {index}[{size}];")
                block.append(f"load_index<{size}>({index}, {index.removeprefix('at_')} + e0, n);")
        for node in sorted(self.words, key=lambda item: self.schedule.names[item]):
            words = f"words_{self.schedule.names[node]}"
            block.append(f"alignas(64) u32 {words}[{size}];")
            block.append(f"random_row<{size}>({words}, position, {self.narrow.seed(node)});")
        if any(not sink.wide and sink.kind in ("segment", "total") for sink in self.item.sinks()):
            block.append(f"const i32x{size} live = iota<{size}>() < n;")
        block += self.block
        return [f"for (i64 e0 = begin; e0 < end; e0 += {size}) {{", *indent(block), "}"]

    # --- narrow stages -----------------------------------------------------------------------------------------------

    def _narrow_stage(self, sinks: Sequence[Sink]) -> None:
        values, size = self.narrow, self.schedule.block
        done: list[tuple[Sink, Place]] = []
        for sink in [item for item in sinks if item.kind in ("array", "keep")]:
            place = self._array_place(sink)
            for element in range(sink.node.type.numel):
                vector = values.narrow(sink.value, element)
                values.lines.append(f"st({place.pointer} + {element * size}, {vector});")
            done.append((sink, place))
        for sink in sinks:
            if sink.kind in ("segment", "total"):
                self._narrow_accumulate(sink)
            elif sink.kind == "output":
                self._narrow_output(sink)
        for sink, place in done:
            self.printer.places[sink.node] = place
            self.stored.append(sink.node)
        self.block += values.lines
        values.lines = []

    def _narrow_accumulate(self, sink: Sink) -> None:
        reduce, size = _reduce(sink), self.schedule.block
        dtype = sink.node.type.dtype
        kind = f"{expr.scalar_name(dtype)}x{size}"
        if sink.kind == "total":
            self.printer.total_tiles[sink.node] = [(element,) for element in range(sink.node.type.numel)]
        for element in range(sink.node.type.numel):
            name = f"a_{sink.name}_{element}"
            self.narrow.lines.append(self.narrow.narrow_step(reduce, name, sink.value, element, "live"))
            if sink.kind == "total":
                address = f"{self.printer.total(sink.node)} + {element * size}"
                self.start.append(f"{kind} {name} = ld<{kind}>({address});")
                self.finish.append(f"st({address}, {name});")
                continue
            assert isinstance(sink.node.op, SegmentReduce)
            self.start.append(f"{kind} {name} = bc<{kind}>({expr.identity(reduce.value, dtype)});")
            folded = f"fold<{expr.REDUCTIONS[reduce.value]}>({name})"
            init = expr.literal(sink.node.op.init, dtype)
            if reduce in (Reduce.SUM, Reduce.PROD) and init != expr.identity(reduce.value, dtype):
                folded = expr.combine(reduce.value, init, folded)
            elif reduce in (Reduce.MAX, Reduce.MIN) and sink.node.op.include_init:
                one = f"{expr.scalar_name(dtype)}x1"
                folded = expr.combine(reduce.value, f"bc<{one}>({folded})", f"bc<{one}>({init})") + "[0]"
            elif reduce in (Reduce.MAX, Reduce.MIN):
                folded = f"begin < end ? {folded} : {init}"
            self.finish.append(f"{self.printer.places[sink.node].pointer}[{element}] = {folded};")

    def _narrow_output(self, sink: Sink) -> None:
        numel = sink.node.type.numel
        position = self.narrow.need_position()
        for out, scalar in self.printer.edge_outputs(sink.node):
            for element in range(numel):
                vector = self.narrow.narrow(sink.value, element)
                self.narrow.lines.append(
                    f"{expr.access('scatter', scalar)}({out} + {element}, {position}, {numel}, {vector}, n);"
                )

    # --- wide stages -------------------------------------------------------------------------------------------------

    def _wide_stage(self, sinks: Sequence[Sink]) -> None:
        tiles = {sink: self._sink_tiles(sink) for sink in sinks}
        places = {sink: self._array_place(sink) for sink in sinks if sink.kind in ("array", "keep")}
        weight = sum(self._weight(sink, tiles[sink]) for sink in sinks)
        accumulators = sum(len(tiles[sink]) for sink in sinks if sink.kind in ("segment", "total"))
        if weight <= STRAIGHT and accumulators <= self.schedule.target.registers // 2:
            values = self.printer.values(f"w{sinks[0].stage}_")
            body = [line for sink in sinks for line in self._straight(values, sink, tiles[sink], places.get(sink))]
            self.start += [plain(line) for line in values.hoisted]
            self.block += [plain(line) for line in self._each_edge(values, body)]
        else:
            self._rolled_stage(sinks, tiles, places)
        for sink, place in places.items():
            self.printer.places[sink.node] = place
            self.stored.append(sink.node)

    def _sink_tiles(self, sink: Sink) -> list[Lanes]:
        if self._is_fold(sink):
            return []
        return self.printer.tiles(sink.node, sink.value)

    def _is_fold(self, sink: Sink) -> bool:
        return sink.kind in ("array", "keep") and reduced_run(sink.node) > 1

    def _weight(self, sink: Sink, tiles: Sequence[Lanes]) -> int:
        if self._is_fold(sink):
            return -(-sink.node.inputs[0].type.numel // self.schedule.target.lanes(sink.node.type.dtype))
        return len(tiles) * (num_reduced(sink.node) if sink.kind in ("array", "keep") else 1)

    def _straight(self, values: Values, sink: Sink, tiles: Sequence[Lanes], place: Place | None) -> list[str]:
        """All of a sink's vectors as straight code for one edge, its accumulators in registers for the whole row."""
        if self._is_fold(sink):
            assert place is not None
            return self._fold_lines(values, sink, place, range(sink.node.type.numel))
        if sink.kind in ("segment", "total"):
            for tile in self._accumulator_tiles(sink, tiles):
                name = f"a_{sink.name}_{tile[1]}"
                self.start += [plain(line) for line in self._load_accumulator(tile, name)]
                self.finish += [plain(line) for line in self._finish_accumulator(tile, name)]
                values.lines.append(values.step(_reduce(sink), name, sink.value, tile[3]))
            return []
        return [line for lanes in tiles for line in self._store_lines(values, sink, lanes, place)]

    def _fold_lines(self, values: Values, sink: Sink, place: Place, elements: Sequence[int]) -> list[str]:
        size, numel = self.schedule.block, sink.node.type.numel

        def target(element: int) -> str:
            if place.kind == "lanes":
                return f"{place.pointer}[{mark(element)} * {size} + k]"
            return f"{place.pointer}[k * {numel} + {mark(element)}]"

        for first in range(0, len(elements), FOLDED):
            group = elements[first : first + FOLDED]
            values.lines += self.printer.folds(values, values.lines, sink.node, group, target)
        return []

    def _store_lines(self, values: Values, sink: Sink, lanes: Lanes, place: Place | None) -> list[str]:
        vector = values.wide(sink.value, lanes)
        numel = sink.node.type.numel
        if place is None:
            row = f"{values.edge_position()} * {numel} + {mark(lanes[0])}"
            outs = self.printer.edge_outputs(sink.node)
            return [f"{expr.access('st', scalar)}({out} + {row}, {vector});" for out, scalar in outs]
        if place.kind == "edges":
            return [f"st({place.pointer} + k * {numel} + {mark(lanes[0])}, {vector});"]
        size = self.schedule.block
        return [f"{place.pointer}[{mark(lane)} * {size} + k] = {vector}[{at}];" for at, lane in enumerate(lanes)]

    def _accumulator_tiles(self, sink: Sink, tiles: Sequence[Lanes]) -> list[Tile]:
        found: list[Tile] = []
        start = 0
        for number, lanes in enumerate(tiles):
            found.append((sink, number, start, lanes))
            start += len(lanes)
        if sink.kind == "total":
            self.printer.total_tiles[sink.node] = list(tiles)
        return found

    def _load_accumulator(self, tile: Tile, name: str) -> list[str]:
        sink, _, start, lanes = tile
        kind = f"{expr.scalar_name(sink.node.type.dtype)}x{len(lanes)}"
        if sink.kind == "total":
            return [f"{kind} {name} = ld<{kind}>({self.printer.total(sink.node)} + {mark(start)});"]
        return [f"{kind} {name} = bc<{kind}>({_first(sink)});"]

    def _finish_accumulator(self, tile: Tile, name: str) -> list[str]:
        sink, _, start, lanes = tile
        if sink.kind == "total":
            return [f"st({self.printer.total(sink.node)} + {mark(start)}, {name});"]
        op = sink.node.op
        assert isinstance(op, SegmentReduce)
        pointer, result = self.printer.places[sink.node].pointer, name
        if op.reduce in (Reduce.MAX, Reduce.MIN) and not op.include_init:
            kind = f"{expr.scalar_name(sink.node.type.dtype)}x{len(lanes)}"
            result = f"begin < end ? {name} : bc<{kind}>({expr.literal(op.init, sink.node.type.dtype)})"
        return [f"st({pointer} + {mark(lanes[0])}, {result});"]

    # --- more vectors than registers -----------------------------------------------------------------------------------

    def _rolled_stage(self, sinks: Sequence[Sink], tiles: dict[Sink, list[Lanes]], places: dict[Sink, Place]) -> None:
        """Groups of vectors one after the other, each over all edges of the block; accumulators lie in an array between."""
        for sink in sinks:
            if self._is_fold(sink):
                self._rolled_folds(sink, places[sink])
            elif sink.kind not in ("segment", "total"):
                self._rolled_stores(sink, tiles[sink], places.get(sink))
        for together in self._together(sinks, tiles):
            for sink in together:
                self._array_accumulator(sink, tiles[sink])
            self.block += roll(self._groups_of(together, tiles, self._array_group), "g")

    def _rolled_folds(self, sink: Sink, place: Place) -> None:
        pieces = []
        for first in range(0, sink.node.type.numel, FOLDED):
            values = self.printer.values()
            elements = range(first, min(first + FOLDED, sink.node.type.numel))
            body = self._fold_lines(values, sink, place, elements)
            pieces.append([*values.hoisted, *self._each_edge(values, body, again=True)])
        self.block += roll(pieces, "g")

    def _rolled_stores(self, sink: Sink, tiles: Sequence[Lanes], place: Place | None) -> None:
        pieces = []
        for first in range(0, len(tiles), GROUP):
            values = self.printer.values()
            body = [line for lanes in tiles[first : first + GROUP] for line in self._store_lines(values, sink, lanes, place)]
            pieces.append([*values.hoisted, *self._each_edge(values, body, again=True)])
        self.block += roll(pieces, "g")

    def _together(self, sinks: Sequence[Sink], tiles: dict[Sink, list[Lanes]]) -> list[list[Sink]]:
        """Accumulators over the same vectors go together, so that what they read is read once."""
        found: dict[tuple[Lanes, ...], list[Sink]] = {}
        for sink in sinks:
            if sink.kind in ("segment", "total"):
                found.setdefault(tuple(tiles[sink]), []).append(sink)
        return list(found.values())

    def _groups_of(self, sinks: Sequence[Sink], tiles: dict[Sink, list[Lanes]], group: Group) -> list[list[str]]:
        each = [self._accumulator_tiles(sink, tiles[sink]) for sink in sinks]
        count, size = len(each[0]), max(1, GROUP // len(sinks))
        shape = sinks[0].node.type.shape
        run = count // max(1, sinks[0].node.type.numel // shape[-1]) if shape and shape[-1] else count
        groups = tile_groups(count, max(run, 1), size)
        return [group([items[number] for items in each for number in numbers]) for numbers in groups]

    def _array_accumulator(self, sink: Sink, tiles: Sequence[Lanes]) -> None:
        if sink.kind == "total":
            return
        scalar, length = expr.scalar_name(sink.node.type.dtype), sum(map(len, tiles))
        name = f"sum_{sink.name}"
        self.printer.scratch.append((scalar, name, length))
        self.start.append(f"for (i64 i = 0; i < {length}; ++i) {name}[i] = {_first(sink)};")
        pieces = []
        for tile in self._accumulator_tiles(sink, tiles):
            kind = f"{scalar}x{len(tile[3])}"
            load = f"const {kind} a = ld<{kind}>({name} + {mark(tile[2])});"
            pieces.append([load, *self._finish_accumulator(tile, "a")])
        self.finish += roll(pieces, "g")

    def _array_group(self, group: Sequence[Tile]) -> list[str]:
        values = self.printer.values()
        before, after = [], []
        for number, tile in enumerate(group):
            sink, _, start, lanes = tile
            kind = f"{expr.scalar_name(sink.node.type.dtype)}x{len(lanes)}"
            array = self.printer.total(sink.node) if sink.kind == "total" else f"sum_{sink.name}"
            before.append(f"{kind} a{number} = ld<{kind}>({array} + {mark(start)});")
            after.append(f"st({array} + {mark(start)}, a{number});")
            values.lines.append(values.step(_reduce(sink), f"a{number}", sink.value, lanes))
        return [*values.hoisted, *before, *self._each_edge(values, [], again=True), *after]

    # --- a row as one block --------------------------------------------------------------------------------------------

    def _stream(self) -> list[str]:
        sinks = list(self.item.sinks())
        tiles = {sink: self._sink_tiles(sink) for sink in sinks}
        if sum(map(len, tiles.values())) <= self.schedule.target.registers // 2:
            values = self.printer.values()
            for sink in sinks:
                self._straight(values, sink, tiles[sink], None)
            loop = [plain(line) for line in self._each_edge(values, [], stream=True)]
            return [*self.start, *(plain(line) for line in values.hoisted), *loop, *self.finish]
        lines: list[str] = []
        for together in self._together(sinks, tiles):
            lines += roll(self._groups_of(together, tiles, self._stream_group), "g")
        return lines

    def _stream_group(self, group: Sequence[Tile]) -> list[str]:
        values = self.printer.values()
        before, after = [], []
        for number, tile in enumerate(group):
            before += self._load_accumulator(tile, f"a{number}")
            after += self._finish_accumulator(tile, f"a{number}")
            values.lines.append(values.step(_reduce(tile[0]), f"a{number}", tile[0].value, tile[3]))
        return [*values.hoisted, *before, *self._each_edge(values, [], stream=True, again=True), *after]

    # --- edges of a block ------------------------------------------------------------------------------------------------

    def _each_edge(self, values: Values, body: Sequence[str], *, stream: bool = False, again: bool = False) -> list[str]:
        """The loop over the edges, with the rows some edges ahead on their way."""
        self.words |= values.words
        lines = [*self._prefetch(values, again), *values.lines, *body]
        if stream:
            return ["for (i64 e = begin; e < end; ++e) {", *indent(lines), "}"]
        if any(_uses(line, "e") for line in lines):
            lines.insert(0, "const i64 e = e0 + k;")
        return ["for (i32 k = 0; k < n; ++k) {", *indent(lines), "}"]

    def _prefetch(self, values: Values, again: bool) -> list[str]:
        lines: list[str] = []
        for number, (key, (node, first, last)) in enumerate(values.touched.items()):
            pointer, index = key
            size = node.type.dtype.itemsize
            if (last - first) * size < 64 or key in (self.before if again else self.printer.prefetched):
                continue
            if index is None:
                continue  # in the user's order: mostly one after the other
            self.printer.prefetched.add(key)
            self.uses_ahead = True
            count = -(-(last - first) * size // 64)
            self.lines_ahead = self.lines_ahead + count if not again else count
            name = f"next{number}"
            row = f"(i64){self.printer.map_names[index]}[e + ahead] * {node.type.numel}"
            lines.append(f"const char* const {name} = (const char*)({pointer} + {row} + {mark(first)});")
            lines += [f"__builtin_prefetch({name} + {64 * line});" for line in range(count)]
        return lines


def _reduce(sink: Sink) -> Reduce:
    op = sink.node.op
    if isinstance(op, TotalReduce):
        return Reduce.SUM
    assert isinstance(op, SegmentReduce)
    return op.reduce


def _first(sink: Sink) -> str:
    """What an accumulator over a row starts from."""
    op, dtype = sink.node.op, sink.node.type.dtype
    assert isinstance(op, SegmentReduce)
    if op.reduce in (Reduce.SUM, Reduce.PROD) or op.include_init:
        return expr.literal(op.init, dtype)
    return expr.identity(op.reduce.value, dtype)


def _uses(line: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", line) is not None
