"""NeighborLoader: batches around nodes, with the interface of PyG's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import OptionError, ShapeError
from plait.sampling.loader import BatchLoader, LoaderOptions, Prepared
from plait.sampling.plan import Sampler, SamplingOptions, as_ids
from plait.sampling.random import key_of
from plait.sampling.request import Ids, Request
from plait.sampling.source import FeatureOptions, Source


class NeighborLoader(BatchLoader):
    """Batches of seed nodes with their sampled neighbours, prepared ahead by threads.

    data: a Data or HeteroData of PyG, or a plait.loader.Graph.  num_neighbors: per hop, -1 for all; a dictionary by edge type
    for typed graphs.  input_nodes: seeds as numbers or mask, in typed graphs (type, seeds); None is all nodes.  input_time:
    int64, the time of every seed; where time_attr is of nodes, their own time if None.

    replace, subgraph_type, disjoint, temporal_strategy, time_attr, weight_attr, transform, and batch_size, shuffle, drop_last,
    num_workers (threads here): as in PyG.  upcast: float16 and bfloat16 features arrive as float32.  hot_rows: rows of every
    memory-mapped feature file kept in memory.  Other keywords: see LoaderOptions.

    A batch has the attributes of PyG's. Its edges ascend by dst; its first batch_size nodes are the seeds, in their order.
    Edges of weight 0 are never taken.  Raises OptionError, ShapeError, IndexMapError.

    >>> from plait.loader import Graph
    >>> ring = Graph(torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6]), 6, {"x": torch.arange(6.0)})
    >>> [batch.n_id.tolist() for batch in NeighborLoader(ring, [1, 1], batch_size=3)]
    [[0, 1, 2, 5, 4], [3, 4, 5, 2, 1]]
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        input_nodes: Any = None,
        input_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        is_sorted: bool = False,  # PyG's: what is sorted already is found out here
        filter_per_worker: bool | None = None,  # PyG's: threads always slice
        *,
        input_id: Tensor | None = None,
        directed: bool = True,  # PyG's older name of subgraph_type="induced"
        upcast: bool = False,
        hot_rows: int = 0,
        **options: Any,
    ) -> None:
        if input_time is not None and time_attr is None:
            raise OptionError(
                "Received conflicting 'input_time' and 'time_attr' arguments: 'input_time' is set, 'time_attr' is not"
            )
        sampling = SamplingOptions(
            num_neighbors=num_neighbors,
            replace=replace,
            subgraph_type=subgraph_type if directed else "induced",
            disjoint=disjoint,
            temporal_strategy=temporal_strategy,
            time_attr=time_attr,
            weight_attr=weight_attr,
        )
        parsed = LoaderOptions.parse(options)
        super().__init__(data, sampling, parsed, FeatureOptions(upcast=upcast, num_hot=hot_rows), transform)
        self.input_type, self.input_nodes, found_id = read_input_nodes(self.source, input_nodes)
        self.input_id = found_id if input_id is None else input_id
        self._seed_type = self.source.node_type(self.input_type)
        self.input_time = input_time
        self._times = self._seed_times(input_time)

    @property
    def num_seeds(self) -> int:
        return len(self.input_nodes)

    def prepare(self, sampler: Sampler, key: tuple[int, int, int], index: Tensor) -> Prepared:
        """One batch; see BatchLoader."""
        count = len(self.source.nodes)
        seeds: list[Ids] = [np.zeros(0, np.int64)] * count
        seeds[self._seed_type] = self.input_nodes[index].numpy()
        times: list[Ids | None] = [None] * count
        seed_time = None if self._times is None else self._times[index]
        if seed_time is not None:
            times[self._seed_type] = seed_time.numpy()
        sliced = self.slice(sampler, Request(key_of(*key), tuple(seeds), tuple(times)))
        about = (
            ("input_id", index if self.input_id is None else self.input_id[index]),
            ("seed_time", seed_time),
            ("batch_size", len(index)),
        )
        return Prepared(sliced, tuple((self.input_type, name, value) for name, value in about))

    def _seed_times(self, given: Tensor | None) -> Tensor | None:
        """int64 [seeds], or None where nothing is temporal."""
        if not self.plan.is_temporal:
            return None
        if given is not None:
            if len(given) != self.num_seeds:
                raise ShapeError(f"input_time: expected one time a seed, {self.num_seeds}, got shape {list(given.shape)}")
            return given.cpu().long()
        own = self.plan.node_times[self._seed_type]
        if own is None:
            raise OptionError("input_time: needed where time_attr is a time of edges, as the seeds have none of their own")
        return torch.from_numpy(own)[self.input_nodes]


def read_input_nodes(source: Source, given: Any) -> tuple[str | None, Tensor, Tensor | None]:
    """(type or None, int64 seeds, their input_id if it is not their place) from what PyG accepts as input_nodes."""
    name: str | None = None
    if source.is_typed:
        if given is None:
            raise OptionError("input_nodes: a typed graph needs a node type, or (node type, nodes)")
        name, given = (given, None) if isinstance(given, str) else given
    num_nodes = source.nodes[source.node_type(name)].num_nodes
    if given is None:
        return name, torch.arange(num_nodes), None
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        if given.numel() != num_nodes:
            raise ShapeError(f"input_nodes: expected a mask of {num_nodes} nodes, got shape {list(given.shape)}")
        found = given.flatten().nonzero().flatten().cpu()
        return name, found, found
    return name, as_ids(given, "input_nodes", num_nodes), None
