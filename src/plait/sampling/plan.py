"""From a loader's arguments to what the sampler needs: fan-outs by edge type, times and weights by edge, the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import OptionError, PlaitError
from plait.sampling import native
from plait.sampling.reference import ReferenceSampler
from plait.sampling.request import Ids, Rules
from plait.sampling.source import Source
from plait.sampling.topology import Relation, Topology, build_relation

SUBGRAPH_TYPES = ("directional", "bidirectional", "induced")
TEMPORAL_STRATEGIES = ("uniform", "last")
Sampler = native.NativeSampler | ReferenceSampler


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What NeighborLoader and LinkNeighborLoader are told about sampling; the names are PyG's."""

    num_neighbors: Any
    replace: bool = False
    subgraph_type: Any = "directional"
    disjoint: bool = False
    temporal_strategy: str = "uniform"
    time_attr: str | None = None
    weight_attr: str | None = None

    def __post_init__(self) -> None:
        if self.temporal_strategy not in TEMPORAL_STRATEGIES:
            raise OptionError(f"temporal_strategy: expected {_any_of(TEMPORAL_STRATEGIES)}, got {self.temporal_strategy!r}")
        if self.subgraph not in SUBGRAPH_TYPES:
            raise OptionError(f"subgraph_type: expected {_any_of(SUBGRAPH_TYPES)}, got {self.subgraph_type!r}")

    @property
    def subgraph(self) -> str:
        """The subgraph type by name; PyG's SubgraphType is accepted."""
        return str(getattr(self.subgraph_type, "value", self.subgraph_type))


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


@dataclass(frozen=True, eq=False)
class Plan:
    """topology and rules: what a sampler is made of.  node_times: int64 by node type, where the time is of nodes.

    is_bidirectional: edges are turned round after sampling.
    """

    topology: Topology
    rules: Rules
    node_times: tuple[Ids | None, ...]
    is_temporal: bool
    is_bidirectional: bool

    @property
    def num_hops(self) -> int:
        return len(self.rules.fanouts)


def make_plan(source: Source, options: SamplingOptions) -> Plan:
    """Orders the graph for sampling: once for a loader. Raises OptionError, ShapeError, IndexMapError."""
    node_times, edge_times = _times(source, options.time_attr)
    weights = _weights(source, options.weight_attr)
    relations: list[Relation] = []
    for edges, edge_time, weight in zip(source.edges, edge_times, weights, strict=True):
        src, dst = ((number, source.nodes[number].num_nodes) for number in (edges.src_type, edges.dst_type))
        try:
            relations.append(
                build_relation(
                    edges.edge_index, src, dst, edge_time=edge_time, src_time=node_times[edges.src_type], weight=weight
                )
            )
        except PlaitError as error:
            if edges.name is not None:
                error.add_note(f"  in the edges of type {edges.name}")
            raise
    is_temporal = options.time_attr is not None
    rules = Rules(
        fanouts=_fanouts(source, options.num_neighbors),
        replace=options.replace,
        disjoint=options.disjoint or is_temporal,  # the same node may be allowed for one seed and not for another
        last=is_temporal and options.temporal_strategy == "last",
        induced=options.subgraph == "induced",
    )
    return Plan(
        Topology(tuple(nodes.num_nodes for nodes in source.nodes), tuple(relations)),
        rules,
        tuple(None if time is None else time.cpu().long().numpy() for time in node_times),
        is_temporal,
        options.subgraph == "bidirectional",
    )


def _times(source: Source, name: str | None) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Times by node type, and by edge type; all None without a time attribute."""
    nodes = [values.values[name].data if name in values.values else None for values in source.nodes]
    edges = [values.values[name].data if name in values.values else None for values in source.edges]
    has_nodes, has_edges = (any(time is not None for time in times) for times in (nodes, edges))
    if name is not None and not has_nodes and not has_edges:
        raise OptionError(f"The time attribute '{name}' is neither a node-level or edge-level attribute of the graph")
    if has_nodes and has_edges:
        raise OptionError(f"The time attribute '{name}' holds both node-level and edge-level information")
    return nodes, edges


def _weights(source: Source, name: str | None) -> list[Tensor | None]:
    weights = [values.values[name].data if name in values.values else None for values in source.edges]
    if name is not None and all(weight is None for weight in weights):
        raise OptionError(f"weight_attr {name!r}: no edges have an attribute of this name")
    return weights


def _fanouts(source: Source, given: Any) -> Ids:
    """int64 [hops, relations] from a list for all edge types, a dictionary by edge type, or PyG's NumNeighbors."""
    default = getattr(given, "default", None)
    given = getattr(given, "values", given) if not isinstance(given, Mapping) else given
    if isinstance(given, Mapping):
        by_type = {
            source.edge_type(key if not isinstance(key, str) else tuple(key.split("__"))): row for key, row in given.items()
        }
        missing = [edges.name for number, edges in enumerate(source.edges) if number not in by_type]
        if missing and default is None:
            raise OptionError(f"num_neighbors: missing number of neighbors for edge type {missing[0]!r}")
        columns: list[Any] = [by_type.get(number, default) for number in range(len(source.edges))]
    else:
        columns = [given] * len(source.edges) or [given]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise OptionError(f"num_neighbors: number of hops must be the same across all edge types, got {sorted(lengths)}")
    fanouts = np.array([[int(count) for count in column] for column in columns], np.int64).T
    if fanouts.size and fanouts.min() < -1:
        raise OptionError(f"num_neighbors: expected counts of at least 0, or -1 for all neighbors, got {int(fanouts.min())}")
    return np.ascontiguousarray(fanouts[:, : len(source.edges)])


class SamplerPool:
    """Samplers of one plan, made when threads need them and used again: tables as long as the graph are made once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: SimpleQueue[Sampler] = SimpleQueue()

    def lend(self) -> AbstractContextManager[Sampler]:
        """A sampler for one thread."""
        return self._lend()

    @contextmanager
    def _lend(self) -> Any:
        try:
            sampler = self._idle.get_nowait()
        except Empty:
            lib = native.load()
            plan = self._plan
            sampler = (
                ReferenceSampler(plan.topology, plan.rules)
                if lib is None
                else native.NativeSampler(lib, plan.topology, plan.rules)
            )
        try:
            yield sampler
        finally:
            self._idle.put(sampler)


def as_ids(values: Any, what: str, num_nodes: int) -> Tensor:
    """Node numbers as int64 [n]. Raises OptionError for one out of range."""
    ids = torch.as_tensor(values).flatten().cpu().long()
    wrong = ((ids < 0) | (ids >= num_nodes)).nonzero().flatten()
    if wrong.numel():
        position = int(wrong[0])
        raise OptionError(
            f"{what}: holds {int(ids[position])} at position {position}, but there are {num_nodes} nodes of this type"
        )
    return ids
