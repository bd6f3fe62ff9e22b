"""Straight code that repeats itself becomes a C loop.

Code is written with marked numbers (element offsets). Pieces whose text is equal but for those numbers are one loop body; the
numbers are then a linear function of the counter, or read from a table.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_MARK = re.compile("\x01(\\d+)\x02")


def mark(number: int) -> str:
    """A number that may differ between the rounds of a loop."""
    return f"\x01{number}\x02"


def plain(text: str) -> str:
    """The text with its marked numbers written out."""
    return _MARK.sub(lambda match: match[1], text)


def roll(pieces: Sequence[list[str]], counter: str) -> list[str]:
    """The pieces one after the other, runs of similar pieces as loops over `counter`.

    >>> roll([["a(" + mark(16 * i) + ");"] for i in range(3)], "g")
    ['for (i64 g = 0; g < 3; ++g) {', '  a((16 * g));', '}']
    """
    lines: list[str] = []
    start = 0
    texts = ["\n".join(piece) for piece in pieces]
    shapes = [_MARK.sub("\x03", text) for text in texts]
    while start < len(texts):
        end = start + 1
        while end < len(texts) and shapes[end] == shapes[start]:
            end += 1
        lines += _loop(texts[start:end], counter) if end - start > 1 else _scope(texts[start])
        start = end
    return lines


def _scope(text: str) -> list[str]:
    lines = plain(text).split("\n") if text else []
    return ["{", *("  " + line for line in lines), "}"] if lines else []


def _loop(texts: list[str], counter: str) -> list[str]:
    if not texts[0]:
        return []
    rounds = [[int(number) for number in _MARK.findall(text)] for text in texts]
    tables: dict[tuple[int, ...], str] = {}
    numbers = iter(zip(*rounds, strict=True))

    def number(_: re.Match[str]) -> str:
        column = next(numbers)
        steps = {b - a for a, b in itertools.pairwise(column)}
        if steps == {0}:
            return str(column[0])
        if len(steps) == 1:
            linear = f"{steps.pop()} * {counter}"
            return f"({linear})" if column[0] == 0 else f"({column[0]} + {linear})"
        name = tables.setdefault(column, f"{counter}_at{len(tables)}")
        return f"{name}[{counter}]"

    body = _MARK.sub(number, texts[0]).split("\n")
    lines = [f"static const i32 {name}[] = {{{', '.join(map(str, column))}}};" for column, name in tables.items()]
    lines += [f"for (i64 {counter} = 0; {counter} < {len(texts)}; ++{counter}) {{", *("  " + line for line in body), "}"]
    return ["{", *("  " + line for line in lines), "}"] if tables else lines


def tile_groups(count: int, run: int, size: int) -> list[list[int]]:
    """Numbers of tiles that are accumulated together: groups that look alike stand beside each other.

    Tiles come in runs (one per last axis). Long runs are cut; short ones are put together.

    >>> tile_groups(6, 3, 2)
    [[0, 1], [3, 4], [2], [5]]
    """
    if run <= size:
        whole = size // run * run
        return [list(range(first, min(first + whole, count))) for first in range(0, count, whole)]
    starts = range(0, count, run)
    groups: list[list[int]] = []
    rest: list[list[int]] = []
    for start in starts:
        for first in range(0, run, size):
            group = list(range(start + first, start + min(first + size, run)))
            (groups if len(group) == size else rest).append(group)
    return groups + rest


def indent(lines: Sequence[str]) -> list[str]:
    """The lines two columns to the right."""
    return ["  " + line if not line.startswith("#") else line for line in lines]
