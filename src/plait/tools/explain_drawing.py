"""The data flow of a run as SVG: operators as bars before, fused programs as boxes after, both to one scale of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from plait.tools.explain_text import human_bytes
from plait.tools.explain_work import Flow, Run, Step

MAX_ROWS = 400  # a longer run is cut, and says so
_BAR, _BAR_STEP, _LANE, _LANES_GAP = 17, 19, 246, 20
_BOX, _PROGRAM, _OPERATOR, _PILL = 500, 68, 27, 19
_GAP, _CHANNEL = 14, 20
_TRACK, _MARGIN = 8, 12
_HEAD = (
    '<defs><marker id="head" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0L6 3L0 6z"/></marker></defs>'
)


def scale_bytes(before: Run | None, after: Run | None) -> int:
    """The bytes that a bar of full length stands for."""
    return max((step.bytes for run in (before, after) if run is not None for step in run.steps), default=1) or 1


# --- before: a bar per operator, in a lane for nodes and a lane for edges ---------------------------------------------


def draw_operators(run: Run, scale: int) -> str:
    """An eager run: every operator a bar as long as its bytes, in the lane of its rows."""
    width = 2 * _LANE + _LANES_GAP + 2
    parts: list[str] = []
    tops: dict[int, float] = {}
    top, direction = 4.0, ""
    for number, step in enumerate(run.steps[:MAX_ROWS]):
        if step.direction != direction:
            direction = step.direction
            parts.append(_heading(direction, 0, top, width))
            top += 26
        tops[number] = top
        parts += _bar(run, step, top, scale)
        top += _BAR_STEP
    arrows = [
        _lane_arrow(run.steps[flow.made_by], tops[flow.made_by], step, tops[number], flow)
        for number, step in enumerate(run.steps[:MAX_ROWS])
        for flow in (run.flows[item] for item in step.reads)
        if flow.made_by is not None
    ]
    parts.append(_cut_note(run, top + 14))
    return _svg(width, top + 24, [*arrows, *parts], "operators of the un-compiled model")


def _lane(step: Step) -> float:
    return 1.0 + (_LANE + _LANES_GAP if step.rows == "edges" else 0)


def _bar(run: Run, step: Step, top: float, scale: int) -> Iterator[str]:
    left = _lane(step)
    length = max(3.0, _LANE * step.bytes / scale)
    title = f"{step.name}: reads {human_bytes(step.read_bytes)}, writes {human_bytes(step.written_bytes)}"
    kept = [run.flows[item] for item in step.writes if run.flows[item].kept]
    yield f'<g class="operator {step.rows}"><title>{escape(title)}</title>'
    yield _rect(left, top, _LANE, _BAR, "back")
    yield _rect(left, top, length, _BAR, "product" if _is_product(step) else "bar")
    yield _text(left + 5, top + 12.5, step.name)
    yield _text(left + _LANE - 5, top + 12.5, human_bytes(step.bytes), "number")
    if kept:
        yield f'<circle class="kept" cx="{left + _LANE - 66:.0f}" cy="{top + _BAR / 2:.1f}" r="4"><title>kept for the backward'
        yield f"{escape(': ' + human_bytes(sum(item.bytes for item in kept)))}</title></circle>"
    yield "</g>"


def _lane_arrow(maker: Step, maker_top: float, reader: Step, reader_top: float, flow: Flow) -> str:
    """Only rows that change lanes are drawn: gathers and reductions. The rest follows from top to bottom."""
    if flow.rows == "other" or (maker.rows == "edges") == (reader.rows == "edges"):
        return ""
    to_edges = reader.rows == "edges"
    start = _lane(maker) + (_LANE if to_edges else 0)
    end = _lane(reader) + (0 if to_edges else _LANE)
    y1, y2 = maker_top + _BAR / 2, reader_top + _BAR / 2
    bend = (end - start) * 0.6
    path = f"M{start:.0f} {y1:.1f} C{start + bend:.0f} {y1:.1f} {end - bend:.0f} {y2:.1f} {end:.0f} {y2:.1f}"
    return f'<path class="flow" d="{path}"><title>{escape(_described(flow))}</title></path>'


# --- after: a box per program, a smaller one per operator left, and what flows between them ---------------------------


@dataclass(frozen=True)
class Note:
    """What stands in the box of a program. link: id of the element with its code."""

    link: str
    summary: str
    fused: str


@dataclass
class _Place:
    """Where a value is drawn: below the step that made it, or above the first that reads it.

    row: that step's; readers: rows that read it. track: the vertical line on the left that leads to those further down.
    """

    row: int
    is_given: bool
    readers: list[int]
    x: float = 0.0
    top: float = 0.0
    channel: float = 0.0  # where its line turns to the left, below the values of its row
    track: int = 0

    def is_direct(self, reader: int, crowded: frozenset[int]) -> bool:
        """Whether nothing stands between it and a reader. crowded: rows with something above their box."""
        return reader == self.row if self.is_given else reader == self.row + 1 and reader not in crowded


class _Layout:
    """Rows from top to bottom in the order of execution; what skips a row runs in a track on the left."""

    def __init__(self, run: Run) -> None:
        self.steps = run.steps[:MAX_ROWS]
        self.places = _values(run, self.steps)
        given = {place.row for place in self.places.values() if place.is_given}
        starts = {row for row, step in enumerate(self.steps) if row and step.direction != self.steps[row - 1].direction}
        self.crowded = frozenset(given | starts)
        self.left = float(_MARGIN + _TRACK * _assign_tracks(self.places.values(), self.crowded) + 14)
        self.tops: list[float] = []
        self.headings: list[str] = []
        self.entries: dict[int, int] = {}  # arrows that have entered a row from the side
        top = 4.0
        for row, step in enumerate(self.steps):
            if row == 0 or row in starts:
                self.headings.append(_heading(step.direction, self.left, top, _BOX))
                top += 30
            if row in given:
                top = self._put(run, row, top, is_given=True) + _GAP
            self.tops.append(top)
            top = self._put(run, row, top + box_height(step) + 4, is_given=False) + _CHANNEL
        self.height = top + 16

    def _put(self, run: Run, row: int, top: float, *, is_given: bool) -> float:
        """Places a row's pills from left to right; returns where they end."""
        x = self.left
        placed = []
        for number, place in self.places.items():
            if place.row != row or place.is_given != is_given:
                continue
            width = pill_width(run.flows[number])
            if x > self.left and x + width > self.left + _BOX:
                x, top = self.left, top + _PILL + 4
            place.x, place.top = x, top
            x += width + 8
            placed.append(place)
        for order, place in enumerate(placed):
            place.channel = top + _PILL + 4 + 3 * (order % 4)
        return top + _PILL if placed else top

    def entry(self, row: int) -> float:
        """A height at which one more arrow enters a box from the side."""
        count = self.entries.get(row, 0)
        self.entries[row] = count + 1
        room = box_height(self.steps[row]) - 12
        return self.tops[row] + 6 + count * 6 % room


