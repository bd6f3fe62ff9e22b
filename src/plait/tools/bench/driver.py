"""Runs cells: one model on one graph, one process per engine, engines in turn, nothing timed before it is checked.

A cell has two rounds of processes. The first starts with empty caches: cold first call, check against eager, then steps of all
engines interleaved, so that a noisy neighbour disturbs all of them alike. The second has the caches full and compiles on tiny
graphs before it sees the real one: what a new graph costs, and how much memory a step needs beyond what was there before.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.errors import OptionError, PlaitError
from plait.tools.bench.bandwidth import KernelTraffic
from plait.tools.bench.check import Deviation, compare_files
from plait.tools.bench.dgl_worker import MODELS as DGL_MODELS
from plait.tools.bench.layers import SparseStack

log = logging.getLogger(__name__)

REFERENCE = "eager"
DEFAULT_ENGINES = ("eager", "inductor", "plait", "torch_sparse")
TURN_S = 0.05  # steps shorter than this are repeated within a turn
MAX_TURN_STEPS = 10
WARM_STEPS = 2
MEMORY_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What all cells of one run share."""

    engines: tuple[str, ...] = DEFAULT_ENGINES
    rounds: int = 9
    seconds: float = 60.0  # of steps per cell; fewer rounds where they would take longer, but at least 3
    width: int = 128
    threads: int = 2
    data_dir: str | None = None
    dgl_python: str | None = None
    with_inference: bool = True
    with_memory: bool = True
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        for key, number in (("rounds", self.rounds), ("width", self.width), ("threads", self.threads)):
            if number < 1:
                raise OptionError(f"{key}: expected at least 1, got {number}")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Quartiles of the times of a step, in seconds."""

    low: float
    median: float
    high: float
    num_samples: int

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(low=1.5, median=2.0, high=2.5, num_samples=3)
        """
        if len(samples) == 1:
            return Spread(low=samples[0], median=samples[0], high=samples[0], num_samples=1)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Spread(low=low, median=median, high=high, num_samples=len(samples))


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """One engine in one cell. `error` says why it has no times."""

    engine: str
    error: str | None = None
    deviation: Deviation | None = None  # from eager, the worst of output and gradients
    first_call_s: float | None = None  # caches empty: compile, structure of the graph, one training step
    train: Spread | None = None
    infer: Spread | None = None
    warm_call_s: float | None = None  # the same in a new process with the caches full: capture, loading, structure, one step
    new_graph_s: float | None = None  # first step on a new graph less a warm one, everything compiled
    extra_bytes: int | None = None
    memory_error: str | None = None
    is_wrong: bool = False  # it ran, and gave other numbers than eager
    kernels: tuple[KernelTraffic, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """All engines on one model and graph."""

    model: str
    graph: str
    num_nodes: int
    num_edges: int
    results: tuple[EngineResult, ...]

    def engine(self, name: str) -> EngineResult | None:
        return next((result for result in self.results if result.engine == name), None)

    def ratio(self, candidate: str = "plait", kind: str = "train") -> float | None:
        """How many times faster than the better of eager and inductor.

        A training step, or an inference with kind="infer"; None where there is nothing to compare.
        """
        mine = self.engine(candidate)
        others = [self.engine(name) for name in ("eager", "inductor")]
        times: list[float] = [spread.median for other in others if other and (spread := getattr(other, kind))]
        if mine is None or getattr(mine, kind) is None or not times:
            return None
        return min(times) / float(getattr(mine, kind).median)


class WorkerError(PlaitError):
    """An engine that could not do its part; the text goes into the table."""


class WrongResultError(WorkerError):
    """An engine whose output or gradients are not eager's."""


class Worker:
    """A process that answers one command at a time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # a session of its own: Ctrl-C reaches the driver alone, which ends its workers
        # what it prints goes to a file: a pipe that nobody reads fills up and stops it
        self.said = tempfile.TemporaryFile(mode="w+", encoding="utf8")  # noqa: SIM115  closed with the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, **environment},
            start_new_session=True,
            text=True,
            encoding="utf8",
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Sends one command and waits for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.said.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                log.debug("worker %d had gone before its pipe was closed", self.process.pid)

    def _death(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        said = self.said.read().strip().splitlines()
        if code == -9:
            return "stopped by the system (out of memory)"
        return f"ended with exit code {code}: {said[-1] if said else 'no message'}"


def run_cell(model: str, graph: str, options: BenchOptions, on_state: Callable[[str], None] = lambda state: None) -> CellResult:
    """Measures every engine on one model and graph."""
    with tempfile.TemporaryDirectory(prefix="plait-bench-") as scratch:
        cell = _Cell(model=model, graph=graph, options=options, scratch=pathlib.Path(scratch), on_state=on_state)
        found = cell.time_engines()
        if options.with_memory:
            found = [cell.add_memory(result) for result in found]
        return CellResult(
            model=model, graph=graph, num_nodes=cell.size["num_nodes"], num_edges=cell.size["num_edges"], results=tuple(found)
        )


class _Cell:
    """What the steps of one cell share."""

    def __init__(
        self, *, model: str, graph: str, options: BenchOptions, scratch: pathlib.Path, on_state: Callable[[str], None]
    ) -> None:
        self.model = model
        self.graph = graph
        self.options = options
        self.scratch = scratch
        self.on_state = on_state
        self.size = {"num_nodes": 0, "num_edges": 0}

    # processes

    @contextmanager
    def worker(self, engine: str) -> Iterator[Worker]:
        """A process for one engine with the cell loaded. Caches are the engine's own, empty in the cell's first process."""
        caches = self.scratch / "cache" / pathlib.PurePath(engine).name.replace(":", "_")
        caches.mkdir(parents=True, exist_ok=True)
        environment = {
            "OMP_NUM_THREADS": str(self.options.threads),
            "PLAIT_CACHE_DIR": str(caches / "plait"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        }
        command = [sys.executable, "-W", "ignore", "-m", "plait.tools.bench.worker"]
        if engine == "dgl":
            command = [self.options.dgl_python or "", str(pathlib.Path(__file__).with_name("dgl_worker.py"))]
        worker = Worker(command, environment)
        try:
            self._load(worker, engine)
            yield worker
        finally:
            worker.close()

    def _load(self, worker: Worker, engine: str) -> None:
        if engine == "dgl":
            path = self.scratch / "export.npz"
            worker.ask("load", path=str(path), model=self.model, threads=self.options.threads)
            return
        self.size = worker.ask(
            "load",
            engine=engine,
            model=self.model,
            graph=self.graph,
            data_dir=self.options.data_dir,
            width=self.options.width,
            threads=self.options.threads,
            limit_bytes=self.options.memory_limit_bytes,
        )

    # times

    def time_engines(self) -> list[EngineResult]:
        """First calls and checks one after the other, then steps in turn."""
        engines = [
            REFERENCE,
            *(engine for engine in self.options.engines if engine != REFERENCE and can_run(engine, self.model)),
        ]
        with ExitStack() as stack:
            ready: dict[str, Worker] = {}
            found: dict[str, dict[str, Any]] = {}
            for engine in engines:
                self.on_state(f"{engine}: first call")
                found[engine] = {"engine": engine}
                try:
                    worker = stack.enter_context(self.worker(engine))
                    found[engine] |= self._first_call(engine, worker)
                    ready[engine] = worker
                except WorkerError as error:
                    found[engine] |= {"error": str(error), "is_wrong": isinstance(error, WrongResultError)}
            for kind in ("train", "infer") if self.options.with_inference else ("train",):
                self.on_state(f"{'training steps' if kind == 'train' else 'inference'} of {', '.join(ready)}")
                for engine, result in self._in_turn(ready, kind).items():
                    found[engine][kind if isinstance(result, Spread) else "error"] = result
            if "plait" in ready and "error" not in found["plait"]:
                self.on_state("kernels of plait")
                found["plait"]["kernels"] = self._kernels(ready["plait"])
        return [EngineResult(**values) for engine, values in found.items() if engine in self.options.engines]

    def _first_call(self, engine: str, worker: Worker) -> dict[str, Any]:
        """Time of the first call, and the check against eager. An engine that deviates is not timed."""
        first = worker.ask("steps", kind="train", count=1)[0]
        mine = self.scratch / f"{pathlib.PurePath(engine).name.replace(':', '_')}.npz"
        worker.ask("dump", path=str(mine))
        if engine == REFERENCE:
            if self.options.dgl_python:
                worker.ask("export", path=str(self.scratch / "export.npz"))
            return {"first_call_s": first}
        reference = self.scratch / f"{REFERENCE}.npz"
        if not reference.exists():  # eager ran out of memory, say: there is nothing to check against
            return {"first_call_s": first}
        deviation = compare_files(reference, mine, self.model)
        mine.unlink()
        if not deviation.is_allowed:
            raise WrongResultError(f"WRONG: {deviation}")
        return {"first_call_s": first, "deviation": deviation}

    def _in_turn(self, ready: Mapping[str, Worker], kind: str) -> dict[str, Spread | str]:
        """Rounds of one turn per engine; the order of the engines rotates."""
        found: dict[str, Spread | str] = {}
        samples: dict[str, list[float]] = {}
        steps: dict[str, int] = {}
        slowest = 0.0
        for engine, worker in ready.items():
            try:
                warm = worker.ask("steps", kind=kind, count=WARM_STEPS)[-1]
            except WorkerError as error:
                found[engine] = str(error)
                continue
            samples[engine] = []
            steps[engine] = min(MAX_TURN_STEPS, max(1, round(TURN_S / max(warm, 1e-6))))
            slowest += warm * steps[engine]
        rounds = max(3, min(self.options.rounds, int(self.options.seconds / max(slowest, 1e-6))))
        for turn in range(rounds):
            order = list(samples)
            for engine in order[turn % max(1, len(order)) :] + order[: turn % max(1, len(order))]:
                try:
                    count = steps[engine]
                    # caches hold another engine's data: short steps get one that is not counted
                    samples[engine] += ready[engine].ask("steps", kind=kind, count=count, skip=int(count > 1))
                except WorkerError as error:
                    found[engine] = str(error)
                    del samples[engine]
        return found | {engine: Spread.of(times) for engine, times in samples.items()}

    def _kernels(self, worker: Worker) -> tuple[KernelTraffic, ...]:
        """What each fused kernel moves and takes; nothing where that cannot be told."""
        try:
            return tuple(KernelTraffic(**kernel) for kernel in worker.ask("kernels"))
        except WorkerError as error:
            log.warning("no kernel rates for %s on %s: %s", self.model, self.graph, error)
            return ()

    # memory

    def add_memory(self, result: EngineResult) -> EngineResult:
        """Processes with full caches: one makes its first call; one is compiled on tiny graphs before it sees the real one."""
        if result.error is not None or result.engine == "dgl":
            return result
        self.on_state(f"{result.engine}: first call with full caches, memory")
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        try:
            with self.worker(result.engine) as worker:
                values["warm_call_s"] = worker.ask("steps", kind="train", count=1)[0]
            with self.worker(result.engine) as worker:
                worker.ask("warm")
                worker.ask("baseline")
                first, *_, warm = worker.ask("steps", kind="train", count=3)
                values["new_graph_s"] = max(0.0, first - warm)
                values["extra_bytes"] = worker.ask("extra", count=MEMORY_STEPS)
        except WorkerError as error:
            values["memory_error"] = str(error)
        return EngineResult(**values)


def can_run(engine: str, model: str) -> bool:
    """Whether the engine has a way to do this model at all."""
    if engine == "torch_sparse":
        return model in SparseStack.MODELS
    return engine != "dgl" or model in DGL_MODELS


def default_memory_limit() -> int | None:
    """85 % of the memory that is available now, so that an engine that needs more ends with an error and not the machine."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return int(0.85 * available[0]) if available else None


def geometric_mean(ratios: Sequence[float]) -> float:
    """
    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    return float(np.exp(np.mean(np.log(ratios))))
