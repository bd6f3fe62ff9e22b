"""One engine in one process: builds the model, runs steps when it is told to, says how long they took.

Started by the driver with its commands on stdin (see `protocol`). Legend: N nodes, E edges.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.errors import PlaitError
from plait.tools import memory
from plait.tools.bench import graphs, layers
from plait.tools.bench.protocol import serve
from plait.tools.engines import compile_with
from plait.tools.pyfile import load_function

PROFILED_STEPS = 5
TINY_SIZES = ((61, 240), (97, 400), (83, 333))  # the second size is compiled with symbolic sizes, the third is for good measure


class Cell:
    """One model on one graph under one engine."""

    def __init__(self, engine: str, model: str, graph: graphs.BenchGraph) -> None:
        self.name = model
        self.graph = graph
        self.model = layers.make_model(model, graph.widths)
        self.run = prepare(engine, model, self.model)
        self.edges = layers.edges_of(model, graph)
        self.cotangent = graphs.cotangent(graph)

    def train_step(self) -> None:
        """Forward and backward; gradients start from nothing, as after zero_grad(set_to_none=True)."""
        self.clear_gradients()
        self.run(self.graph.x, *self.edges).backward(self.cotangent)

    def clear_gradients(self) -> None:
        self.graph.x.grad = None
        for parameter in self.model.parameters():
            parameter.grad = None

    @torch.no_grad()
    def infer(self) -> None:
        self.run(self.graph.x, *self.edges)

    def warm_on_tiny_graphs(self) -> None:
        """Compiles everything, symbolic sizes included, without having seen the real graph."""
        for num_nodes, num_edges in TINY_SIZES:
            tiny = graphs.tiny_graph(self.graph, num_nodes, num_edges)
            self.clear_gradients()
            out = self.run(tiny.x, *layers.edges_of(self.name, tiny))
            out.backward(graphs.cotangent(tiny))
        self.clear_gradients()

    def tensors(self) -> dict[str, Tensor]:
        """The output and every gradient, after one training step."""
        self.clear_gradients()
        out = self.run(self.graph.x, *self.edges)
        out.backward(self.cotangent)
        found = {"out": out.detach()}
        if self.graph.x.grad is not None:
            found["x.grad"] = self.graph.x.grad
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                found[f"{name}.grad"] = parameter.grad
        return found


def prepare(engine: str, name: str, model: nn.Module) -> Callable[..., Tensor]:
    """The model as the engine runs it; FILE.py:FUNCTION is an engine of the user's own, called with the model."""
    if engine == "torch_sparse":
        return layers.SparseStack(name, model)
    if ".py:" in engine:
        return load_function(engine)(model)
    return compile_with(engine, model)


class Worker:
    """The commands. Each returns what JSON can carry."""

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.baseline_bytes = 0

    def load(
        self, engine: str, model: str, graph: str, data_dir: str | None, width: int, threads: int, limit_bytes: int | None
    ) -> dict[str, int]:
        """Everything up to the first call."""
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        torch.set_num_threads(threads)
        self.cell = Cell(engine, model, graphs.load_graph(graph, data_dir, width))
        return {"num_nodes": self.cell.graph.num_nodes, "num_edges": self.cell.graph.num_edges}

    @property
    def loaded(self) -> Cell:
        assert self.cell is not None, "the driver loads first"
        return self.cell

    def steps(self, kind: str, count: int, skip: int = 0) -> list[float]:
        """Seconds of `count` steps, after `skip` that are not timed."""
        step = self.loaded.train_step if kind == "train" else self.loaded.infer
        for _ in range(skip):
            step()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return seconds

    def dump(self, path: str) -> None:
        """Output and gradients to a file, for the check."""
        write_tensors(path, self.loaded.tensors())

    def export(self, path: str) -> None:
        """Inputs and weights to a file, for an interpreter that has no plait."""
        cell = self.loaded
        arrays = {"x": cell.graph.x, "edge_index": cell.graph.edge_index, "cotangent": cell.cotangent}
        arrays |= {f"parameter/{name}": parameter for name, parameter in cell.model.named_parameters()}
        if len(cell.edges) > 1:
            arrays["edge_position"] = cell.edges[1]
        write_tensors(path, arrays | {"x_has_gradient": torch.tensor(cell.graph.x.requires_grad)})

    def warm(self) -> None:
        self.loaded.warm_on_tiny_graphs()

    def baseline(self) -> int:
        """What is resident before the model first sees the graph: everything imported, data loaded, kernels compiled."""
        self.baseline_bytes = memory.resident_bytes()
        return self.baseline_bytes

    def extra(self, count: int) -> int:
        """High-water mark of warm training steps less the baseline: buffers, structure and pools kept between steps count."""
        memory.reset_peak()
        self.steps("train", count)
        return memory.peak_bytes() - self.baseline_bytes

    def kernels(self) -> list[dict[str, Any]]:
        """Name, bytes and seconds of every fused kernel of a training step: bytes from `explain`, seconds from the profiler."""
        from plait.tools.explain import explain as explain_model

        cell = self.loaded
        found = explain_model(cell.model, cell.graph.x, *cell.edges, eager=False)
        programs = [program for capture in found.captures for part in capture.directions for program in part.programs]
        moved = {program.name: program.read_bytes + program.written_bytes for program in programs if program.engine == "kernel"}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.steps("train", PROFILED_STEPS)
        times = {event.key: event.cpu_time_total / event.count * 1e-6 for event in profile.key_averages() if event.count}
        return [
            {"name": name, "bytes": size, "seconds": times[name]} for name, size in moved.items() if times.get(name, 0.0) > 0
        ]


def write_tensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    arrays: dict[str, Any] = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)


def explain(error: BaseException) -> str | None:
    """One line for the table. Running out of memory is a result, not a bug."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    return text if isinstance(error, PlaitError) else f"{type(error).__name__}: {text}"


def main() -> None:
    worker = Worker()
    serve(
        {name: getattr(worker, name) for name in ("load", "steps", "dump", "export", "warm", "baseline", "extra", "kernels")},
        explain,
    )


if __name__ == "__main__":
    main()
