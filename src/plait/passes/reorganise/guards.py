"""What every law asks before it moves work: are the rows there fewer?"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import optimization_hint

from plait.passes.domains import Domains
from plait.passes.edit import value
from plait.passes.reorganise.terms import Form
from plait.passes.selection import is_selection

# of smaller sizes nothing is concluded: the first graph seen may be tiny, and the compiled model is for all that follow
_MIN_ROWS = 512


def expected(size: Any) -> int | None:
    """How large a size is in the call that is being compiled, as an estimate: adds no guard. None where nobody knows."""
    if isinstance(size, int):
        return size
    if not isinstance(size, torch.SymInt) or not size.node.has_hint():
        return None
    return int(optimization_hint(size))


def leaves_edges(form: Form, domains: Domains) -> bool:
    """Whether the terms of a form are gathered to edges. Nodes read at the positions of a batch are no edges, if there are
    maps into those nodes too; rows chosen by a mask are fewer than before, not more."""
    return all(domains.is_edge(end.index) and not is_selection(end.index) for end in form.ends)


def is_more_work(before: list[tuple[Any, float]], after: list[tuple[Any, float]]) -> bool:
    """Whether `after` is known to be more than `before`, each a list of (number of rows, work per row)."""
    sizes = [expected(size) for size, _ in (*before, *after)]
    if any(size is None or size < _MIN_ROWS for size in sizes):
        return False
    return _total(after) > _total(before)


def _total(parts: list[tuple[Any, float]]) -> float:
    return sum((expected(size) or 0) * work for size, work in parts)


def has_more_rows(form: Form) -> bool:
    """Whether some end of a form is known to have more rows than there are edges."""
    num_edges = value(form.rows).shape[0]
    return any(is_more_work([(num_edges, 1)], [(value(end.like).shape[0], 1)]) for end in form.ends)
