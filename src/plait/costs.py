"""What work that plait may put in another order costs on this machine: numbers that were measured, and what follows from them.

A propagation (gather rows of one end, sum them at the other) is bound by how fast rows come: from which cache, and how wide.
So it is measured over both, with plait's own kernel, and read by interpolation between powers of two.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# rough: an operator inside of a kernel takes as long as so many operations of a matrix product; its vectors are loaded and
# stored and have no multiply-add; exp is some twenty instructions
_SIMPLE_FLOPS = 6.0
_FUNCTION_FLOPS = 100.0

_FORMAT = 1  # of the stored file; a file of another format is measured anew


@dataclass(frozen=True, kw_only=True)
class Costs:
    """gather_s[t][w]: seconds per edge of a sum of neighbours whose rows have row_bytes[w], from a table of table_bytes[t].

    product_flops: floating point operations a second of a matrix product. stream_bytes: bytes a second of reading and writing
    rows in order.
    """

    row_bytes: tuple[int, ...]
    table_bytes: tuple[int, ...]
    gather_s: tuple[tuple[float, ...], ...]
    product_flops: float
    stream_bytes: float

    def gather(self, row_bytes: float, num_rows: float) -> float:
        """Seconds per edge to gather and sum rows of `row_bytes` out of `num_rows`."""
        rows, column = _place(self.row_bytes, row_bytes)
        tables, line = _place(self.table_bytes, row_bytes * num_rows)
        corners = [[math.log(self.gather_s[t][w]) for w in rows] for t in tables]
        low, high = (_between(pair, column) for pair in corners)
        estimate = math.exp(_between((low, high), line))
        widest = self.row_bytes[-1]
        return estimate * max(1.0, row_bytes / widest)  # rows wider than what was measured: so many times the widest

    def product(self, rows: float, inner: float, columns: float) -> float:
        """Seconds of a matrix product [rows, inner] x [inner, columns]."""
        return 2.0 * rows * inner * columns / self.product_flops

    def elementwise(self, count: float, *, is_function: bool = False) -> float:
        """Seconds of an operator over so many numbers inside of a kernel; a function is one like exp, or a division."""
        return count * (_FUNCTION_FLOPS if is_function else _SIMPLE_FLOPS) / self.product_flops

    def stream(self, num_bytes: float) -> float:
        """Seconds to read or write so many bytes in order."""
        return num_bytes / self.stream_bytes


def _place(points: Sequence[int], at: float) -> tuple[tuple[int, int], float]:
    """Neighbouring points around a value on a logarithmic scale, and how far between them it lies, in [0, 1]."""
    at = min(max(at, points[0]), points[-1])
    high = min(max(bisect.bisect_left(points, at), 1), len(points) - 1)
    low = high - 1
    return (low, high), math.log(at / points[low]) / math.log(points[high] / points[low])


def _between(pair: Sequence[float], share: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * share


# Where nothing can be stored: a row costs its bytes, so that every process chooses alike.
BY_BYTES = Costs(
    row_bytes=(64, 1 << 20),
    table_bytes=(1, 1 << 40),
    gather_s=((4e-9, 4e-9 * (1 << 14)),) * 2,
    product_flops=1e11,
    stream_bytes=2e10,
)


def load(path: pathlib.Path) -> Costs | None:
    """What was stored, if it can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        if found.pop("format") != _FORMAT:
            return None
        found["row_bytes"], found["table_bytes"] = tuple(found["row_bytes"]), tuple(found["table_bytes"])
        found["gather_s"] = tuple(tuple(line) for line in found["gather_s"])
        costs = Costs(**found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return costs if _is_sound(costs) else None


def _is_sound(costs: Costs) -> bool:
    lines = [costs.row_bytes, costs.table_bytes, *costs.gather_s]
    return (
        len(costs.row_bytes) > 1
        and len(costs.table_bytes) > 1
        and len(costs.gather_s) == len(costs.table_bytes)
        and all(len(line) == len(costs.row_bytes) for line in costs.gather_s)
        and all(number > 0 for line in lines for number in line)
        and costs.product_flops > 0
        and costs.stream_bytes > 0
    )


def store(path: pathlib.Path, costs: Costs, *, overwrite: bool = True) -> None:
    """Writes the file at once, or not at all. Raises OSError; FileExistsError where it is there and must not be overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf8") as file:
            json.dump({"format": _FORMAT, **asdict(costs)}, file, indent=1)
        if overwrite:
            os.replace(name, path)
        else:
            os.link(name, path)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)
