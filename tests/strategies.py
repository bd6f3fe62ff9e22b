"""Hypothesis strategies: graphs, programs, and whole runs of a program on a graph with tensors that fit.

Everything follows from drawn integers: `random_program(seed)` and `random_run(program, graph, seed)` can be called without
hypothesis too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from plait.graph import Ordering
from plait.ir.program import Program
from tests.awkward import AWKWARD, RandomGraph, hub_graph, random_graph
from tests.random_programs import random_program

NUM_RELATIONS = 3

# --- graphs ----------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> RandomGraph:
    """One of the awkward graphs, a random one with any sizes (0, 1 and E == N included), or one with a hub."""
    kind = draw(st.sampled_from(("awkward", "random", "square", "hub")))
    if kind == "awkward":
        return AWKWARD[draw(st.sampled_from(sorted(AWKWARD)))]
    num_nodes = draw(st.integers(0 if kind != "hub" else 1, 40))
    seed = draw(st.integers(0, 1000))
    if kind == "hub":
        return hub_graph(num_nodes, draw(st.sampled_from((600, 3000))), seed, incoming=draw(st.booleans()))
    num_edges = num_nodes if kind == "square" else draw(st.integers(0, 150))
    return random_graph(num_nodes, num_edges, seed)


def ordering_for(program: Program, graph: RandomGraph) -> Ordering:
    """The ordering a run of `program` on `graph` has: by dst, with the maps src, dst and rel (a node's number modulo 3)."""
    user_maps = {"src": graph.src, "dst": graph.dst, "rel": (graph.src + graph.dst) % NUM_RELATIONS}
    if not program.ordered:
        indices = tuple(user_maps[name].clone() for name in program.maps)
        return Ordering(num_edges=graph.num_edges, num_rows=0, indptr=None, edge_id=None, indices=indices, is_identity=True)
    edge_id = graph.dst.argsort(stable=True)
    lengths = torch.bincount(graph.dst, minlength=graph.num_nodes)
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    indices = tuple(user_maps[name][edge_id].to(torch.int32) for name in program.maps)
    sorted_already = bool((edge_id == torch.arange(graph.num_edges)).all())
    return Ordering(
        num_edges=graph.num_edges,
        num_rows=graph.num_nodes,
        indptr=indptr,
        edge_id=None if sorted_already else edge_id.to(torch.int32),
        indices=indices,
        is_identity=sorted_already,
    )


def num_coarse_rows(map_name: str, graph: RandomGraph) -> int:
    return NUM_RELATIONS if map_name == "rel" else graph.num_nodes


def random_tensors(program: Program, graph: RandomGraph, seed: int) -> list[Tensor]:
    """A tensor for every input: floats between -2 and 2, small ints, fair bools. Some values repeat, so that maxima tie."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for source in program.inputs:
        leading = {"edge": [graph.num_edges], "row": [graph.num_nodes], "dense": []}.get(source.access)
        if leading is None:
            assert source.index_map is not None
            leading = [num_coarse_rows(program.maps[source.index_map], graph)]
        tensors.append(_random_tensor((*leading, *source.shape), source.dtype, generator))
    return tensors


def _random_tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype is torch.bool:
        return torch.randint(2, shape, generator=generator).to(torch.bool)
    if not dtype.is_floating_point:
        return torch.randint(-3, 4, shape, generator=generator).to(dtype)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 2
    coarse = (values * 2).round() / 2  # ties, zeros, and numbers that are exact in every dtype
    return torch.where(torch.rand(shape, generator=generator) < 0.3, coarse, values).to(dtype)


# --- programs --------------------------------------------------------------------------------------------------------


def programs(*, dtype: torch.dtype = torch.float32) -> st.SearchStrategy[Program]:
    return st.integers(0, 100_000).map(lambda seed: random_program(seed, dtype=dtype))


@dataclass(frozen=True)
class Run:
    """Everything one run of a program needs."""

    program: Program
    graph: RandomGraph
    tensors: list[Tensor]
    structure: Ordering


def random_run(program: Program, graph: RandomGraph, seed: int) -> Run:
    return Run(program, graph, random_tensors(program, graph, seed), ordering_for(program, graph))


@st.composite
def runs(draw: st.DrawFn, *, dtype: torch.dtype = torch.float32) -> Run:
    return random_run(draw(programs(dtype=dtype)), draw(graphs()), draw(st.integers(0, 1000)))
