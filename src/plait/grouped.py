"""Products of rows with a matrix that depends on the row's type: what the compiler makes of a matrix per edge.

`pairs` finds which rows meet which types, once each and sorted by type; `grouped_mm` multiplies them, one product per type, and
`grouped_total` is its weight gradient. In plain torch, on any device.

Legend: E fine rows, N coarse rows, R types, P pairs; group r of the pairs is [indptr[r], indptr[r + 1]).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from plait.errors import IndexMapError

_ROWS = 8192  # so many rows of a group at a time: what is gathered for a product stays in the cache
_BATCH_BYTES = 32 << 20  # of matrices, where groups are so small that several are multiplied at once


def pairs(rows: Tensor | None, types: Tensor, num_types: int) -> tuple[Tensor, Tensor, Tensor]:
    """The different (type, row) of the edges, in ascending order: the pair of each edge [E], the row of each pair [P], indptr.

    rows None: every edge is a pair of its own, and the row of a pair is the edge. Types in [-R, 0) count from the end.

    >>> [item.tolist() for item in pairs(torch.tensor([5, 7, 5, 6]), torch.tensor([1, 0, 1, 1]), 3)]
    [[1, 0, 1, 2], [7, 5, 6], [0, 1, 3, 3]]
    """
    _check(types, num_types)
    types = torch.where(types < 0, types + num_types, types).long()
    groups = torch.arange(num_types + 1, device=types.device)
    if rows is None:
        sorted_types, order = torch.sort(types, stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        return place, order, torch.searchsorted(sorted_types, groups)
    if rows.numel() == 0:
        return rows.long(), rows.long(), torch.zeros_like(groups)
    first = rows.min()
    span = rows.max() - first + 1
    found, pair = torch.unique(types * span + (rows - first), sorted=True, return_inverse=True)
    return pair, found % span + first, torch.searchsorted(torch.div(found, span, rounding_mode="floor"), groups)


def _check(types: Tensor, num_types: int) -> None:
    outside = ((types < -num_types) | (types >= num_types)).nonzero()
    if outside.numel():
        position = int(outside[0])
        raise IndexMapError(
            f"index map: the type holds {int(types[position])} at position {position}, but there are {num_types} matrices"
        )


def grouped_mm(x: Tensor, rows: Tensor | None, weight: Tensor, indptr: Tensor) -> Tensor:
    """y[p] = x[rows[p]] @ weight[type of p]: x [N, f], rows int [P] (None: p), weight [R, f, o], indptr [R + 1] -> [P, o].

    >>> weight, indptr = torch.tensor([[[2.0]], [[3.0]]]), torch.tensor([0, 1, 3])
    >>> grouped_mm(torch.ones(2, 1), torch.tensor([0, 1, 1]), weight, indptr).tolist()
    [[2.0], [3.0], [3.0]]
    """
    out = x.new_empty((x.shape[0] if rows is None else rows.shape[0], weight.shape[2]))
    if out.shape[0] < weight.shape[0]:
        return _batched_mm(x, rows, weight, indptr, out)
    for group, start, stop in _chunks(indptr):
        torch.mm(_rows(x, rows, start, stop), weight[group], out=out[start:stop])
    return out


def _batched_mm(x: Tensor, rows: Tensor | None, weight: Tensor, indptr: Tensor, out: Tensor) -> Tensor:
    """Where most types have no pair or one: a matrix is gathered for each pair."""
    types = torch.repeat_interleave(indptr.diff())
    step = max(1, _BATCH_BYTES // max(1, weight[0].numel() * weight.element_size()))
    for start in range(0, out.shape[0], step):
        stop = min(start + step, out.shape[0])
        out[start:stop] = torch.bmm(_rows(x, rows, start, stop).unsqueeze(1), weight[types[start:stop]]).squeeze(1)
    return out


def grouped_total(x: Tensor, rows: Tensor | None, y: Tensor, indptr: Tensor) -> Tensor:
    """The sum over each group of the outer products of x[rows[p]] and y[p]: x [N, f], y [P, o] -> [R, f, o].

    >>> grouped_total(torch.ones(2, 1), None, torch.tensor([[2.0], [3.0]]), torch.tensor([0, 0, 2])).tolist()
    [[[0.0]], [[5.0]]]
    """
    out = x.new_zeros((indptr.shape[0] - 1, x.shape[1], y.shape[1]))
    for group, start, stop in _chunks(indptr):
        out[group].addmm_(_rows(x, rows, start, stop).t(), y[start:stop])
    return out


def _chunks(indptr: Tensor) -> Iterator[tuple[int, int, int]]:
    """(group, start, stop) of a few thousand pairs of one group at a time, in order."""
    bounds = indptr.tolist()
    for group, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for start in range(begin, end, _ROWS):
            yield group, start, min(start + _ROWS, end)


def _rows(x: Tensor, rows: Tensor | None, start: int, stop: int) -> Tensor:
    return x[start:stop] if rows is None else x.index_select(0, rows[start:stop])