def _values(run: Run, steps: Sequence[Step]) -> dict[int, _Place]:
    """Every value that is made, and every one with rows that is read; weights are named in the tooltips only."""
    readers: dict[int, list[int]] = {}
    places: dict[int, _Place] = {}
    for row, step in enumerate(steps):
        for item in step.reads:
            readers.setdefault(item, []).append(row)
    for row, step in enumerate(steps):
        for item in step.reads:
            flow = run.flows[item]
            if item not in places and flow.made_by is None and flow.rows != "other":
                places[item] = _Place(row, True, readers[item])
        for item in step.writes:
            places[item] = _Place(row, False, readers.get(item, []))
    return places


def _assign_tracks(places: Iterable[_Place], crowded: frozenset[int]) -> int:
    """Gives values that skip rows the first track that is free from where they start to their last reader."""
    ends: list[int] = []  # of each track, the row where it is free again
    for place in sorted(places, key=lambda item: (item.row, not item.is_given)):
        far = [row for row in place.readers if not place.is_direct(row, crowded)]
        if not far:
            continue
        free = next((track for track, end in enumerate(ends) if end < place.row), len(ends))
        ends[free : free + 1] = [max(far)]
        place.track = free
    return len(ends)


def box_height(step: Step) -> int:
    return _PROGRAM if step.kind == "program" else _OPERATOR


def pill_width(flow: Flow) -> float:
    return 6.4 * len(_described(flow)) + 16


def draw_programs(run: Run, notes: dict[tuple[int, str], Note], scale: int) -> str:
    """A compiled run. notes: by capture and name of the program."""
    layout = _Layout(run)
    parts: list[str] = list(layout.headings)
    for row, step in enumerate(layout.steps):
        note = notes.get((step.capture, step.name)) if step.capture is not None else None
        parts += _box(run, step, note, layout.left, layout.tops[row], scale)
    parts += [_pill(run.flows[number], place) for number, place in layout.places.items()]
    arrows = [arrow for number, place in layout.places.items() for arrow in _arrows(run.flows[number], place, layout)]
    parts.append(_cut_note(run, layout.height - 6))
    return _svg(layout.left + _BOX + 2, layout.height, [_HEAD, *arrows, *parts], "what runs after plait compiled the model")


