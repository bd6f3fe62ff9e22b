"""`plait train --loader neighbor`: an epoch of sampled batches, each layer on the rows that the next one reads.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.errors import OptionError
from plait.loader import Block, Graph, NeighborLoader, blocks
from plait.tools.data import GraphData
from plait.tools.engines import compile_with
from plait.tools.models import MODELS, ModelSpec, NodeClassifier, degree_positions

LOADERS = ("full", "neighbor")
DEFAULT_FANOUT = (15, 10, 5)  # further layers: the last one again
# GCNConv normalises by the degrees of the graph it is given, and takes one kind of node alone
ONE_KIND_OF_NODE = ("gcn",)


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """How an epoch sees the graph. fanout: neighbours per hop from the seeds, -1 for all; empty is 15, 10, 5."""

    kind: str = "full"
    fanout: tuple[int, ...] = ()
    batch_size: int = 1024

    def __post_init__(self) -> None:
        if self.kind not in LOADERS:
            raise OptionError(f"loader {self.kind!r}: no such loader; valid: {', '.join(LOADERS)}")
        if self.batch_size < 1:
            raise OptionError(f"batch-size: expected at least 1, got {self.batch_size}")

    def fanouts(self, num_layers: int) -> tuple[int, ...]:
        """One number a layer. Raises OptionError if as many were not given."""
        if not self.fanout:
            return (DEFAULT_FANOUT + DEFAULT_FANOUT[-1:] * num_layers)[:num_layers]
        if len(self.fanout) != num_layers:
            raise OptionError(f"fanout: expected one number for each of the {num_layers} layers, got {len(self.fanout)}")
        return self.fanout


class BlockClassifier(nn.Module):
    """A NodeClassifier that gives the scores of the seeds alone; the same weights."""

    def __init__(self, model: NodeClassifier, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.is_bipartite = spec.name not in ONE_KIND_OF_NODE

    def forward(self, x: Tensor, layers: tuple[Block, ...], positions: Tensor | None = None) -> Tensor:
        """x [N, F] of the batch, positions [E, 2] of its edges where the model takes them -> [seeds, classes]."""
        last = len(layers) - 1
        for number, (layer, block) in enumerate(zip(self.model.layers, layers, strict=True)):
            x = F.dropout(x, self.model.dropout, self.training)
            edges = (block.edge_index,) if positions is None else (block.edge_index, positions[: block.edge_index.shape[1]])
            num_dst = block.num_dst
            x = layer((x, x[:num_dst]), *edges) if self.is_bipartite else layer(x, *edges)[:num_dst]
            if number != last:
                x = F.elu(x)
        return x


class SampledEpochs:
    """The batches of a run, and where in an epoch it is."""

    def __init__(
        self, spec: LoaderSpec, model_spec: ModelSpec, graph: GraphData, seed: int, model: NodeClassifier, engine: str
    ) -> None:
        self._has_positions = MODELS[model_spec.name].has_edge_position
        # of the whole graph, as full-batch training has them
        edges = {"position": degree_positions(graph.edge_index, graph.num_nodes)} if self._has_positions else {}
        self.loader = NeighborLoader(
            Graph(graph.edge_index, graph.num_nodes, {"x": graph.x, "y": graph.y}, edges),
            list(spec.fanouts(model_spec.layers)),
            input_nodes=graph.train_idx,
            batch_size=spec.batch_size,
            shuffle=True,
            seed=seed,
        )
        self.compiled = compile_with(engine, BlockClassifier(model, model_spec))
        self._loss_sum = 0.0  # of the seeds that this epoch has seen
        self._num_seen = 0

    def run(self, optimizer: torch.optim.Optimizer, after_batch: Callable[[], None]) -> float:
        """The rest of the epoch; the mean loss of all its seeds, each before the update of its batch."""
        self.compiled.train()
        for batch in self.loader:
            optimizer.zero_grad(set_to_none=True)
            positions = (batch.position,) if self._has_positions else ()
            scores = self.compiled(batch.x, blocks(batch), *positions)
            loss = F.cross_entropy(scores, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            self._loss_sum += float(loss.detach()) * batch.batch_size
            self._num_seen += batch.batch_size
            after_batch()
        mean = self._loss_sum / max(self._num_seen, 1)
        self._loss_sum, self._num_seen = 0.0, 0
        return mean

    def state(self) -> dict[str, Any]:
        """What is needed to go on with the next batch."""
        return {"loader": self.loader.state_dict(), "loss_sum": self._loss_sum, "num_seen": self._num_seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.loader.load_state_dict(state["loader"])
        self._loss_sum, self._num_seen = state["loss_sum"], state["num_seen"]
