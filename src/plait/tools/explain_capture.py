"""One captured graph as a report: its programs with what they read and write, what is kept, what was left, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from plait.capture.launch import Launch
from plait.capture.origin import Origin, Value
from plait.capture.record import MOVED_AT, Record
from plait.ir import ops
from plait.ir.program import Program, Space
from plait.ir.text import to_text
from plait.tools.explain_places import short, without_paths

_INT32_END = 2**31


@dataclass(frozen=True)
class Access:
    """Something a program reads or writes.

    how: "per edge", "per row", "by MAP" (a row for each edge: a row read ten times counts ten times), "whole", or "index" for
    the arrays that order the edges.
    shape: as read, so [E, ...] for a gathered tensor; bytes: its size, None where a size is known to nobody.
    source: the line of the user's model (or of a library it uses) that made the tensor, "" where unknown.
    """

    name: str
    how: str
    shape: tuple[int | str, ...]
    dtype: str
    bytes: int | None
    source: str


@dataclass(frozen=True)
class ProgramReport:
    """A fused program.

    text: the program; code: the C++ made of it, "" where the interpreter runs it. predicted_s: at best, from its bytes and what
    this machine's memory gives, None where that is not known; measured_s: the median of some runs, None unless asked for.
    module: path and class of the module it belongs to, the root where it spans several. engine: "kernel" (compiled C++) or
    "interpreter". rows: the map that orders its edges into rows, None where it runs over edges (or rows) one by one; source:
    the line that made the map. operators: the calls fused; unwritten: those among them whose result, a row per edge, is never
    in memory.
    """

    name: str
    summary: str
    module: str
    engine: str
    rows: str | None
    source: str
    num_edges: int | str | None
    num_rows: int | str | None
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    read_bytes: int
    written_bytes: int
    operators: tuple[str, ...]
    unwritten: tuple[Access, ...]
    unwritten_bytes: int
    text: str
    code: str
    predicted_s: float | None
    measured_s: float | None


@dataclass(frozen=True)
class DirectionReport:
    """direction: forward, backward or inference."""

    direction: str
    programs: tuple[ProgramReport, ...]


@dataclass(frozen=True)
class CaptureReport:
    """One captured graph.

    cached: tensors the forward keeps for the backward; cached_bytes: their sum. shared: those it keeps that the user or the
    structure holds anyway. recomputed: edge values the backward computes again. dropped: values over nodes that it computes
    again to fit `memory_budget`, with their bytes. peak_bytes: the most a training step is predicted to hold at once, outputs
    and gradients included; None without a backward. moved: laws that were applied, each with the line of the model that made
    what it moved, "" where unknown.
    structure: computed once per graph. notes: what was left as it was, and why. fallbacks: what runs as PyTorch runs it.
    """

    number: int
    directions: tuple[DirectionReport, ...]
    cached: tuple[Access, ...]
    cached_bytes: int
    shared: tuple[Access, ...]
    recomputed: tuple[str, ...]
    dropped: tuple[tuple[str, int], ...]
    peak_bytes: int | None
    moved: tuple[tuple[str, str], ...]
    structure: tuple[Access, ...]
    notes: tuple[str, ...]
    fallbacks: tuple[str, ...]


@dataclass(frozen=True)
class Seconds:
    """Seconds of programs by the `id` of their launch, as far as known."""

    predicted: Mapping[int, float]
    measured: Mapping[int, float]


def describe_capture(record: Record, input_names: tuple[str, ...], seconds: Seconds) -> CaptureReport:
    """The report of one captured graph; sizes are those of the last call of each program. input_names: what the user calls the
    inputs of the graph."""
    sources = Sources(input_names)
    seen: dict[str, int] = {}
    for launch in (launch for launches in record.launches.values() for launch in launches):
        seen |= _sizes_seen(launch, record.origins[launch.program.name])
    directions = tuple(
        DirectionReport(
            direction,
            tuple(_program(launch, record.origins[launch.program.name], seen, sources, seconds) for launch in launches),
        )
        for direction, launches in record.launches.items()
    )
    kept = [(value.kind, _access(value, "kept", seen, sources)) for value in record.kept]
    cached = tuple(access for kind, access in kept if kind not in ("input", "structure"))
    return CaptureReport(
        record.number,
        directions,
        cached,
        _total(cached),
        tuple(access for kind, access in kept if kind in ("input", "structure")),
        tuple(record.recomputed),
        tuple((item.name, item.num_bytes) for item in record.dropped),
        record.prediction.peak_bytes if record.prediction is not None else None,
        tuple(_moved(line) for line in record.moved),
        _once_per_graph(record, seen, sources),
        tuple(without_paths(note) for note in record.notes),
        tuple(str(fallback) for fallback in record.fallbacks),
    )


def _moved(line: str) -> tuple[str, str]:
    text, _, source = line.partition(MOVED_AT)
    return text, short(source)


@dataclass(frozen=True)
class Sources:
    """Where values come from, in words: an input's name, else a line of the model."""

    input_names: tuple[str, ...]

    def of(self, value: Value) -> str:
        if value.position is not None and value.position < len(self.input_names):
            return self.input_names[value.position]
        return short(value.source)