def _box(run: Run, step: Step, note: Note | None, left: float, top: float, scale: int) -> Iterator[str]:
    weights = [run.flows[item] for item in step.reads if run.flows[item].rows == "other" and run.flows[item].name]
    title = f"{step.name}: reads {human_bytes(step.read_bytes)}, writes {human_bytes(step.written_bytes)}"
    title += "".join(f"\nwith {_described(item)}" for item in weights)
    length = max(3.0, _BOX * step.bytes / scale)
    if note is None:
        yield f'<g class="operator {step.rows}"><title>{escape(title)}</title>'
        yield _rect(left, top, _BOX, _OPERATOR, "back")
        yield _rect(left, top, min(length, _BOX), _OPERATOR, "product" if _is_product(step) else "bar")
        yield _text(left + 10, top + 17.5, step.name, "name")
        yield _text(left + _BOX - 10, top + 17.5, human_bytes(step.bytes), "number")
        yield "</g>"
        return
    yield f'<a href="#{escape(note.link)}"><g class="program"><title>{escape(title)}\nclick for its code</title>'
    yield _rect(left, top, _BOX, _PROGRAM, "back")
    yield _rect(left, top + _PROGRAM - 6, min(length, _BOX), 6, "bar")
    yield _text(left + 12, top + 19, step.name, "name")
    yield _text(left + _BOX - 12, top + 19, f"{human_bytes(step.bytes)}", "number")
    yield _text(left + 12, top + 36, _cut(note.summary, 78))
    yield _text(left + 12, top + 52, _cut(f"instead of: {note.fused}", 76), "quiet")
    yield "</g></a>"


def _pill(flow: Flow, place: _Place) -> str:
    kept = " kept" if flow.kept else ""
    role = " given" if place.is_given else "" if place.readers else " result"
    title = _described(flow) + (", kept for the backward" if flow.kept else "")
    text = _text(place.x + 8, place.top + 13.5, _described(flow))
    rect = f'<rect x="{place.x:.1f}" y="{place.top:.1f}" width="{pill_width(flow):.1f}" height="{_PILL}" rx="9"/>'
    return f'<g class="pill {flow.rows}{kept}{role}"><title>{escape(title)}</title>{rect}{text}</g>'


def _arrows(flow: Flow, place: _Place, layout: _Layout) -> Iterator[str]:
    x, y = place.x + min(pill_width(flow) / 2, 60), place.top + _PILL
    name = "flow kept" if flow.kept else "flow"
    title = _described(flow)
    for row in place.readers:
        if row >= len(layout.tops):
            continue
        if place.is_direct(row, layout.crowded):
            yield _arrow(name, f"M{x:.1f} {y:.1f} V{layout.tops[row] - 1:.1f}", title)
            continue
        track = _MARGIN + _TRACK * place.track
        entry = layout.entry(row)
        yield _arrow(name, f"M{x:.1f} {y:.1f} V{place.channel:.1f} H{track} V{entry:.1f} H{layout.left - 1:.1f}", title)


def _arrow(name: str, path: str, title: str) -> str:
    return f'<path class="{name}" d="{path}" marker-end="url(#head)"><title>{escape(title)}</title></path>'


# --- pieces ----------------------------------------------------------------------------------------------------------


def _is_product(step: Step) -> bool:
    return step.edge_product_flops + step.node_product_flops > 0


def _described(flow: Flow) -> str:
    shape = ", ".join(map(str, flow.shape))
    return f"{_cut(flow.name, 26)} [{shape}] {human_bytes(flow.bytes)}".strip()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _cut_note(run: Run, y: float) -> str:
    more = len(run.steps) - MAX_ROWS
    return _text(4, y, f"and {more} more, not drawn", "quiet") if more > 0 else ""


def _heading(text: str, left: float, top: float, width: float) -> str:
    line = f'<line x1="{left:.1f}" y1="{top + 20:.1f}" x2="{left + width:.1f}" y2="{top + 20:.1f}"/>'
    return f'<g class="heading">{_text(left, top + 14, text)}{line}</g>'


def _rect(x: float, y: float, width: float, height: float, name: str) -> str:
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3"/>'


def _text(x: float, y: float, text: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    body = "".join(parts)
    return f'<svg {size} role="img" aria-label="{escape(label)}">{body}</svg>'
