"""Graphs in .npz files: the keys README.md describes, each checked when it is read.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import DataError


class NpzFile:
    """The arrays of one file; a missing or broken one is an error that names file and key, expected and got."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
                self.arrays: Mapping[str, np.ndarray[Any, Any]] = dict(archive)
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not a readable .npz file ({type(error).__name__}: {error})") from error

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def broken(self, key: str, expected: str, got: str) -> DataError:
        return DataError(f"{self.path}: key {key!r}: expected {expected}, got {got}")

    def array(self, key: str, expected: str, *, ndim: int, kinds: str) -> np.ndarray[Any, Any]:
        """The array under key, with its number of dimensions and its dtype kind checked."""
        if key not in self.arrays:
            present = ", ".join(sorted(self.arrays)) or "nothing"
            raise DataError(f"{self.path}: key {key!r} is missing: expected {expected}; the file has {present}")
        found = self.arrays[key]
        if found.ndim != ndim or found.dtype.kind not in kinds:
            raise self.broken(key, expected, f"{found.dtype} {list(found.shape)}")
        return found

    def number(self, key: str, expected: str) -> int:
        return int(self.array(key, expected, ndim=0, kinds="iu"))

    def index(self, key: str, expected: str, limit: int) -> np.ndarray[Any, Any]:
        """An int vector with entries in [0, limit)."""
        found = self.array(key, expected, ndim=1, kinds="iu").astype(np.int64)
        self.check_range(key, found, limit)
        return found

    def check_range(self, key: str, found: np.ndarray[Any, Any], limit: int) -> None:
        if found.size and not (found.min() >= 0 and found.max() < limit):
            wrong = int(found.min()) if found.min() < 0 else int(found.max())
            raise self.broken(key, f"entries from 0 to {limit - 1}", str(wrong))


def read_edges(file: NpzFile) -> tuple[Tensor, int]:
    """edge_index in both directions where the file stores pairs once -> (int64 [2, E], number of nodes)."""
    num_nodes = file.number("num_nodes", "the number of nodes, one int")
    edges = file.array("edge_index", "int [2, E]", ndim=2, kinds="iu").astype(np.int64)
    if edges.shape[0] != 2:
        raise file.broken("edge_index", "int [2, E]", str(list(edges.shape)))
    file.check_range("edge_index", edges, num_nodes)
    if file.number("undirected", "0 or 1: is each pair stored once") != 0:
        edges = np.concatenate([edges, edges[::-1][:, edges[0] != edges[1]]], axis=1)
    return torch.from_numpy(np.ascontiguousarray(edges)), num_nodes


def read_features(file: NpzFile, num_nodes: int) -> Tensor | None:
    """Dense float32 [N, F] from any of the four ways a file may store them; None where it has none."""
    if "x" in file:
        x = file.array("x", f"float [{num_nodes}, F]", ndim=2, kinds="fiu").astype(np.float32)
    elif "x_bits" in file:
        x = _unpack_bits(file)
    elif "x_indptr" in file:
        x = _unpack_rows(file)
    else:
        return None
    if len(x) != num_nodes:
        raise file.broken("x" if "x" in file else "x_shape", f"{num_nodes} rows, as num_nodes says", f"{len(x)} rows")
    return torch.from_numpy(x)


def _unpack_bits(file: NpzFile) -> np.ndarray[Any, Any]:
    """0/1 rows packed to bits; with x_codes the ones stand for values, found through one table per column."""
    num_rows, num_columns = _feature_shape(file)
    packed = file.array("x_bits", "uint8 [N, ceil(F / 8)]", ndim=2, kinds="u")
    if packed.shape != (num_rows, -(-num_columns // 8)):
        raise file.broken("x_bits", f"uint8 [{num_rows}, {-(-num_columns // 8)}]", str(list(packed.shape)))
    x = np.unpackbits(packed, axis=1)[:, :num_columns].astype(np.float32)
    if "x_codes" not in file:
        return x
    rows, columns = np.nonzero(x)
    codes = file.array("x_codes", "uint, one a set bit", ndim=1, kinds="iu").astype(np.int64)
    if len(codes) != len(rows):
        raise file.broken("x_codes", f"{len(rows)} entries, one a set bit", str(len(codes)))
    table = file.array("x_table", "float values", ndim=1, kinds="f")
    table_ptr = file.array("x_table_ptr", f"int [{num_columns + 1}]", ndim=1, kinds="iu").astype(np.int64)
    if len(table_ptr) != num_columns + 1:
        raise file.broken("x_table_ptr", f"int [{num_columns + 1}]", f"[{len(table_ptr)}]")
    where = table_ptr[columns] + codes
    file.check_range("x_codes", where, len(table))
    x[rows, columns] = table[where]
    return x


def _unpack_rows(file: NpzFile) -> np.ndarray[Any, Any]:
    """Sparse rows: x_indptr [N + 1], x_indices [nnz], x_data [nnz] (ones where it is missing)."""
    num_rows, num_columns = _feature_shape(file)
    indptr = file.array("x_indptr", f"int [{num_rows + 1}]", ndim=1, kinds="iu").astype(np.int64)
    indices = file.index("x_indices", "int column numbers", num_columns)
    if len(indptr) != num_rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise file.broken(
            "x_indptr",
            f"{num_rows + 1} rising entries from 0 to {len(indices)}",
            f"{len(indptr)} entries, last {int(indptr[-1]) if len(indptr) else None}",
        )
    x = np.zeros((num_rows, num_columns), np.float32)
    rows = np.repeat(np.arange(num_rows), np.diff(indptr))
    data = file.array("x_data", f"number [{len(indices)}]", ndim=1, kinds="fiu") if "x_data" in file else np.ones(1, np.float32)
    if "x_data" in file and len(data) != len(indices):
        raise file.broken("x_data", f"[{len(indices)}]", f"[{len(data)}]")
    x[rows, indices] = data
    return x


def _feature_shape(file: NpzFile) -> tuple[int, int]:
    shape = file.array("x_shape", "int [2]: rows, columns", ndim=1, kinds="iu")
    if len(shape) != 2:
        raise file.broken("x_shape", "int [2]: rows, columns", f"[{len(shape)}]")
    return int(shape[0]), int(shape[1])
