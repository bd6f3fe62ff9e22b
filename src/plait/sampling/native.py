"""sampler.cpp through ctypes: built at first use, called without the GIL."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from plait import memory
from plait.sampling import libraries
from plait.sampling.request import Ids, Request, Rules, Sampled

if TYPE_CHECKING:
    from plait.sampling.topology import Topology

_REPLACE, _DISJOINT, _LAST, _INDUCED = 1, 2, 4, 8


class _Relation(ctypes.Structure):
    _fields_ = (
        ("src_type", ctypes.c_int32),
        ("dst_type", ctypes.c_int32),
        ("indptr", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("time", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("cumulative", ctypes.c_void_p),
    )


class _Graph(ctypes.Structure):
    _fields_ = (
        ("num_types", ctypes.c_int32),
        ("num_relations", ctypes.c_int32),
        ("num_nodes", ctypes.c_void_p),
        ("relations", ctypes.c_void_p),
    )


class _Request(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_uint64),
        ("hops", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("fanouts", ctypes.c_void_p),
        ("seeds", ctypes.c_void_p),
        ("num_seeds", ctypes.c_void_p),
        ("seed_times", ctypes.c_void_p),
    )


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The built sampler, or None if it cannot be built (said once)."""
    pointer, count, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    return libraries.load(
        "sampler.cpp",
        {
            "plait_sampler_new": (pointer, (pointer,)),
            "plait_sampler_delete": (None, (pointer,)),
            "plait_sampler_run": (ctypes.c_int, (pointer, pointer)),
            "plait_sampler_counts": (None, (pointer, pointer, pointer, pointer)),
            "plait_sampler_nodes": (None, (pointer, small, pointer, pointer)),
            "plait_sampler_edges": (None, (pointer, small, pointer, small, pointer, pointer, pointer)),
            "plait_cumulate": (None, (pointer, count, pointer, pointer)),
        },
        instead="Batches are sampled with NumPy instead: the same batches, slower.",
    )


class NativeSampler:
    """Samples batches of one graph, one at a time: every thread has its own. `close` releases what it holds."""

    def __init__(self, native: ctypes.CDLL, topology: Topology, rules: Rules) -> None:
        self._native, self._topology, self._rules = native, topology, rules
        flags = ((rules.replace, _REPLACE), (rules.disjoint, _DISJOINT), (rules.last, _LAST), (rules.induced, _INDUCED))
        self._flags = sum(bit for wanted, bit in flags if wanted)
        self._fanouts = np.ascontiguousarray(rules.fanouts, np.int64)
        relations = [
            _Relation(r.src_type, r.dst_type, _at(r.indptr), _at(r.indices), _at(r.time), _at(r.weight), _at(r.cumulative))
            for r in topology.relations
        ]
        array = (_Relation * len(relations))(*relations)
        num_nodes = np.array(topology.num_nodes, np.int64)
        # only read by the constructor; the arrays they point to live as long as the topology
        graph = _Graph(len(num_nodes), len(relations), _at(num_nodes), ctypes.addressof(array))
        self._workspace = native.plait_sampler_new(ctypes.byref(graph))
        if not self._workspace:
            raise MemoryError("sampling: no memory for a sampler")

    def sample(self, request: Request) -> Sampled:
        """One batch. Raises MemoryError if there is no memory for it."""
        seeds = [np.ascontiguousarray(ids, np.int64) for ids in request.seeds]
        times = [None if time is None else np.ascontiguousarray(time, np.int64) for time in request.times]
        seed_array = (ctypes.c_void_p * len(seeds))(*[_at(ids) for ids in seeds])
        time_array = (ctypes.c_void_p * len(times))(*[_at(time) for time in times])
        num_seeds = np.array([len(ids) for ids in seeds], np.int64)
        asked = _Request(
            request.key,
            len(self._fanouts),
            self._flags,
            _at(self._fanouts),
            ctypes.addressof(seed_array),
            _at(num_seeds),
            ctypes.addressof(time_array),
        )
        if self._native.plait_sampler_run(self._workspace, ctypes.byref(asked)):
            raise MemoryError(f"sampling: no memory for a batch of {int(num_seeds.sum())} seeds and {len(self._fanouts)} hops")
        return self._result()

    def close(self) -> None:
        """Release the workspace; the sampler cannot be used again."""
        workspace, self._workspace = self._workspace, None
        if workspace:
            self._native.plait_sampler_delete(workspace)

    def __del__(self) -> None:
        if getattr(self, "_workspace", None):
            self.close()

    def _result(self) -> Sampled:
        num_types, num_relations, hops = len(self._topology.num_nodes), len(self._topology.relations), len(self._fanouts)
        nodes_per_hop = np.empty((num_types, hops + 1), np.int64)
        edges_per_hop = np.empty((num_relations, hops), np.int64)
        num_edges = np.empty(num_relations, np.int64)
        self._native.plait_sampler_counts(self._workspace, _at(nodes_per_hop), _at(edges_per_hop), _at(num_edges))
        nodes, trees, edges, edge_ids = [], [], [], []
        for number, num_rows in enumerate(nodes_per_hop.sum(axis=1).tolist()):
            ids = memory.empty((num_rows,), torch.int64)
            tree = memory.empty((num_rows,), torch.int64) if self._rules.disjoint else None
            self._native.plait_sampler_nodes(self._workspace, number, ids.data_ptr(), None if tree is None else tree.data_ptr())
            nodes.append(ids)
            if tree is not None:
                trees.append(tree)
        for number, relation in enumerate(self._topology.relations):
            edge_index = memory.empty((2, int(num_edges[number])), torch.int64)
            edge_id = memory.empty((int(num_edges[number]),), torch.int64)
            perm = relation.edge_id
            self._native.plait_sampler_edges(
                self._workspace,
                number,
                _at(perm),
                0 if perm is None else perm.itemsize,
                edge_index[0].data_ptr(),
                edge_index[1].data_ptr(),
                edge_id.data_ptr(),
            )
            edges.append(edge_index)
            edge_ids.append(edge_id)
        return Sampled(
            nodes=tuple(nodes),
            trees=tuple(trees) if self._rules.disjoint else None,
            edges=tuple(edges),
            edge_ids=tuple(edge_ids),
            nodes_per_hop=tuple(tuple(counts) for counts in nodes_per_hop.tolist()),
            edges_per_hop=tuple(tuple(counts) for counts in edges_per_hop.tolist()),
        )


def cumulate(indptr: Ids, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights summed up inside every row, one after the other."""
    out = np.empty_like(weight)
    native = load()
    if native is not None:
        native.plait_cumulate(_at(indptr), len(indptr) - 1, _at(weight), _at(out))
        return out
    for begin, end in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        np.cumsum(weight[begin:end], out=out[begin:end])
    return out


def _at(array: NDArray[Any] | None) -> int | None:
    """The address of an array's data."""
    return None if array is None else array.ctypes.data
