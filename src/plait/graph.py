"""The graph at run time: orderings of a fine domain by its index maps, found again by content.

Tensors of the user are never recognised by identity or version: writes through `.data` and `.numpy()` leave both as they were.
What is recognised is content, by a 128-bit hash that is read at the speed of memory.

Legend: E fine rows (edges), N coarse rows.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import logging
import pathlib
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plait import memory
from plait.errors import CompilerError, IndexMapError, ShapeError
from plait.native import library
from plait.structure_cache import STRUCTURE

_log = logging.getLogger(__name__)

_INT32_END = 2**31
_SOURCE = pathlib.Path(__file__).parent / "native" / "graph.cpp"
_MAP_DTYPES = (torch.int32, torch.int64)
_SORTED, _UNSORTED = -2, -1  # what a scan says when every entry is inside its range


_TWO_WORDS = ctypes.c_uint64 * 2


class ContentKey(NamedTuple):  # not a dataclass: it is hashed in every call of every kernel, and a tuple is ten times faster
    """high, low: 128 bits of hash; shape and dtype of the tensor."""

    high: int
    low: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Ordering:
    """A fine domain ordered by one map, other maps permuted along.

    num_edges, num_rows: E and N (N is 0 for the natural order).
    indptr: int64 [N + 1]; None for the natural (user's) order.
    edge_id: int32 (int64 if E >= 2^31) [E], position in the user's order of entry k; None if entry k is k, and where
        it was not requested, unless it was there.
    indices: the other maps, permuted, each [E]; all int32 if every range is below 2^31, otherwise all int64.
    is_identity: whether entry k is the user's edge k: the natural order, or a map that ascends already.
    """

    num_edges: int
    num_rows: int
    indptr: Tensor | None
    edge_id: Tensor | None
    indices: tuple[Tensor, ...]
    is_identity: bool

    def of_sorted(self) -> Ordering:
        """The same for edge tensors that are sorted like it: entry k of them is entry k."""
        return dataclasses.replace(self, edge_id=None, is_identity=True)


@dataclass(frozen=True, eq=False)
class _Sort:
    """What orderings by one map share; it lives as long as one of them is cached."""

    indptr: Tensor
    edge_id: Tensor | None
    is_identity: bool


# ---------------------------------------------------------------------------------------------------------------- content

# By address first: that is all that most lookups, of tensors that are not frozen, have to pay for.
_FROZEN: dict[int, dict[Hashable, ContentKey]] = {}


def freeze(t: Tensor, key: ContentKey | None = None) -> Tensor:
    """Remember the content of a tensor that nobody but plait can write to; the tensor itself.

    From then on, while this tensor object lives, `content_key` of it or of an alias (same memory, shape, strides and dtype)
    costs nothing. `key`: its content key, if the caller knows it.
    """
    found = content_key(t) if key is None else key
    _FROZEN.setdefault(t.data_ptr(), {})[_place(t)] = found
    # It runs before the memory can be given to another tensor.
    weakref.finalize(t, _thaw, t.data_ptr(), _place(t)).atexit = False
    return t


def _thaw(address: int, place: Hashable) -> None:
    here = _FROZEN.get(address, {})
    here.pop(place, None)
    if not here:
        _FROZEN.pop(address, None)


def _place(t: Tensor) -> Hashable:
    return t.shape, t.stride(), t.dtype


def content_key(t: Tensor) -> ContentKey:
    """The content of a tensor as a dictionary key: equal for equal shape, dtype and values (bit by bit), else different."""
    address = t.data_ptr()
    here = _FROZEN.get(address)
    frozen = here.get(_place(t)) if here else None
    if frozen is not None:
        return frozen
    shape, dtype = t.shape, t.dtype
    native = _native()
    if native is None or not t.is_cpu:
        plain = t.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
        digest = hashlib.blake2b(plain.view(-1).view(torch.uint8).numpy().data, digest_size=16).digest()
        return ContentKey(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"), shape, dtype)
    out = _TWO_WORDS()
    if len(shape) == 1 and dtype in _MAP_DTYPES:
        native.plait_hash(address, shape[0], t.stride(0), dtype.itemsize, library.num_threads(), out)
        return ContentKey(out[0], out[1], shape, dtype)
    if dtype not in _MAP_DTYPES or not t.is_contiguous():
        t = t.detach().resolve_conj().resolve_neg().contiguous()
    native.plait_hash(t.data_ptr(), t.numel() * dtype.itemsize, 1, 1, library.num_threads(), out)
    return ContentKey(out[0], out[1], shape, dtype)


# -------------------------------------------------------------------------------------------------------------- orderings

# Sorts by (content of the map, N), alive while a cached ordering holds them.
_SORTS: weakref.WeakValueDictionary[Hashable, _Sort] = weakref.WeakValueDictionary()


def ordered(rows: Tensor, num_rows: int, others: Sequence[tuple[Tensor, int]], *, with_edge_id: bool) -> Ordering:
    """The fine domain sorted by `rows`; within a row, edges keep the user's order.

    rows: int32 or int64 [E], entries in [0, num_rows); others: maps int32 or int64 [E], each with the size of its range.
    Built once for every content. Raises IndexMapError for an entry outside its range or a dtype that is not int32 or int64,
    ShapeError for maps that are not vectors of one length.

    >>> found = ordered(torch.tensor([1, 0, 1]), 2, [(torch.tensor([5, 6, 7]), 8)], with_edge_id=True)
    >>> found.indptr.tolist(), found.edge_id.tolist(), found.indices[0].tolist()
    ([0, 1, 3], [1, 0, 2], [6, 5, 7])
    """
    rows_key = (content_key(rows), num_rows)
    others_key = tuple([(content_key(other), size) for other, size in others])
    found = STRUCTURE.get(("ordered", rows_key, others_key, with_edge_id))
    if found is not None:
        ordering: Ordering = found[0]
        return ordering
    # Without it, one that was built with edge_id serves as well.
    wider = None if with_edge_id else STRUCTURE.get(("ordered", rows_key, others_key, True))
    if wider is not None:
        wide: Ordering = wider[0]
        return wide
    _check_vectors((rows, *[other for other, _ in others]), rows.numel())
    with torch.inference_mode(False):  # what is cached here must serve a training step too
        sort, indices = _sort(rows, num_rows, others, with_edge_id, _SORTS.get(rows_key))
    _SORTS[rows_key] = sort
    edge_id = sort.edge_id if with_edge_id else None
    ordering = Ordering(rows.shape[0], num_rows, sort.indptr, edge_id, indices, sort.is_identity)
    held = [tensor for tensor in (sort.indptr, sort.edge_id, *indices) if tensor is not None]
    group = frozenset({rows_key, *others_key})  # by dst and by src: the same maps in other roles
    STRUCTURE.put(("ordered", rows_key, others_key, with_edge_id), (ordering, sort), _num_bytes(held), group)
    return ordering


def is_frozen(t: Tensor) -> bool:
    """Whether plait alone can write to the tensor (see `freeze`)."""
    here = _FROZEN.get(t.data_ptr())
    return here is not None and _place(t) in here


def sorted_values(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Edge values [E, ...] in the order of `ordered(rows, num_rows, ...)`, computed once for every content.

    For values that depend on the graph alone, such as a normalisation: a kernel then reads them as they come.

    >>> sorted_values(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), 2).tolist()
    [2.0, 1.0, 3.0]
    """
    rows_key = (content_key(rows), num_rows)
    key = ("values", content_key(values), rows_key)
    found = STRUCTURE.get(key)
    if found is None:
        edge_id = ordered(rows, num_rows, (), with_edge_id=True).edge_id
        with torch.inference_mode(False), torch.no_grad():
            found = values if edge_id is None else values.index_select(0, edge_id)
        STRUCTURE.put(key, found, _num_bytes((found,)), frozenset({rows_key}))
    result: Tensor = found
    return result


def natural(num_edges: int, others: Sequence[tuple[Tensor, int]]) -> Ordering:
    """The fine domain in the user's order: maps checked, and narrowed to int32 where they fit. Raises as `ordered` does."""
    key = ("natural", num_edges, tuple([(content_key(other), size) for other, size in others]))
    found = STRUCTURE.get(key)
    if found is not None:
        ordering: Ordering = found
        return ordering
    _check_vectors([other for other, _ in others], num_edges)
    with torch.inference_mode(False):
        for position, (other, size) in enumerate(others):
            _scan(other, size, f"map {position}")
        dtype = _index_dtype(others)
        indices = tuple([_copy(other, dtype) for other, _ in others])
    ordering = Ordering(num_edges, 0, None, None, indices, is_identity=True)
    STRUCTURE.put(key, ordering, _num_bytes(indices))
    return ordering


def prepare() -> None:
    """Start to build the native half of this module, so that it is there when the first graph comes."""
    library.build(_source(), "graph")


def _sort(
    rows: Tensor, num_rows: int, others: Sequence[tuple[Tensor, int]], with_edge_id: bool, known: _Sort | None
) -> tuple[_Sort, tuple[Tensor, ...]]:
    """Sort by `rows`, or permute by a sort that is known already; the sort and the other maps in its order."""
    order = _UNSORTED if known is not None else _scan(rows, num_rows, "the ordering map")
    for position, (other, size) in enumerate(others):
        _scan(other, size, f"map {position}")
    dtype = _index_dtype(others)
    if order == _SORTED:
        known = _Sort(_pointers(rows, num_rows), None, is_identity=True)
    if known is not None and known.is_identity:
        return known, tuple([_copy(other, dtype) for other, _ in others])
    if known is not None and known.edge_id is not None:
        edge_id = known.edge_id
        return known, tuple([_permuted(edge_id, other, dtype) for other, _ in others])
    if len(others) == 1 and dtype is torch.int32 and not with_edge_id:
        # The map itself is the payload of the sort: no permutation is written, and nothing is gathered through it.
        indptr, index = _counting_sort(rows, num_rows, others[0][0], dtype)
        return known or _Sort(indptr, None, is_identity=False), (index,)
    id_dtype = torch.int32 if rows.shape[0] < _INT32_END else torch.int64
    indptr, edge_id = _counting_sort(rows, num_rows, None, id_dtype)
    indices = tuple([_permuted(edge_id, other, dtype) for other, _ in others])
    return _Sort(known.indptr if known else indptr, edge_id if with_edge_id else None, is_identity=False), indices


def _check_vectors(maps: Sequence[Tensor], length: int) -> None:
    for position, index in enumerate(maps):
        if index.dtype not in _MAP_DTYPES:
            raise IndexMapError(
                f"index map: expected int64 or int32, got {str(index.dtype).removeprefix('torch.')} (map {position})\n"
                "  Convert it with .long(); a mask becomes an index map with .nonzero()."
            )
        if index.dim() != 1:
            raise ShapeError(f"index map: expected one dimension, got shape {list(index.shape)} (map {position})")
        if index.shape[0] != length:
            raise ShapeError(
                f"index map: maps of one domain have one length, expected {length}, got {index.shape[0]} (map {position})"
            )


def _index_dtype(others: Sequence[tuple[Tensor, int]]) -> torch.dtype:
    return torch.int32 if all(size < _INT32_END for _, size in others) else torch.int64


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


# -------------------------------------------------- native steps; each with its meaning in torch, for when there is no compiler


@functools.lru_cache(maxsize=1)
def _source() -> str:
    return _SOURCE.read_text()


@functools.lru_cache(maxsize=1)
def _native() -> ctypes.CDLL | None:
    """The built graph.cpp, or None if it cannot be built (said once)."""
    try:
        native = library.build_now(_source(), "graph")
    except CompilerError as error:
        _log.warning("%s\n  Graphs are ordered by torch operators instead: same results, slower.", error)
        return None
    pointer, count, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    index = (pointer, count, count, small)  # data, length, stride, bytes per element
    native.plait_hash.argtypes = (*index, small, pointer)
    native.plait_hash.restype = None
    native.plait_scan.argtypes = (*index, count, small)
    native.plait_scan.restype = count
    native.plait_sort.argtypes = (*index, count, pointer, count, small, pointer, pointer, small, small)
    native.plait_sort.restype = small
    native.plait_pointers.argtypes = (*index, count, pointer, small)
    native.plait_pointers.restype = None
    native.plait_permute.argtypes = (*index, pointer, small, pointer, small, small)
    native.plait_permute.restype = None
    return native


def _argument(index: Tensor) -> tuple[int, int, int, int]:
    return index.data_ptr(), index.shape[0], index.stride(0), index.itemsize


def _scan(index: Tensor, size: int, what: str) -> int:
    """Whether a map ascends: _SORTED or _UNSORTED. Raises IndexMapError for the first entry outside [0, size)."""
    native = _native()
    if native is not None:
        found: int = native.plait_scan(*_argument(index), size, library.num_threads())
    else:
        outside = ((index < 0) | (index >= size)).nonzero()
        ascends = bool((index[1:] >= index[:-1]).all())
        found = int(outside[0]) if outside.numel() else _SORTED if ascends else _UNSORTED
    if found >= 0:
        raise IndexMapError.outside(what, int(index[found]), found, size)
    return found


def _counting_sort(rows: Tensor, num_rows: int, payload: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """indptr int64 [N + 1], and the payload [E] (the positions if None) sorted by row, stable, as `dtype`."""
    native = _native()
    if native is None:
        order = torch.sort(rows, stable=True).indices
        return _pointers(rows, num_rows), (order if payload is None else payload[order]).to(dtype)
    indptr = memory.empty((num_rows + 1,), torch.int64)
    out = memory.empty(rows.shape, dtype)
    source = (None, 0, 0) if payload is None else (payload.data_ptr(), payload.stride(0), payload.itemsize)
    failed = native.plait_sort(
        *_argument(rows), num_rows, *source, indptr.data_ptr(), out.data_ptr(), out.itemsize, library.num_threads()
    )
    if failed:
        raise MemoryError(f"sorting {rows.shape[0]} edges by row: no memory for {8 * rows.shape[0]} bytes")
    return indptr, out


def _pointers(rows: Tensor, num_rows: int) -> Tensor:
    """indptr int64 [N + 1] of rows that ascend (without a compiler: of any rows)."""
    native = _native()
    if native is None:
        return torch.nn.functional.pad(torch.bincount(rows, minlength=num_rows).cumsum(0), (1, 0))
    indptr = memory.empty((num_rows + 1,), torch.int64)
    native.plait_pointers(*_argument(rows), num_rows, indptr.data_ptr(), library.num_threads())
    return indptr


def _permuted(edge_id: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """index[edge_id] as `dtype`, [E]."""
    native = _native()
    if native is None:
        return index[edge_id].to(dtype)
    out = memory.empty(index.shape, dtype)
    ids, target = (edge_id.data_ptr(), edge_id.itemsize), (out.data_ptr(), out.itemsize)
    native.plait_permute(*_argument(index), *ids, *target, library.num_threads())
    return out


def _copy(index: Tensor, dtype: torch.dtype) -> Tensor:
    # Always a copy: the user may write to the map later, and what is cached must stay what its key says.
    return memory.empty(index.shape, dtype).copy_(index)
