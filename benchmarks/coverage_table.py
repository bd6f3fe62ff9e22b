"""The page and the lines that `coverage.py` writes."""

from __future__ import annotations

import pathlib
import re
import statistics

from coverage_cases import GROUPS
from coverage_measure import Row

FEATURE_COLUMNS = (
    16  # a quarter of the features: what is narrower (weights per edge and head, positions) is no feature per edge
)
_MARK = "<!-- below: written by benchmarks/coverage.py --markdown -->"
_PLACE = re.compile(r" \(at .*\)$")  # where in PyG's code: a path of this machine


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "| | right | breaks | programs | columns per edge, eager | plait | over eager | over Inductor | what is left, and why |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        right = {True: "yes", False: "**no**", None: "cannot run" if row.eager_error else "?"}[row.is_right]
        cells = (
            row.name.partition("/")[2],
            right,
            len(row.breaks),
            row.num_programs,
            _columns(row.eager_columns),
            _columns(row.plait_columns),
            _ratio(row, "eager"),
            _ratio(row, "inductor"),
            _remarks(row),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _columns(pair: tuple[int, int] | None) -> str:
    return f"{pair[0]}, {pair[1]}" if pair is not None else ""


def _ratio(row: Row, other: str) -> str:
    ratio = row.ratio(other)
    if ratio is None:
        return "fails" if other in row.failed else ""
    return f"**{ratio:.2f}**" if ratio < 0.95 else f"{ratio:.2f}"


def _remarks(row: Row) -> str:
    said = [
        *row.wrong,
        *([row.error] if row.error and not row.eager_error else []),
        *([f"eager: {row.eager_error}"] if row.eager_error else []),
        *(f"break: {item}" for item in dict.fromkeys(row.breaks)),
        *row.reasons,
    ]
    said = [_PLACE.sub("", item) for item in said]
    said = [item.replace("|", "/").replace("\n", " ").replace(" runs unfused", "").replace("aten.", "") for item in said]
    return "; ".join(item if len(item) < 220 else item[:217] + "..." for item in said)


def summary(rows: list[Row]) -> str:
    lines = []
    rows = [row for row in rows if not row.eager_error]
    right = [row for row in rows if row.is_right]
    lines.append(f"{len(right)} of {len(rows)} right")
    seen = [row for row in rows if row.plait_columns is not None]
    if seen:
        free = [row for row in seen if max(row.plait_columns or (0, 0)) < FEATURE_COLUMNS]
        lines.append(f"{len(free)} of {len(seen)} make no tensor with {FEATURE_COLUMNS} or more columns per edge")
    for other in ("eager", "inductor"):
        ratios = [ratio for row in rows if (ratio := row.ratio(other)) is not None]
        if ratios:
            slow = sum(ratio < 0.95 for ratio in ratios)
            mean = statistics.geometric_mean(ratios)
            lines.append(f"geometric mean over {other}: {mean:.2f} ({len(ratios)} cases, {slow} below 0.95)")
    return "\n".join(lines)


def page(rows: list[Row], path: pathlib.Path) -> str:
    """What a page says above the mark, and below it a table per group."""
    head = path.read_text().partition(_MARK)[0] if path.exists() else ""
    parts = [f"{head}{_MARK}\n", f"## All\n\n{as_list(summary(rows))}\n"]
    for group in GROUPS:
        of_group = [row for row in rows if row.name.startswith(f"{group}/")]
        if of_group:
            parts.append(f"## {group}\n\n{as_list(summary(of_group))}\n\n{as_markdown(of_group)}\n")
    return "\n".join(parts)


def as_list(text: str) -> str:
    return "\n".join(f"- {line}" for line in text.splitlines())
