"""An `Explanation` as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plait.tools.explain_capture import Access, CaptureReport, DirectionReport, ProgramReport, count_names
from plait.tools.explain_work import Tally, times_fewer

if TYPE_CHECKING:
    from plait.tools.explain import Explanation

_WIDTH = 128
_SOURCE_WIDTH = 100


def human_bytes(count: int | None) -> str:
    """
    >>> human_bytes(280), human_bytes(2_265_000_000), human_bytes(None)
    ('280 B', '2.27 GB', '?')
    """
    if count is None:
        return "?"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def human_flops(count: int) -> str:
    """
    >>> human_flops(0), human_flops(1_340_000_000)
    ('0', '1.34 GFLOP')
    """
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} FLOP" if count else "0"


def human_seconds(seconds: float | None) -> str:
    """
    >>> human_seconds(0.0123), human_seconds(2.5), human_seconds(3.4e-6)
    ('12.3 ms', '2.5 s', '3.4 us')
    """
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def human_ratio(ratio: float | None) -> str:
    """How many times less.

    >>> human_ratio(6.894), human_ratio(48.2), human_ratio(None)
    ('6.9x', '48x', '')
    """
    return "" if ratio is None else f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x"


@dataclass(frozen=True)
class Compared:
    """A line of the table: what, before, after, how many times less."""

    what: str
    before: str
    after: str
    times: str


def compared(explanation: Explanation) -> list[Compared]:
    """Before and after, line by line; "-" for a side that was not counted."""
    sides = [None if run is None else run.tally for run in (explanation.before, explanation.after)]
    lines = [_compared(what, [None if side is None else read(side) for side in sides], human) for what, read, human in COUNTS]
    if any(explanation.step_s):
        lines.append(_compared("seconds of a step, measured", list(explanation.step_s), human_seconds))
    return lines


def _compared(what: str, counts: Sequence[Any], human: Callable[[Any], str]) -> Compared:
    before, after = counts
    shown = ["-" if count is None else human(count) for count in counts]
    return Compared(what, shown[0], shown[1], human_ratio(times_fewer(before, after)) if None not in counts else "")


def _count(count: int) -> str:
    return f"{count:,}"


COUNTS: tuple[tuple[str, Callable[[Tally], int], Callable[[int], str]], ...] = (
    ("operators on edges, a program being one", lambda side: side.edge_operators, _count),
    ("operators on nodes, weights, index tables", lambda side: side.node_operators, _count),
    ("operators inside of programs", lambda side: side.fused_operators, _count),
    ("matrix products on edges", lambda side: side.edge_product_flops, human_flops),
    ("matrix products on nodes", lambda side: side.node_product_flops, human_flops),
    ("other arithmetic on edges", lambda side: side.edge_flops, human_flops),
    ("other arithmetic on nodes", lambda side: side.node_flops, human_flops),
    ("bytes read", lambda side: side.read_bytes, human_bytes),
    ("bytes written", lambda side: side.written_bytes, human_bytes),
    ("bytes kept for the backward", lambda side: side.kept_bytes, human_bytes),
    ("kernels launched", lambda side: side.kernels, _count),
)


def to_text(explanation: Explanation) -> str:
    """The whole report."""
    return "\n".join(_report(explanation)) + "\n"


def _report(explanation: Explanation) -> Iterator[str]:
    yield _headline(explanation)
    if explanation.before is not None or explanation.after is not None:
        yield ""
        rows = [(line.what, line.before, line.after, line.times) for line in compared(explanation)]
        yield from _table(("one step", "before", "after", "less"), rows, "", right=(1, 2, 3))
    if explanation.uncounted:
        yield from _listed(explanation.uncounted)
    for capture in explanation.captures:
        yield ""
        if len(explanation.captures) > 1:
            yield f"graph {capture.number}"
        yield from _capture(capture)
    if explanation.graph_breaks:
        yield ""
        yield "graph breaks: Dynamo cut the model here, and plait fuses nothing across a cut"
        yield from _listed(explanation.graph_breaks)
    if explanation.fallbacks:
        yield ""
        yield "fallbacks: these parts run as PyTorch runs them"
        yield from _listed(explanation.fallbacks)


def _headline(explanation: Explanation) -> str:
    count = explanation.num_programs
    fused = f"{_plural(count, 'fused program')}" if count else "nothing was fused"
    parts = [fused, _plural(len(explanation.captures), "captured graph"), _plural(len(explanation.fallbacks), "fallback")]
    if not explanation.captures:
        parts[1] = "nothing was captured"
    if explanation.graph_breaks:
        parts.append(_plural(len(explanation.graph_breaks), "graph break"))
    return f"{explanation.model}, {explanation.mode}: {', '.join(parts)}"


def _plural(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _capture(capture: CaptureReport) -> Iterator[str]:
    programs = [program for direction in capture.directions for program in direction.programs]
    if programs:
        yield from _overview(programs)
    for direction in capture.directions:
        yield from _direction(direction)
    if capture.cached or capture.shared:
        yield ""
        yield f"kept for the backward: {human_bytes(capture.cached_bytes)}, beside what the user and the structure hold anyway"
        yield from _accesses([("  ", access) for access in capture.cached])
        if capture.shared:
            yield from _wrapped("  held anyway: ", [access.name for access in capture.shared])
    if capture.recomputed:
        yield ""
        yield f"computed again in the backward: {_plural(len(capture.recomputed), 'edge value')}"
        yield from _wrapped("  ", count_names(capture.recomputed).split(", "))
    if capture.dropped:
        yield ""
        yield f"computed again to fit the memory budget: {_plural(len(capture.dropped), 'value')} over nodes"
        yield from _wrapped("  ", [f"{name} {human_bytes(size)}" for name, size in capture.dropped])
    if capture.peak_bytes is not None:
        yield ""
        yield f"predicted: a step holds at most {human_bytes(capture.peak_bytes)} at once, outputs and gradients included"
    moved = [f"{text}\n{_cut(source)}" if source else text for text, source in capture.moved]
    for title, lines in (("moved", moved), ("left as it is", list(capture.notes))):
        if lines:
            yield ""
            yield title
            yield from _listed(lines)
    if capture.structure:
        yield ""
        yield "computed once per graph, found again by content"
        yield from _accesses([("  ", access) for access in capture.structure])


def _overview(programs: Sequence[ProgramReport]) -> Iterator[str]:
    header, rows = list(_OVERVIEW), [list(_overview_row(program)) for program in programs]
    for title, seconds in (
        ("measured", [program.measured_s for program in programs]),
        ("predicted", [program.predicted_s for program in programs]),
    ):
        if any(seconds):
            header.insert(5, title)
            for row, number in zip(rows, seconds, strict=True):
                row.insert(5, human_seconds(number))
    yield from _table(header, rows, "", right=range(1, len(header) - 1))


_OVERVIEW = ("program", "edges", "rows", "reads", "writes", "never written", "what")


def _overview_row(program: ProgramReport) -> tuple[str, ...]:
    count = len(program.unwritten)
    what = f"{program.module}: {program.summary}" if program.module else program.summary
    return (
        program.name,
        _number(program.num_edges),
        _number(program.num_rows),
        human_bytes(program.read_bytes),
        human_bytes(program.written_bytes),
        f"{human_bytes(program.unwritten_bytes)} in {count}" if count else "-",
        what if program.engine == "kernel" else f"{what} (interpreted)",
    )


def _number(count: int | str | None) -> str:
    return "-" if count is None else f"{count:,}" if isinstance(count, int) else count


def _direction(direction: DirectionReport) -> Iterator[str]:
    if not direction.programs:
        yield f"{direction.direction}: nothing was fused"
    for program in direction.programs:
        yield ""
        order = f"rows of {program.rows}  ({_cut(program.source)})" if program.rows is not None else "in the order given"
        yield f"{program.name}  {order}"
        labelled = [("  reads   ", access) for access in program.reads] + [("  writes  ", access) for access in program.writes]
        yield from _accesses(labelled)
        yield from _wrapped("  fused     ", count_names(program.operators).split(", "))


def _accesses(labelled: Sequence[tuple[str, Access]]) -> Iterator[str]:
    rows = []
    last = ""
    for label, access in labelled:
        shape = f"[{', '.join(map(str, access.shape))}]"
        how = "" if access.how in ("kept", "once per graph") else access.how
        shown = label if label != last else " " * len(label)
        rows.append((shown + access.name, shape, access.dtype, human_bytes(access.bytes), how, _cut(access.source)))
        last = label
    yield from _table(("",) * 6, rows, "", right=(3,))


def _cut(source: str) -> str:
    return source if len(source) <= _SOURCE_WIDTH else source[: _SOURCE_WIDTH - 3] + "..."


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], indent: str, right: Sequence[int] = (1, 2, 3, 4, 5)
) -> Iterator[str]:
    """Columns as wide as they must be; the last one runs free."""
    lines = [header, *rows] if any(header) else list(rows)
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield (indent + "  ".join(cells)).rstrip()


def _listed(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        first, *others = line.strip().splitlines()
        yield f"  {first}"
        yield from (f"    {other.strip()}" for other in others)


def _wrapped(label: str, words: Sequence[str]) -> Iterator[str]:
    """Words with commas between, in lines of `_WIDTH`."""
    line = label
    for number, word in enumerate(words):
        piece = word + ("," if number + 1 < len(words) else "")
        if len(line) + len(piece) > _WIDTH and line.strip():
            yield line.rstrip()
            line = " " * len(label)
        line += piece + " "
    yield line.rstrip()