def _once_per_graph(record: Record, seen: dict[str, int], sources: Sources) -> tuple[Access, ...]:
    """The structure's values, once each; the backward's graph has names of its own, so a place and a shape identify them."""
    found: dict[tuple[object, ...], Access] = {}
    for value in record.structural:
        access = _access(value, "once per graph", seen, sources)
        found.setdefault((value.source, value.sizes, value.name), access)
    return tuple(found.values())


def _sizes_seen(launch: Launch, origin: Origin) -> dict[str, int]:
    """What the sizes that a capture had no number for (`u0 + 10`) were when the program ran."""
    if launch.seen is None:
        return {}
    num_edges, num_rows, sizes = launch.seen
    found = {str(item.sizes[0]): num_edges for item in (origin.rows, *origin.maps) if item is not None}
    for item, value in zip(launch.program.inputs, origin.tensors, strict=True):
        if item.access == "edge":
            found[str(value.sizes[0])] = num_edges
        elif item.access == "row":
            found[str(value.sizes[0])] = num_rows
        elif item.access == "at" and item.index_map is not None:
            found[str(value.sizes[0])] = sizes[item.index_map]
    return found


def _program(launch: Launch, origin: Origin, seen: dict[str, int], sources: Sources, seconds: Seconds) -> ProgramReport:
    program = launch.program
    num_edges, num_rows, sizes = launch.seen or (_unseen(origin), None, ())
    leading = {"edge": num_edges, "at": num_edges, "row": num_rows}
    reads = []
    by_row = not program.ordered and not program.maps and not any(value.kind == "edge" for value in origin.results)
    per_entry = {**_HOW, "edge": "per row"} if by_row else _HOW  # without a map, "edges" are whatever rows the user has
    for item, value in zip(program.inputs, origin.tensors, strict=True):
        how = f"by {origin.maps[item.index_map].name}" if item.index_map is not None else per_entry[item.access]
        shape = item.shape if item.access == "dense" else (_known(leading[item.access]), *item.shape)
        reads.append(Access(value.name, how, shape, _dtype(item.dtype), _bytes(shape, item.dtype), sources.of(value)))
    reads += _structure(launch, origin, num_edges, num_rows, sizes)
    writes = []
    for out, value in zip(program.outputs, origin.results, strict=True):
        type_ = out.value.type
        shape = type_.shape if type_.space is Space.DENSE else (_known(leading[type_.space.value]), *type_.shape)
        how = per_entry[type_.space.value]
        writes.append(Access(out.name, how, shape, _dtype(type_.dtype), _bytes(shape, type_.dtype), sources.of(value)))
    written = {out.name for out in program.outputs}
    unwritten = tuple(
        _access(value, "per edge", seen, sources)
        for value in origin.operators
        if value.kind == "edge" and value.name not in written
    )
    return ProgramReport(
        program.name,
        _summary(program),
        _module(origin),
        "interpreter" if launch.kernel is None else "kernel",
        origin.rows.name if origin.rows is not None else None,
        sources.of(origin.rows) if origin.rows is not None else "",
        None if by_row else num_edges,
        num_edges if by_row else num_rows if program.ordered else None,
        tuple(reads),
        tuple(writes),
        _total(reads),
        _total(writes),
        tuple(value.name for value in origin.operators),
        unwritten,
        _total(unwritten),
        to_text(program),
        "" if launch.kernel is None else launch.kernel.source,
        seconds.predicted.get(id(launch)),
        seconds.measured.get(id(launch)),
    )


