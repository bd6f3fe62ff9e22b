"""Random models as plain PyTorch text, and how one is run.

`tests.random_layers.random_model(seed)` draws statements that read what is there and make a new value per node, edge, graph or
relation, and `RandomModel` prints them as a module: what a fuzzer finds is source text that can be read, cut down
(`without_unused`) and kept as an example.

As in `tests.random_programs`, numbers stay tame, so that a difference between two engines is a mistake and not rounding: what
is multiplied or goes into exp is bounded, what divides is at least 0.1, and what has a kink or jumps (relu, a comparison) reads
its argument shifted by a random parameter: an exact zero, such as an edge's value less the mean of its row of one edge, would
be rounded to either side.
"""

from __future__ import annotations

import itertools
import linecache
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import degree, scatter, softmax

from tests.awkward import RandomGraph

IN_CHANNELS, EDGE_DIM, NUM_RELATIONS, NUM_GRAPHS = 6, 3, 3, 4
Shape = tuple[int, ...]

ARGUMENTS = "x, edge_index, edge_attr, edge_weight, relation, batch"
BEGIN = """\
src, dst = edge_index
num_nodes = x.size(0)
"""
TEMPLATE = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
{members}

    def forward(self, {arguments}):
{body}
        return {result}
"""


@dataclass(frozen=True)
class Value:
    """A tensor with a row per node, edge, graph or relation, and its inner shape."""

    name: str
    rows: str
    shape: Shape


@dataclass(frozen=True)
class Statement:
    """`value = text`, or lines that end so. members: what `__init__` makes for it, by name."""

    value: Value
    text: str
    reads: tuple[str, ...]
    members: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RandomModel:
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]

    def source(self) -> str:
        members = [f"self.{name} = {made}" for item in self.statements for name, made in item.members]
        body = [item.text if "\n" in item.text else f"{item.value.name} = {item.text}" for item in self.statements]
        return TEMPLATE.format(
            arguments=ARGUMENTS,
            members=textwrap.indent("\n".join(members), " " * 8),
            body=textwrap.indent(BEGIN + "\n".join(body), " " * 8),
            result=", ".join(self.outputs),
        )

    def without_unused(self, outputs: Sequence[str] = ()) -> RandomModel:
        """Only the statements that `outputs` need (by default those of the model)."""
        needed = set(outputs or self.outputs)
        kept = []
        for item in reversed(self.statements):
            if item.value.name in needed:
                needed.update(item.reads)
                kept.append(item)
        return replace(self, statements=tuple(reversed(kept)), outputs=tuple(outputs or self.outputs))


_numbers = itertools.count()


def module_of(source: str, seed: int = 0) -> nn.Module:
    """The module `Model` that the text defines, with parameters fixed by `seed`."""
    names = {"torch": torch, "nn": nn, "F": F, "degree": degree, "scatter": scatter, "softmax": softmax}
    file = f"<random model {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # for messages that quote a line
    exec(compile(source, file, "exec"), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = names["Model"]()  # type: ignore[operator]
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.uniform_(-0.5, 0.5)
    return model


def inputs_for(graph: RandomGraph, seed: int, dtype: torch.dtype, index_dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    """Arguments of a random model; floats ask for their gradient. Edge weights are at least 0.5."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    x, edge_attr = normal(graph.num_nodes, IN_CHANNELS), normal(graph.num_edges, EDGE_DIM)
    weight = (torch.rand(graph.num_edges, generator=draw, dtype=torch.float64) + 0.5).to(dtype).requires_grad_()
    relation = torch.randint(NUM_RELATIONS, (graph.num_edges,), generator=draw)
    batch = torch.randint(NUM_GRAPHS, (graph.num_nodes,), generator=draw).sort().values
    return x, graph.edge_index.to(index_dtype), edge_attr, weight, relation.to(index_dtype), batch.to(index_dtype)
