"""A program that runs by tiles as C++ text: its chunks of rows, its weights, its totals. `tile_edges` prints the passes."""

from __future__ import annotations

from dataclasses import replace

from plait.codegen import expr
from plait.codegen.cpp import Printer
from plait.codegen.loops import indent
from plait.codegen.schedule import Schedule
from plait.codegen.tile_edges import TilePassPrinter, TileValues
from plait.codegen.tiles import stride_of
from plait.codegen.values import Place, Values
from plait.ir.ops import LoadRow, Permute, Product, SegmentReduce, TotalProduct, TotalReduce
from plait.ir.program import Node, Program, Space

CHUNK = 2048  # edges and rows that all passes run over before the next: what is kept for them stays in the cache
TOTAL_NUMBERS = 1 << 22  # of the partial products of all tasks together
BLOCK_ROWS = 16  # the most rows of a block: a total has room for them behind its last row


def print_tiles(program: Program, schedule: Schedule, name: str) -> str:
    """As `print_cpp`, for a program that runs by tiles."""
    return TilePrinter(program, schedule, name).source()


class TilePrinter(Printer):
    """Row values have two places: `..._row` where the loop is over rows, and `..._rows`, which starts at the chunk's first
    row, where the loop is over edges."""

    def __init__(self, program: Program, schedule: Schedule, name: str) -> None:
        super().__init__(program, schedule, name)
        self.in_tile = False
        self.uses_rows: set[str] = set()
        self.row_buffers: list[tuple[str, str, int]] = []
        self._place_row_values()
        self.kept: dict[Node, str] = {}
        self._is_first = True

    def _place_row_values(self) -> None:
        """Row values that are no outputs: a buffer for the chunk."""
        arrays = {name: (scalar, count) for scalar, name, count in self.scratch}
        for node in self.schedule.row_values:
            place = self.places[node]
            if place.pointer in arrays:
                scalar, count = arrays[place.pointer]
                self.row_buffers.append((scalar, place.pointer, count))
                self.places[node] = replace(place, pointer=f"{place.pointer}_row")
        self.scratch = []

    def values(self, prefix: str = "v") -> Values:
        if not self.in_tile:
            return super().values(prefix)
        return TileValues(self.schedule, self.places, self.maps, self.map_names, prefix)

    def edge_places(self) -> dict[Node, Place]:
        """Where values are read while the loop is over edges."""
        return {
            node: replace(place, kind="row", pointer=f"{place.pointer}s")
            if node.type.space is Space.ROW and place.kind == "flat"
            else place
            for node, place in self.places.items()
        }

    # --- weights and totals --------------------------------------------------------------------------------------------

    def packed(self, weight: Node) -> str:
        return f"packed_{self.schedule.names[weight]}"

    def _weights(self) -> list[str]:
        """Every weight as the panels that products read."""
        lines: list[str] = []
        for weight in dict.fromkeys(node.inputs[1] for node in self.nodes if isinstance(node.op, Product)):
            lies = weight.inputs[0] if isinstance(weight.op, Permute) and weight.op.axes == (1, 0) else weight
            rows, columns = weight.type.shape
            steps = f"{columns}, 1" if lies is weight else f"1, {rows}"
            scalar, name = expr.scalar_name(weight.type.dtype), self.packed(weight)
            count = max(rows, 1) * -(-columns // self._lanes(weight)) * self._lanes(weight)
            lines.append(f"Memory memory_{name};")
            lines.append(f"{scalar}* const {name} = memory_{name}.of<{scalar}>({count});")
            lines.append(f"pack<{self.vector(weight)}, {rows}, {columns}>({name}, {self.places[lies].pointer}, {steps});")
        return lines

    def _lanes(self, node: Node) -> int:
        return self.schedule.target.lanes(node.type.dtype)

    def vector(self, node: Node) -> str:
        return f"{expr.scalar_name(node.type.dtype)}x{self._lanes(node)}"

    def _tasks(self, totals: list[Node]) -> list[str]:
        work = "num_rows + num_edges" if self.program.ordered else "num_edges"
        numbers = sum(map(self._total_size, totals))
        most = str(min(128, max(8, TOTAL_NUMBERS // max(numbers, 1)))) if totals else "1 << 20"
        lines = super()._tasks(totals)
        lines[0] = f"const i64 tasks = clamp(({work}) / 4096, 1, {most});"
        return [*lines, *self._weights()]

    def _total_size(self, node: Node) -> int:
        if not isinstance(node.op, TotalProduct):
            return super()._total_size(node)
        return (node.type.shape[0] + BLOCK_ROWS) * stride_of(node.inputs[1], self.schedule.target)

    def _merge(self, node: Node) -> list[str]:
        if not isinstance(node.op, TotalProduct):
            return super()._merge(node)
        size, name, (rows, columns) = self._total_size(node), f"all_{self.total(node)}", node.type.shape
        stride = stride_of(node.inputs[1], self.schedule.target)
        return [f"merge_products({self.places[node].pointer}, {name}, tasks, {size}, {rows}, {columns}, {stride}, threads);"]

    # --- the loops -----------------------------------------------------------------------------------------------------

    def _row_body(self) -> list[str]:
        last = max(self.levels.values(), default=0)
        passes = {item.level: item for item in self.schedule.passes}
        chunk: list[str] = []
        for number in range(last + 1):
            chunk += self._each_row(self._store_all([node for node in self.schedule.row_values if self.levels[node] == number]))
            if number in passes:
                chunk += self._pass(number)
        rest: list[str] = []
        for node in self.nodes:
            if isinstance(node.op, TotalReduce) and node.inputs[0].type.space is Space.ROW:
                rest += self._add_row(node)
        chunk += self._each_row([*rest, *self._copy_lines(Space.ROW)])
        start = "first_row(indptr, num_rows, num_edges, {}, tasks)"
        is_whole = len(self.schedule.passes) < 2 and not self.row_buffers
        end = "task_end" if is_whole else f"chunk_end(indptr, row0, task_end, {CHUNK})"
        return self._each_task(
            [
                f"const i64 task_end = {start.format('task + 1')};",
                f"for (i64 row0 = {start.format('task')}, row1; row0 < task_end; row0 = row1) {{",
                f"  row1 = {end};",
                *indent([*self._chunk_start(), *chunk]),
                "}",
            ]
        )

    def _edge_body(self) -> list[str]:
        lines = ["const i64 first = (i64)((__int128)num_edges * task / tasks);"]
        lines += ["const i64 last = (i64)((__int128)num_edges * (task + 1) / tasks);"]
        for number, _ in enumerate(self.schedule.passes):
            lines += self._pass(number)
        return self._each_task(lines)

    def _pass(self, number: int) -> list[str]:
        item = next(item for item in self.schedule.passes if item.level == number)
        outside = self.places
        self.places, self.in_tile = self.edge_places(), True
        lines = TilePassPrinter(self, item, number).lines()
        self.places, self.in_tile = outside, False
        return ["{", *indent(lines), "}"]

    def _each_row(self, body: list[str]) -> list[str]:
        if not body:
            return []
        lines = ["const i64 begin = indptr_rows[row], end = indptr_rows[row + 1];"]
        for kind, name, count in self._row_pointers():
            lines.append(f"{kind}* const {name}_row = {name}_rows + row * {count};")
        return ["for (i64 row = 0; row < row1 - row0; ++row) {", *indent([*lines, *body]), "}"]

    def _chunk_start(self) -> list[str]:
        lines = ["const i64* const indptr_rows = indptr + row0;"]
        lines += ["const i64 first = indptr[row0], last = indptr[row1];"]
        buffers = {name for _, name, _ in self.row_buffers}
        for kind, name, count in self._row_pointers():
            if name in buffers:
                lines.append(f"{kind}* const {name}_rows = memory_{name}.of<{kind}>((row1 - row0) * {count});")
            else:
                lines.append(f"{kind}* const {name}_rows = {name} + row0 * {count};")
        for node, name in self.kept.items():
            scalar, stride = expr.scalar_name(node.type.dtype), stride_of(node, self.schedule.target)
            length = f"(last - first + {self.schedule.tile}) * {stride}"
            lines.append(f"{scalar}* const kept_{name} = memory_kept_{name}.of<{scalar}>({length});")
        return lines

    def _row_pointers(self) -> list[tuple[str, str, int]]:
        """(type, name, numbers per row) of everything that has rows."""
        found = []
        for node in self.nodes:
            if isinstance(node.op, LoadRow):
                kind = expr.tensor_name(node.type.dtype)
                found.append((f"const {kind}", self.tensors[node.op.slot], node.type.numel))
        for output, out in zip(self.program.outputs, self.outs, strict=True):
            if output.value.type.space is Space.ROW:
                kind = expr.tensor_name(output.value.type.dtype)
                found.append((kind, out, output.value.type.numel))
        return found + self.row_buffers

    def _scratch_lines(self) -> list[str]:
        self.buffers += [f"memory_{name}" for _, name, _ in self.row_buffers]
        self.buffers += [f"memory_kept_{name}" for name in self.kept.values()]
        lines = [f"Memory {name};" for name in self.buffers]
        for scalar, name, count in self.scratch:
            lines += [f"Memory memory_{name};", f"{scalar}* const {name} = memory_{name}.of<{scalar}>({count});"]
            lines += [f"for (i64 i = 0; i < {count}; ++i) {name}[i] = 0;"]  # rows beyond the last edge are read
        return lines

    def segment_start(self, node: Node) -> str:
        """What the accumulator of a row starts from."""
        assert isinstance(node.op, SegmentReduce)
        init, dtype = expr.literal(node.op.init, node.type.dtype), node.type.dtype
        if node.op.reduce.value in ("sum", "prod") or node.op.include_init:
            return init
        return f"begin < end ? {expr.identity(node.op.reduce.value, dtype)} : {init}"
