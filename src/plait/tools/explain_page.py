"""An `Explanation` as one HTML page that needs no network: large figures, the data flow before and after, code on a click.

The style and the frame of the page are files beside this one.
"""

from __future__ import annotations

import pathlib
import string
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from plait.tools.explain_capture import Access, ProgramReport, count_names
from plait.tools.explain_drawing import Note, draw_operators, draw_programs, scale_bytes
from plait.tools.explain_text import compared, human_bytes, human_flops, human_ratio, human_seconds
from plait.tools.explain_work import Run, Tally, share_removed, times_fewer

if TYPE_CHECKING:
    from plait.tools.explain import Explanation

_HERE = pathlib.Path(__file__).parent


def to_html(explanation: Explanation) -> str:
    """The whole page."""
    programs = {
        (number, program.name): program
        for number, capture in enumerate(explanation.captures)
        for direction in capture.directions
        for program in direction.programs
    }
    frame = string.Template((_HERE / "explain_page.html").read_text(encoding="utf8"))
    return frame.substitute(
        title=escape(f"{explanation.model}, {explanation.mode}"),
        css=(_HERE / "explain_page.css").read_text(encoding="utf8").strip(),
        script=(_HERE / "explain_page.js").read_text(encoding="utf8").strip(),
        lead=escape(_lead(explanation)),
        figures="\n".join(_figures(explanation)),
        legend=_LEGEND,
        sides="\n".join(_sides(explanation, programs)),
        table=_table(explanation),
        lists="\n".join(_lists(explanation)),
        programs=_overview(programs),
        details="\n".join(_detail(number, program) for (number, _), program in programs.items()),
    )


# --- what is seen first ----------------------------------------------------------------------------------------------


def _lead(explanation: Explanation) -> str:
    before, after = explanation.before, explanation.after
    if not explanation.num_programs:
        return "Nothing was fused; the reasons stand below."
    if after is None:
        return f"plait fused {_plural(explanation.num_programs, 'program')}."
    loose = after.tally.kernels - after.tally.programs
    now = f"{_plural(after.tally.programs, 'fused program')} and {_plural(loose, 'operator')}"
    if before is None:
        return f"plait runs {now}."
    text = f"PyTorch runs {before.tally.kernels} operators, {before.tally.edge_operators} of them on edges; plait runs {now}."
    rows = sum(step.written_bytes for step in after.steps if any(after.flows[item].rows == "edges" for item in step.writes))
    return text if rows else f"{text} None of them writes a tensor with a row per edge."


def _figures(explanation: Explanation) -> Iterator[str]:
    """The savings, largest type first."""
    before, after = explanation.before, explanation.after
    if before is None or after is None:
        yield _figure(str(explanation.num_programs), "fused programs", "instead of many operators")
        return
    old, new = before.tally, after.tally
    yield _times("fewer bytes moved", old.bytes, new.bytes, human_bytes(old.bytes), human_bytes(new.bytes))
    if old.kept_bytes:
        kept = human_bytes(old.kept_bytes), human_bytes(new.kept_bytes)
        yield _times("less kept for the backward", old.kept_bytes, new.kept_bytes, *kept)
    yield _products(old, new)
    yield _times("fewer launches", old.kernels, new.kernels, str(old.kernels), str(new.kernels))
    before_s, after_s = explanation.step_s
    if before_s is not None and after_s is not None:
        ratio = human_ratio(before_s / after_s)
        yield _figure(ratio, "faster, measured", f"{human_seconds(before_s)} to {human_seconds(after_s)} a step")


def _times(what: str, before: int, after: int, shown_before: str, shown_after: str) -> str:
    ratio = times_fewer(before, after)
    if ratio is None:
        return _figure(
            "all" if before else "0", what if before else f"{what}: there was nothing", f"{shown_before} to {shown_after}"
        )
    return _figure(human_ratio(ratio), what, f"{shown_before} to {shown_after}", is_worse=ratio < 1)


def _products(before: Tally, after: Tally) -> str:
    share = share_removed(before.edge_product_flops, after.edge_product_flops)
    if share is None:
        left = human_flops(after.edge_product_flops)
        return _figure(left, "of matrix products on edges", "and none before", is_worse=after.edge_product_flops > 0)
    change = f"{human_flops(before.edge_product_flops)} to {human_flops(after.edge_product_flops)}"
    return _figure(f"{100 * share:.0f} %", "of products on edges removed", change, is_worse=share < 0)


def _figure(number: str, what: str, how: str, *, is_worse: bool = False) -> str:
    kind = "figure worse" if is_worse else "figure"
    return (
        f'<div class="{kind}"><b>{escape(number)}</b><span class="what">{escape(what)}</span>'
        f'<div class="how">{escape(how)}</div></div>'
    )


_LEGEND = (
    '<span><i class="edges"></i>works on edges (a row per edge)</span>'
    '<span><i class="nodes"></i>works on nodes</span>'
    '<span><i class="other"></i>weights and index tables</span>'
    '<span><i class="program"></i>fused program: click for its code</span>'
    '<span><i class="kept"></i>kept for the backward</span>'
    "<span>A bar is as long as the bytes read and written, to one scale on both sides; darker: a matrix product.</span>"
)


