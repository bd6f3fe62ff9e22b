"""LinkNeighborLoader: batches around edges, with negative edges, with the interface of PyG's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import OptionError, ShapeError
from plait.sampling.loader import BatchLoader, LoaderOptions, Prepared
from plait.sampling.negative import NegativeSampling, NodeDraw
from plait.sampling.plan import Sampler, SamplingOptions, as_ids
from plait.sampling.random import key_of
from plait.sampling.request import Ids, Request
from plait.sampling.source import FeatureOptions, Source

_SRC_DRAW, _DST_DRAW = 1, 2  # numbers of the random streams beside that of the picks


@dataclass(frozen=True, eq=False)
class _Ends:
    """The pairs of a batch, negatives behind positives. src, dst: int64 nodes; time: int64 of every src and of every dst."""

    src: Tensor
    dst: Tensor
    src_time: Tensor | None
    dst_time: Tensor | None


class LinkNeighborLoader(BatchLoader):
    """Batches of seed edges with the sampled neighbours of their ends.

    edge_label_index: int64 [2, seeds], in typed graphs (edge type, pairs) or an edge type; None is all edges.  edge_label,
    edge_label_time: one entry a seed.  neg_sampling: a NegativeSampling (PyG's or plait's), "binary", "triplet" or a
    dictionary; neg_sampling_ratio is the older form.  The rest is as in NeighborLoader.

    A batch has edge_label_index (rows of the batch) and edge_label, or with triplets src_index, dst_pos_index, dst_neg_index.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        edge_label_index: Any = None,
        edge_label: Tensor | None = None,
        edge_label_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        neg_sampling: Any = None,
        neg_sampling_ratio: float | None = None,
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        is_sorted: bool = False,  # PyG's: what is sorted already is found out here
        filter_per_worker: bool | None = None,  # PyG's: threads always slice
        *,
        input_id: Tensor | None = None,
        directed: bool = True,
        upcast: bool = False,
        hot_rows: int = 0,
        **options: Any,
    ) -> None:
        if (edge_label_time is not None) != (time_attr is not None):
            missing = "time_attr" if time_attr is None else "edge_label_time"
            raise OptionError(
                f"Received conflicting 'edge_label_time' and 'time_attr' arguments: '{missing}' is not set, and temporal "
                "sampling needs both"
            )
        if neg_sampling_ratio:
            neg_sampling = NegativeSampling("binary", neg_sampling_ratio)
        self.neg_sampling = NegativeSampling.cast(neg_sampling)
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
        self.input_type, self._ends, self._pairs = _read_pairs(self.source, edge_label_index)
        self.edge_label = self._checked_label(edge_label)
        self.edge_label_time = (
            None if edge_label_time is None else _one_each(edge_label_time, self.num_seeds, "edge_label_time")
        )
        self.input_id = input_id
        self._draws = self._make_draws()

    @property
    def num_seeds(self) -> int:
        return self._pairs.shape[1]

    def prepare(self, sampler: Sampler, key: tuple[int, int, int], index: Tensor) -> Prepared:
        """One batch; see BatchLoader."""
        ends = self._with_negatives(key_of(*key), index)
        seeds, times, src_rows, dst_rows = self._seeds(ends)
        sliced = self.slice(sampler, Request(key_of(*key), seeds, times))
        if self.plan.rules.disjoint and sliced.sampled.trees is not None:
            for trees in sliced.sampled.trees:  # both ends of a pair, and its negatives, share the number of the pair
                trees.remainder_(len(index))
        about = self._about_pairs(index, ends, src_rows, dst_rows)
        removed = ((self.input_type, "edge_label_index"), (self.input_type, "edge_label_time")) if self._is_triplet else ()
        return Prepared(sliced, tuple(about), removed)

    @property
    def _is_triplet(self) -> bool:
        return self.neg_sampling is not None and self.neg_sampling.is_triplet

    def _with_negatives(self, key: int, index: Tensor) -> _Ends:
        src, dst = self._pairs[0][index], self._pairs[1][index]
        time = None if self.edge_label_time is None else self.edge_label_time[index]
        negative = self.neg_sampling
        if negative is None or self._draws is None:
            return _Ends(src, dst, time, time)
        count = negative.num_negatives(len(index))
        # the i-th negative belongs to positive i modulo the number of positives
        own_time = None if time is None else time.repeat(math.ceil(negative.amount))[:count]
        latest = None if own_time is None else own_time.numpy()
        all_times = None if time is None or own_time is None else torch.cat([time, own_time])
        dst = torch.cat([dst, self._draws[1].draw(key_of(key, _DST_DRAW), latest, count)])
        if negative.is_triplet:
            return _Ends(src, dst, time, all_times)
        src = torch.cat([src, self._draws[0].draw(key_of(key, _SRC_DRAW), latest, count)])
        return _Ends(src, dst, all_times, all_times)

    def _seeds(self, ends: _Ends) -> tuple[tuple[Ids, ...], tuple[Ids | None, ...], Tensor, Tensor]:
        """Seeds and times by node type, and the rows that src and dst will have."""
        num_types = len(self.source.nodes)
        seeds: list[Ids] = [np.zeros(0, np.int64)] * num_types
        times: list[Ids | None] = [None] * num_types
        src_type, dst_type = self._ends
        if src_type == dst_type:
            joined, rows = self._numbered(torch.cat([ends.src, ends.dst]))
            seeds[src_type] = joined
            if ends.src_time is not None and ends.dst_time is not None:
                times[src_type] = torch.cat([ends.src_time, ends.dst_time]).numpy()
            return tuple(seeds), tuple(times), rows[: len(ends.src)], rows[len(ends.src) :]
        seeds[src_type], src_rows = self._numbered(ends.src)
        seeds[dst_type], dst_rows = self._numbered(ends.dst)
        times[src_type] = None if ends.src_time is None else ends.src_time.numpy()
        times[dst_type] = None if ends.dst_time is None else ends.dst_time.numpy()
        return tuple(seeds), tuple(times), src_rows, dst_rows

    def _numbered(self, ids: Tensor) -> tuple[Ids, Tensor]:
        """The seeds for these nodes, and the row of each: its own where trees are disjoint, else one for equal nodes."""
        if self.plan.rules.disjoint:
            return ids.numpy(), torch.arange(len(ids))
        unique, rows = np.unique(ids.numpy(), return_inverse=True)
        return unique, torch.from_numpy(rows)

    def _about_pairs(self, index: Tensor, ends: _Ends, src_rows: Tensor, dst_rows: Tensor) -> list[tuple[Any, str, Any]]:
        name = self.input_type
        found: list[tuple[Any, str, Any]] = [(name, "input_id", index if self.input_id is None else self.input_id[index])]
        if not self._is_triplet:
            return [
                *found,
                (name, "edge_label_index", torch.stack([src_rows, dst_rows])),
                (name, "edge_label", self._labels(index, len(src_rows) - len(index))),
                (name, "edge_label_time", ends.src_time),
            ]
        src_name, dst_name = (None, None) if name is None else (name[0], name[2])
        positives = len(index)
        # one row for every positive: [positives] or [positives, amount]
        negatives = dst_rows[positives:].view(-1, positives).t().squeeze(-1).contiguous()
        found += [
            (src_name, "src_index", src_rows),
            (dst_name, "dst_pos_index", dst_rows[:positives]),
            (dst_name, "dst_neg_index", negatives),
            (src_name, "seed_time", ends.src_time),
        ]
        return found if src_name == dst_name else [*found, (dst_name, "seed_time", ends.src_time)]

    def _labels(self, index: Tensor, num_negatives: int) -> Tensor | None:
        if self.neg_sampling is None:
            return None if self.edge_label is None else self.edge_label[index]
        positive = torch.ones(len(index)) if self.edge_label is None else self.edge_label[index]
        return torch.cat([positive, positive.new_zeros((num_negatives, *positive.shape[1:]))])

    def _checked_label(self, label: Tensor | None) -> Tensor | None:
        if label is None:
            return None
        label = _one_each(label, self.num_seeds, "edge_label")
        if self._is_triplet:
            raise OptionError(
                "'edge_label' needs to be undefined for 'triplet'-based negative sampling: positives and negatives are told "
                "apart by src_index, dst_pos_index and dst_neg_index of the batch"
            )
        if self.neg_sampling is not None and len(label) and int(label.min()) == 0:
            return label + 1  # 0 stands for negative edges
        return label

    def _make_draws(self) -> tuple[NodeDraw, NodeDraw] | None:
        negative = self.neg_sampling
        if negative is None:
            return None
        weights = (("src", negative.src_weight), ("dst", negative.dst_weight))
        src, dst = (
            NodeDraw(self.source.nodes[number].num_nodes, weight, self.plan.node_times[number], what)
            for number, (what, weight) in zip(self._ends, weights, strict=True)
        )
        return src, dst


