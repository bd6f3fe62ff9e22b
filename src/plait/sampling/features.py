"""Rows of features, wherever they are: in memory, in a memory-mapped file, in half precision; and a copy of those used most.

Legend: N rows (nodes or edges) of a graph, R rows of a batch, F features.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait import memory
from plait.sampling import libraries, pages

_COPY, _HALF_TO_FLOAT, _BFLOAT_TO_FLOAT = 0, 1, 2
_NARROW = {torch.float16: _HALF_TO_FLOAT, torch.bfloat16: _BFLOAT_TO_FLOAT}


class _Rows(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("hot", ctypes.c_void_p),
    )


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The built features.cpp, or None if it cannot be built (said once)."""
    pointer = ctypes.c_void_p
    return libraries.load(
        "features.cpp",
        {"plait_gather": (None, (pointer, pointer, ctypes.c_int64, ctypes.c_int32, pointer))},
        instead="Features are sliced by torch instead: the same rows, slower.",
    )


@dataclass(frozen=True, eq=False, slots=True)
class HotRows:
    """Rows that are asked for often, kept in memory. slots: int32 [N], place in `rows` or -1; rows: [K, ...], contiguous."""

    slots: NDArray[np.int32]
    rows: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class FeatureRows:
    """What a batch takes its rows from.

    data: [N, ...], or with `dim`, the rows along another dimension; or anything that a tensor of positions can index.
    upcast: float16 and bfloat16 rows arrive as float32.
    """

    data: Any
    dim: int = 0
    upcast: bool = False
    hot: HotRows | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that arrive."""
        dtype: torch.dtype = self.data.dtype
        return torch.float32 if self.upcast and dtype in _NARROW else dtype

    def gather(self, index: Tensor) -> Any:
        """Rows `index` (int64 [R]), in a buffer of the pool: [R, ...]."""
        native = load()
        if native is None or not self._is_plain():
            return self._indexed(index)
        data: Tensor = self.data
        out = memory.empty((index.shape[0], *data.shape[1:]), self.dtype)
        slots, hot = (None, None) if self.hot is None else (self.hot.slots.ctypes.data, self.hot.rows.data_ptr())
        rows = _Rows(data.data_ptr(), data.stride(0) * data.itemsize, data[0].numel() * data.itemsize, slots, hot)
        conversion = _NARROW[data.dtype] if self.upcast and data.dtype in _NARROW else _COPY
        native.plait_gather(ctypes.byref(rows), index.data_ptr(), index.shape[0], conversion, out.data_ptr())
        return out

    def _is_plain(self) -> bool:
        """Whether rows lie in memory one by one, each without gaps."""
        data = self.data
        if not isinstance(data, Tensor) or self.dim != 0 or data.layout != torch.strided or not data.is_cpu:
            return False
        return data.dim() > 0 and data.shape[0] > 0 and data[0].is_contiguous() and not data.is_conj()

    def _indexed(self, index: Tensor) -> Any:
        if not isinstance(self.data, Tensor):
            return self.data[index]
        found = self.data.detach().index_select(self.dim, index.to(self.data.device))
        return found.to(self.dtype) if found.dtype != self.dtype else found


def feature_rows(
    value: Any, *, dim: int = 0, upcast: bool = False, num_hot: int = 0, popularity: NDArray[np.int64] | None = None
) -> FeatureRows:
    """The rows of a tensor, a NumPy array or a memory-mapped `.npy` file (`np.load(path, mmap_mode="r")`).

    Large tensors are put on huge pages (`pages`), which changes nothing but the time that slicing takes.
    num_hot: so many rows of a memory-mapped file, those of the greatest popularity [N], are read now and kept in memory.
    """
    hot = None
    if isinstance(value, np.ndarray):
        mapped = isinstance(value, np.memmap)
        with warnings.catch_warnings():
            # about writing through the tensor, which nobody does
            warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
            data = torch.from_numpy(np.asarray(value))
        if mapped and num_hot > 0 and popularity is not None and dim == 0:
            hot = _keep_hot(data, popularity, num_hot)
        value = data
    if isinstance(value, Tensor) and dim == 0:
        pages.advise(value)
    return FeatureRows(value, dim, upcast, hot)


def _keep_hot(data: Tensor, popularity: NDArray[np.int64], num_hot: int) -> HotRows:
    num_hot = min(num_hot, data.shape[0])
    # ascending: the file is read from front to back
    chosen = np.sort(np.argpartition(-popularity, num_hot - 1)[:num_hot])
    slots = np.full(data.shape[0], -1, np.int32)
    slots[chosen] = np.arange(num_hot)
    return HotRows(slots, data[torch.from_numpy(chosen)].contiguous())