def _sides(explanation: Explanation, programs: dict[tuple[int, str], ProgramReport]) -> Iterator[str]:
    before, after = explanation.before, explanation.after
    scale = scale_bytes(before, after)
    if before is not None:
        lanes = '<div class="lanes"><span>nodes, weights, index tables</span><span>edges</span></div>'
        yield _side("before", "Before: PyTorch, operator by operator", before, lanes + draw_operators(before, scale))
    if after is not None:
        notes = {key: Note(_link(*key), _what(program), count_names(program.operators)) for key, program in programs.items()}
        yield _side("after", "After: plait", after, draw_programs(after, notes, scale))
    yield from (f'<p class="uncounted">{escape(reason)}</p>' for reason in explanation.uncounted)


def _side(name: str, title: str, run: Run, drawing: str) -> str:
    total = f"{_plural(run.tally.kernels, 'launch')}, {human_bytes(run.tally.bytes)} read and written"
    return f'<div class="side" id="{name}"><h2>{escape(title)}</h2><p class="count">{escape(total)}</p>{drawing}</div>'


def _plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{ending}"


# --- what is read after that -----------------------------------------------------------------------------------------


def _table(explanation: Explanation) -> str:
    rows = [(line.what, line.before, line.after, line.times) for line in compared(explanation)]
    return _rows(("", "before", "after", "less"), rows, numbers=(1, 2, 3))


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(line: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if column in numbers else "" for column in range(len(line))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, line, strict=True))

    head = f"<tr>{cells(header, 'th')}</tr>" if any(header) else ""
    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in rows)
    return f"<table>{head}{body}</table>"


def _lists(explanation: Explanation) -> Iterator[str]:
    """Laws applied, what was left, what is kept: each with the line of the model."""
    captures = explanation.captures
    yield _listed("Laws that were applied", [pair for capture in captures for pair in capture.moved])
    yield _listed("Left as it is, and why", [(note, "") for capture in captures for note in capture.notes])
    yield _listed("Runs as PyTorch runs it, and why", [(reason, "") for reason in explanation.fallbacks])
    yield _listed("Graph breaks: nothing is fused across them", [(reason, "") for reason in explanation.graph_breaks])
    kept = [(_shown(access), access.source) for capture in captures for access in capture.cached]
    yield _listed("Kept for the backward", kept)
    structure = [(_shown(access), access.source) for capture in captures for access in capture.structure]
    yield _listed("Computed once per graph, found again by content", structure)


def _shown(access: Access) -> str:
    return f"{access.name} [{', '.join(map(str, access.shape))}] {human_bytes(access.bytes)}"


def _listed(title: str, lines: Sequence[tuple[str, str]]) -> str:
    if not lines:
        return ""
    items = "".join(
        f"<li>{escape(text)}{f'<br><small><code>{escape(source)}</code></small>' if source else ''}</li>"
        for text, source in lines
    )
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>"


def _overview(programs: dict[tuple[int, str], ProgramReport]) -> str:
    header = ("program", "edges", "rows", "reads", "writes", "never written", "predicted", "measured", "what")
    rows = [
        (
            program.name,
            _number(program.num_edges),
            _number(program.num_rows),
            human_bytes(program.read_bytes),
            human_bytes(program.written_bytes),
            human_bytes(program.unwritten_bytes) if program.unwritten else "-",
            human_seconds(program.predicted_s),
            human_seconds(program.measured_s),
            _what(program),
        )
        for program in programs.values()
    ]
    return _rows(header, rows, numbers=range(1, 8)) if rows else "<p>None.</p>"


def _number(count: int | str | None) -> str:
    return "-" if count is None else f"{count:,}" if isinstance(count, int) else count


def _what(program: ProgramReport) -> str:
    text = f"{program.module}: {program.summary}" if program.module else program.summary
    return text if program.engine == "kernel" else f"{text} (interpreted)"


# --- behind a click --------------------------------------------------------------------------------------------------


def _link(number: int, name: str) -> str:
    return f"code-{number}-{name}"


def _detail(number: int, program: ProgramReport) -> str:
    code = program.code.strip() or "The interpreter runs this program: there is no C++ compiler, or it failed."
    accesses = [("reads", access) for access in program.reads] + [("writes", access) for access in program.writes]
    rows = [
        (kind, access.name, f"[{', '.join(map(str, access.shape))}]", human_bytes(access.bytes), access.how, access.source)
        for kind, access in accesses
    ]
    unwritten = ", ".join(f"{access.name} {human_bytes(access.bytes)}" for access in program.unwritten)
    return (
        f'<aside class="detail" id="{escape(_link(number, program.name))}"><a class="close" href="#closed">close</a>'
        f"<h2>{escape(program.name)}</h2><p>{escape(_what(program))}</p>"
        + (
            f"<p>Rows of <code>{escape(program.rows)}</code> <small>{escape(program.source)}</small></p>"
            if program.rows
            else ""
        )
        + (f"<p>Instead of: {escape(count_names(program.operators))}</p>")
        + (f"<p>Never written, a row per edge each: {escape(unwritten)}</p>" if unwritten else "")
        + _rows(("", "", "shape", "bytes", "how", "from"), rows, numbers=(3,))
        + f'<h2>Program</h2><pre class="text">{escape(program.text.strip())}</pre>'
        + f'<h2>C++</h2><pre class="code">{escape(code)}</pre></aside>'
    )