def _one_each(values: Tensor, count: int, what: str) -> Tensor:
    if len(values) != count:
        raise ShapeError(f"{what}: expected one entry a seed edge, {count}, got shape {list(values.shape)}")
    return values.cpu()


EdgeType = tuple[str, str, str]


def _read_pairs(source: Source, given: Any) -> tuple[EdgeType | None, tuple[int, int], Tensor]:
    """(edge type or None, node types of src and dst, int64 [2, seeds]) from what PyG accepts as edge_label_index."""
    name: EdgeType | None = None
    ends = (0, 0)
    edge_index = None if source.is_typed or not source.edges else source.edges[0].edge_index
    if source.is_typed:
        if given is None:
            raise OptionError("edge_label_index: a typed graph needs an edge type, or (edge type, pairs)")
        asked, given = (given, None) if isinstance(given[0], str) else given
        name, ends, edge_index = _find_type(source, asked, must_exist=given is None)
    pairs = edge_index if given is None else torch.as_tensor(given)
    if pairs is None:
        raise OptionError("edge_label_index: the graph has no edges to take pairs from")
    if pairs.dim() != 2 or pairs.shape[0] != 2:
        raise ShapeError(f"edge_label_index: expected [2, seeds], got shape {list(pairs.shape)}")
    rows = [as_ids(row, "edge_label_index", source.nodes[end].num_nodes) for row, end in zip(pairs, ends, strict=True)]
    return name, ends, torch.stack(rows)


def _find_type(source: Source, asked: Any, *, must_exist: bool) -> tuple[EdgeType, tuple[int, int], Tensor | None]:
    """(name, node types of its ends, its edges); pairs may be of a type that the graph has no edges of."""
    try:
        edges = source.edges[source.edge_type(asked)]
    except OptionError:
        if must_exist or isinstance(asked, str) or len(asked) not in (2, 3):
            raise
        name: EdgeType = (asked[0], asked[1] if len(asked) == 3 else "to", asked[-1])
        return name, (source.node_type(name[0]), source.node_type(name[2])), None
    assert edges.name is not None
    return edges.name, (edges.src_type, edges.dst_type), edges.edge_index