_HOW = {"edge": "per edge", "row": "per row", "dense": "whole"}


def _structure(
    launch: Launch, origin: Origin, num_edges: int | str | None, num_rows: int | None, sizes: tuple[int, ...]
) -> list[Access]:
    """The index arrays of the ordering, as the kernel reads them."""
    program = launch.program
    found: list[tuple[str, int | str, torch.dtype]] = []
    if program.ordered:
        found.append(("indptr", "?" if num_rows is None else num_rows + 1, torch.int64))
    index = torch.int32 if all(size < _INT32_END for size in sizes) else torch.int64
    found += [(f"indices of {value.name}", _known(num_edges), index) for value in origin.maps]
    if program.ordered and launch.with_edge_id:
        # the kernel does not read it where the edges come sorted already
        wide = isinstance(num_edges, int) and num_edges >= _INT32_END
        found.append(("edge_id", _known(num_edges), torch.int64 if wide else torch.int32))
    lines = [""] * len(found)
    for number, value in enumerate(origin.maps):
        lines[program.ordered + number] = short(value.source)
    return [
        Access(name, "index", (size,), _dtype(dtype), _bytes((size,), dtype), line)
        for (name, size, dtype), line in zip(found, lines, strict=True)
    ]


def _summary(program: Program) -> str:
    """What a program does, in a few words: "max, sum, sum over the edges of each row"."""
    reductions = [node.op.reduce.value for node in program.nodes() if isinstance(node.op, ops.SegmentReduce)]
    totals = sum(isinstance(node.op, ops.TOTALS) for node in program.nodes())
    parts = []
    if reductions:
        parts.append(f"{', '.join(reductions)} over the edges of each row")
    if totals:
        parts.append(f"{_plural(totals, 'sum')} over everything")
    per_edge = [out.name for out in program.outputs if out.value.type.space is Space.EDGE]
    if per_edge:
        parts.append(f"{_plural(len(per_edge), 'result')} edge by edge" if program.ordered or program.maps else "elementwise")
    return "; ".join(parts)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _module(origin: Origin) -> str:
    if origin.module is None:
        return ""
    path, kind = origin.module
    inner = path.partition("'].")[2]  # L['model'].conv1: the prefix is the capture's own
    return f"{inner} ({kind})" if inner else kind


def _unseen(origin: Origin) -> int | str | None:
    return origin.rows.sizes[0] if origin.rows is not None else None


def _known(size: int | str | None) -> int | str:
    return "?" if size is None else size


def _access(value: Value, how: str, seen: dict[str, int], sources: Sources) -> Access:
    shape = tuple(seen.get(size, size) if isinstance(size, str) else size for size in value.sizes)
    return Access(value.name, how, shape, _dtype(value.dtype), _bytes(shape, value.dtype), sources.of(value))


def _bytes(shape: tuple[int | str, ...], dtype: torch.dtype) -> int | None:
    sizes = [size for size in shape if isinstance(size, int)]
    return math.prod(sizes) * dtype.itemsize if len(sizes) == len(shape) else None


def _total(accesses: list[Access] | tuple[Access, ...]) -> int:
    return sum(access.bytes or 0 for access in accesses)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def count_names(names: tuple[str, ...]) -> str:
    """Graph names counted by operator.

    >>> count_names(("gather", "gather_1", "exp"))
    'gather x2, exp'
    """
    counts = Counter(_stem(name) for name in names)
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts.items())


def _stem(name: str) -> str:
    head, _, tail = name.rpartition("_")
    return head if head and tail.isdigit() else name
