"""A scheduled program as C++ text: one function with a plain C interface, written for a reader; same program, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from plait.codegen import expr
from plait.codegen.edges import STRAIGHT, PassPrinter
from plait.codegen.loops import indent, mark, roll
from plait.codegen.schedule import Schedule, after_total, is_stored_reduction, levels_of
from plait.codegen.target import power_of_two_below
from plait.codegen.values import Lanes, Place, Values, lane_tiles
from plait.codegen.views import ElementMaps, reduced_run
from plait.ir import text
from plait.ir.ops import (
    TOTALS,
    Cat,
    InnerReduce,
    LoadAt,
    LoadDense,
    LoadEdge,
    LoadRow,
    Reduce,
    RowLength,
    SegmentReduce,
    TotalReduce,
    Uniform,
)
from plait.ir.program import Node, Program, Space

_Item = TypeVar("_Item")

STACK_BYTES = 64 << 10  # scratch of a thread beyond this is allocated


def print_cpp(program: Program, schedule: Schedule, name: str) -> str:
    """The C++ function `name` of a program. Its arguments: inputs, outputs, indptr, edge_id, maps; sizes; threads."""
    return Printer(program, schedule, name).source()


class Printer:
    def __init__(self, program: Program, schedule: Schedule, name: str) -> None:
        self.program = program
        self.schedule = schedule
        self.name = name
        self.maps = ElementMaps()
        self.map_names = tuple(f"map{number}" for number in range(len(program.maps)))
        self.tensors = [f"t{slot}" for slot in range(len(program.inputs))]
        self.outs = [f"out{number}" for number in range(len(program.outputs))]
        self.nodes = list(program.nodes())
        self.levels = levels_of(self.nodes)
        self.scratch: list[tuple[str, str, int]] = []  # arrays of a thread: scalar type, name, length
        self.buffers: list[str] = []  # growing buffers of a thread
        self.total_tiles: dict[Node, list[Lanes]] = {}
        self.prefetched: set[tuple[str, int | None]] = set()
        self.copies: list[tuple[Node, Place]] = []  # outputs that are another value's bits
        self.places: dict[Node, Place] = {}
        self._place_leaves()
        self._place_coarse()

    # --- where values are --------------------------------------------------------------------------------------------

    def _place_leaves(self) -> None:
        for node in self.nodes:
            scalar = expr.tensor_name(node.type.dtype)
            match node.op:
                case LoadRow(slot):
                    self.places[node] = Place("flat", f"{self.tensors[slot]}_row", scalar)
                case LoadDense(slot):
                    self.places[node] = Place("flat", self.tensors[slot], scalar)
                case LoadAt(slot, index):
                    self.places[node] = Place("at", self.tensors[slot], scalar, index)
                case LoadEdge(slot):
                    self.places[node] = Place("edge", self.tensors[slot], scalar)
                case RowLength():
                    self.places[node] = Place("length", "", scalar)

    def _place_coarse(self) -> None:
        stored = {*self.schedule.row_values, *self.schedule.dense_values}
        self.dense_arrays: list[tuple[str, str, int]] = []
        for number, output in enumerate(self.program.outputs):
            node, out = output.value, self.outs[number]
            if node.type.space is Space.EDGE:
                continue
            pointer = f"{out}_row" if node.type.space is Space.ROW else out
            place = Place("flat", pointer, expr.tensor_name(node.type.dtype))
            if node in stored and node not in self.places:
                self.places[node] = place
            else:
                self.copies.append((node, place))
        for node in (*self.schedule.row_values, *self.schedule.dense_values):
            if node in self.places:
                continue
            is_row = node.type.space is Space.ROW
            array = f"{'row' if is_row else 'dense'}_{self.schedule.names[node]}"
            scalar = expr.scalar_name(node.type.dtype)
            self.places[node] = Place("flat", array, scalar)
            (self.scratch if is_row else self.dense_arrays).append((scalar, array, node.type.numel))

    def values(self, prefix: str = "v") -> Values:
        """A new C++ scope; scopes that share their lines differ in the prefix of their names."""
        return Values(self.schedule, self.places, self.maps, self.map_names, prefix)

    def lanes_of(self, node: Node) -> int:
        """Lanes of a wide value: as many as its longest dtype on the way to what is stored has."""
        lanes, seen, stack = self.schedule.target.vector_bytes // 4, {node}, [node]
        while stack:
            value = stack.pop()
            lanes = min(lanes, self.schedule.target.lanes(value.type.dtype))
            if value is node or value not in self.places:
                inputs = [] if isinstance(value.op, Uniform) else value.inputs
                stack.extend(item for item in inputs if item not in seen)
                seen.update(inputs)
        return lanes

    def tiles(self, node: Node, value: Node) -> list[Lanes]:
        """The vectors of a wide value: over the whole row if every operand is then read in runs, else along the last axis."""
        count, full = node.type.numel, self.lanes_of(value)
        if count == 0:
            return []
        flat = _tiles(0, count, full)
        size = node.type.shape[-1] if node.type.shape else 1
        if size in (1, count) or all(self._is_regular(value, lanes) for lanes in flat):
            return flat
        return [lanes for start in range(0, count, size) for lanes in _tiles(start, size, full)]

    def _is_regular(self, node: Node, lanes: Lanes) -> bool:
        node, lanes = self.values().below_views(node, lanes)
        if node in self.places:
            same = len(set(lanes)) == 1
            if self.places[node].kind in ("lanes", "length"):
                return same or self.places[node].kind == "length"
            return same or lanes == tuple(range(lanes[0], lanes[0] + len(lanes)))
        if isinstance(node.op, InnerReduce):
            table = self.maps.reduction(node)
            return self._is_regular(node.inputs[0], tuple(table[lane][0] for lane in lanes))
        if isinstance(node.op, Uniform):
            return True
        if isinstance(node.op, Cat):
            return False  # a vector across its parts: their elements are numbered anew
        return all(self._is_regular(item, lanes) for item in node.inputs)

    def edge_outputs(self, node: Node) -> list[tuple[str, str]]:
        """The EDGE outputs that are `node`: pointer and scalar type in memory."""
        pairs = zip(self.program.outputs, self.outs, strict=True)
        return [(out, expr.tensor_name(node.type.dtype)) for output, out in pairs if output.value is node]

    # --- the function ------------------------------------------------------------------------------------------------

    def source(self) -> str:
        rows = self._row_body() if self.program.ordered else self._edge_body()
        dense = [node for node in self.schedule.dense_values if not isinstance(node.op, TOTALS)]
        after = after_total(self.nodes)
        totals = [node for node in self.nodes if isinstance(node.op, TOTALS)]
        lines = [
            *self._header(),
            f'extern "C" void {self.name}(void* const* args, i64 num_rows, i64 num_edges, i32 threads) {{',
        ]
        body = [*self._arguments()]
        body += [f"alignas(64) {scalar} {array}[{max(count, 1)}];" for scalar, array, count in self.dense_arrays]
        body += self._store_all([node for node in dense if node not in after])
        body += self._tasks(totals)
        body += ["#pragma omp parallel num_threads(threads)", "{", *indent(self._scratch_lines()), *indent(rows), "}"]
        body += [line for node in totals for line in self._merge(node)]
        body += self._store_all([node for node in dense if node in after])
        body += self._copy_lines(Space.DENSE)
        return "\n".join([*lines, *indent(body), "}", ""])

    def _header(self) -> list[str]:
        lines = [f"edge program {self.program.name}", *text.to_text(self.program).splitlines(), "schedule"]
        lines += ["  " + line for line in str(self.schedule).splitlines()]
        return [("// " + line).rstrip().rstrip("\\") for line in lines]

    def _arguments(self) -> list[str]:
        used = {node.op.slot for node in self.nodes if isinstance(node.op, LoadRow | LoadAt | LoadEdge | LoadDense)}
        lines = []
        for slot, (item, tensor) in enumerate(zip(self.program.inputs, self.tensors, strict=True)):
            if slot in used:
                kind, name = expr.tensor_name(item.dtype), identifier(item.name)
                lines.append(f"const {kind}* __restrict const {tensor} = (const {kind}*)args[{slot}];  // {name}")
        count = len(self.tensors)
        for number, (output, out) in enumerate(zip(self.program.outputs, self.outs, strict=True)):
            kind = expr.tensor_name(output.value.type.dtype)
            lines.append(f"{kind}* __restrict const {out} = ({kind}*)args[{count + number}];  // {identifier(output.name)}")
        count += len(self.outs)
        if self.program.ordered:
            lines.append(f"const i64* __restrict const indptr = (const i64*)args[{count}];")
        if self.program.needs_edge_position():
            lines.append(f"const position_t* __restrict const edge_id = (const position_t*)args[{count + 1}];")
        read = {node.op.map for node in self.nodes if isinstance(node.op, LoadAt)}
        for number, (name, index_map) in enumerate(zip(self.program.maps, self.map_names, strict=True)):
            if number in read:
                argument = f"(const index_t*)args[{count + 2 + number}]"
                lines.append(f"const index_t* __restrict const {index_map} = {argument};  // {identifier(name)}")
        return lines

    def _tasks(self, totals: list[Node]) -> list[str]:
        work = "num_rows + num_edges" if self.program.ordered else "num_edges"
        most = "128" if totals else "1 << 20"  # every task has partial totals of its own
        lines = [f"const i64 tasks = clamp(({work}) / 4096, 1, {most});"]
        for node in totals:
            kind, size = self._total_scalar(node), self._total_size(node)
            lines.append(f"Memory memory_{self.total(node)};")
            lines.append(f"{kind}* const all_{self.total(node)} = memory_{self.total(node)}.of<{kind}>(tasks * {size});")
        return lines

    def total(self, node: Node) -> str:
        return f"total_{self.schedule.names[node]}"

    def _total_scalar(self, node: Node) -> str:
        return expr.scalar_name(node.type.dtype)

    def _total_size(self, node: Node) -> int:
        return sum(len(lanes) for lanes in self.total_tiles[node]) * (self.schedule.block if self._is_narrow_total(node) else 1)

    def _is_narrow_total(self, node: Node) -> bool:
        return node.inputs[0] in self.schedule.narrow

    def _merge(self, node: Node) -> list[str]:
        """The tasks' partial totals summed in the order of the tasks."""
        size, name, place = self._total_size(node), f"all_{self.total(node)}", self.places[node]
        lines = ["for (i64 task = 1; task < tasks; ++task)"]
        lines += [f"  for (i64 i = 0; i < {size}; ++i) {name}[i] += {name}[task * {size} + i];"]
        scalar, block = self._total_scalar(node), self.schedule.block
        if self._is_narrow_total(node):
            for element in range(node.type.numel):
                lines.append(f"{place.pointer}[{element}] = fold<Sum>(ld<{scalar}x{block}>({name} + {element * block}));")
            return lines
        pieces = []
        for start, lanes in _starts(self.total_tiles[node]):
            vector = f"ld<{scalar}x{len(lanes)}>({name} + {mark(start)})"
            pieces.append([f"st({place.pointer} + {mark(lanes[0])}, {vector});"])
        return lines + roll(pieces, "g")

    def _scratch_lines(self) -> list[str]:
        sizes = {"f32": 4, "i32": 4, "u32": 4, "f64": 8, "i64": 8}
        on_stack = sum(sizes[scalar] * count for scalar, _, count in self.scratch) <= STACK_BYTES
        lines = [f"Memory {name};" for name in self.buffers]
        for scalar, name, count in self.scratch:
            if on_stack:
                lines.append(f"alignas(64) {scalar} {name}[{max(count, 1)}];")
                continue
            lines += [f"Memory memory_{name};", f"{scalar}* const {name} = memory_{name}.of<{scalar}>({count});"]
        return lines

    def _task_start(self) -> list[str]:
        lines = []
        for node in self.total_tiles:
            name, kind, size = self.total(node), self._total_scalar(node), self._total_size(node)
            lines.append(f"{kind}* const {name} = all_{name} + task * {size};")
            lines.append(f"for (i64 i = 0; i < {size}; ++i) {name}[i] = 0;")
        return lines

    def _each_task(self, lines: list[str]) -> list[str]:
        """The lines for every task, whose totals start at 0."""
        return [
            "#pragma omp for schedule(dynamic, 1)",
            "for (i64 task = 0; task < tasks; ++task) {",
            *indent([*self._task_start(), *lines]),
            "}",
        ]

    def _row_body(self) -> list[str]:
        row = ["const i64 begin = indptr[row], end = indptr[row + 1];"]
        for node in self.nodes:
            if isinstance(node.op, LoadRow):
                tensor, item = self.tensors[node.op.slot], self.program.inputs[node.op.slot]
                kind = expr.tensor_name(item.dtype)
                row.append(f"const {kind}* const {tensor}_row = {tensor} + row * {node.type.numel};")
        for output, out in zip(self.program.outputs, self.outs, strict=True):
            if output.value.type.space is Space.ROW:
                kind = expr.tensor_name(output.value.type.dtype)
                row.append(f"{kind}* const {out}_row = {out} + row * {output.value.type.numel};")
        last = max(self.levels.values(), default=0)
        passes = {item.level: item for item in self.schedule.passes}
        for number in range(last + 1):
            row += self._store_all([node for node in self.schedule.row_values if self.levels[node] == number])
            if number in passes:
                row += ["{", *indent(PassPrinter(self, passes[number], number).lines()), "}"]
        for node in self.nodes:
            if isinstance(node.op, TotalReduce) and node.inputs[0].type.space is Space.ROW:
                row += self._add_row(node)
        row += self._copy_lines(Space.ROW)
        start = "first_row(indptr, num_rows, num_edges, {}, tasks)"
        return self._each_task(
            [
                f"const i64 row_end = {start.format('task + 1')};",
                f"for (i64 row = {start.format('task')}; row < row_end; ++row) {{",
                *indent(row),
                "}",
            ]
        )

    def _edge_body(self) -> list[str]:
        lines = ["const i64 begin = (i64)((__int128)num_edges * task / tasks);"]
        lines += ["const i64 end = (i64)((__int128)num_edges * (task + 1) / tasks);"]
        for item in self.schedule.passes:
            lines += ["{", *indent(PassPrinter(self, item, 0).lines()), "}"]
        return self._each_task(lines)

    # --- values of a row, and values of everything -------------------------------------------------------------------

    def _store_all(self, nodes: Sequence[Node]) -> list[str]:
        lines: list[str] = []
        for node in nodes:
            if isinstance(node.op, (SegmentReduce, *TOTALS)):
                continue
            place = self.places.pop(node)  # so that it is computed, not read
            lines += self._store(node, place)
            self.places[node] = place
        return lines

    def _copy_lines(self, space: Space) -> list[str]:
        lines: list[str] = []
        for node, place in self.copies:
            if node.type.space is space:
                lines += self._store(node, place)
        return lines

    def _store(self, node: Node, place: Place) -> list[str]:
        if node not in self.places and is_stored_reduction(node, self.schedule.narrow) and reduced_run(node) > 1:
            return self._store_folds(node, place)
        pieces = []
        tiles = self.tiles(node, node)
        for group in _groups(tiles, 4 if len(tiles) > STRAIGHT else max(len(tiles), 1)):
            values = self.values()
            stores = [_store_vector(place, mark(lanes[0]), values.wide(node, lanes)) for lanes in group]
            pieces.append([*values.hoisted, *stores])
        return roll(pieces, "g")

    def _store_folds(self, node: Node, place: Place) -> list[str]:
        pieces = []
        for group in _groups(list(range(node.type.numel)), 4):
            values = self.values()
            stores = self.folds(values, values.hoisted, node, group, lambda element: f"{place.pointer}[{mark(element)}]")
            pieces.append([*values.hoisted, *stores])
        return roll(pieces, "g")

    def folds(
        self, values: Values, out: list[str], node: Node, elements: Sequence[int], target: Callable[[int], str]
    ) -> list[str]:
        """Inner reductions of up to four elements: one vector each, folded together. Gives the lines that store them."""
        assert isinstance(node.op, InnerReduce)
        reduce, table = node.op.reduce, self.maps.reduction(node)
        tiles = lane_tiles(node, self.schedule.target.lanes(node.type.dtype))
        lanes = len(tiles[0][0])
        kind = f"{expr.scalar_name(node.type.dtype)}x{lanes}"
        names = []
        for element in elements:
            name = values.new_variable(kind, f"bc<{kind}>({expr.identity(reduce.value, node.type.dtype)})", out)
            names.append(name)
            steps = [(tuple(table[element][entry] for entry in tile), skipped) for tile, skipped in tiles]
            if len(steps) <= STRAIGHT:
                for entry, skipped in steps:
                    line = values.step(reduce, name, node.inputs[0], entry, _skip_mask(lanes, skipped))
                    out.append(line)
                continue
            pieces = []
            for entry, skipped in steps:
                inner = values.child()
                line = inner.step(reduce, name, node.inputs[0], entry, _skip_mask(lanes, skipped))
                pieces.append([*inner.hoisted, *inner.lines, line])
                values.adopt(inner)
            out.extend(roll(pieces, "s"))
        fold = expr.REDUCTIONS[reduce.value]
        if len(elements) == 4:
            result = values.new_variable("auto", f"fold4<{fold}>({', '.join(names)})", out)
            return [f"{target(element)} = {result}[{lane}];" for lane, element in enumerate(elements)]
        return [f"{target(element)} = fold<{fold}>({name});" for element, name in zip(elements, names, strict=True)]

    def _add_row(self, node: Node) -> list[str]:
        """This row's part of a sum over all rows."""
        value = node.inputs[0]
        tiles = self.total_tiles[node] = self.tiles(node, value)
        scalar, pieces = self._total_scalar(node), []
        for group in _groups(_starts(tiles), 4):
            values = self.values()
            stores = []
            for start, lanes in group:
                address = f"{self.total(node)} + {mark(start)}"
                name = values.new_variable(f"{scalar}x{len(lanes)}", f"ld<{scalar}x{len(lanes)}>({address})", values.hoisted)
                step = values.step(Reduce.SUM, name, value, lanes)
                stores += [step, f"st({address}, {name});"]
            pieces.append([*values.hoisted, *stores])
        return roll(pieces, "g")


def _tiles(start: int, size: int, full: int) -> list[Lanes]:
    """Vectors over `size` elements; the last one overlaps the one before instead of leaving a rest."""
    length = power_of_two_below(min(size, full))
    return [
        tuple(range(start + at, start + at + length)) for at in (min(first, size - length) for first in range(0, size, length))
    ]


def _starts(tiles: Sequence[Lanes]) -> list[tuple[int, Lanes]]:
    """The tiles with where each one's accumulator lies, one after the other."""
    found, start = [], 0
    for lanes in tiles:
        found.append((start, lanes))
        start += len(lanes)
    return found


def _groups(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _skip_mask(lanes: int, skipped: int) -> str:
    return f"(i32x{lanes}){{{', '.join(['0'] * skipped + ['-1'] * (lanes - skipped))}}}" if skipped else ""


def _store_vector(place: Place, offset: str, vector: str) -> str:
    return f"{expr.access('st', place.scalar)}({place.pointer} + {offset}, {vector});"


def identifier(name: str) -> str:
    """`name` as part of a C++ name: letters, digits and underscores that are not doubled.

    >>> identifier("conv1.lin[0]")
    'conv1_lin_0'
    """
    words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name).split()
    return "_".join(words) or "value"
