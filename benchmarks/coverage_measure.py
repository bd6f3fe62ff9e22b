"""What `coverage.py` finds out about a case: is it right, how fast is a step, what tensors per edge does it make?"""

from __future__ import annotations

import collections
import copy
import logging
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Inductor is measured as it is by default; plait.compile sets the flags it needs for its own compiles
os.environ.setdefault("PLAIT_DYNAMO_FLAGS", "0")

import numpy
import torch
from coverage_graph import Call, Case, Graph
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import plait
from plait.capture.record import RECORDS
from plait.tools import generate

log = logging.getLogger(__name__)
GRAPHS_LEAST = 1000
_STEPS_S = 3.0  # of timed steps per case, about
_MOST_STEPS = 400  # of an engine: steps of less than a millisecond need more of them for the same certainty


@dataclass
class Row:
    """A line of the table."""

    name: str
    commit: str = ""
    is_right: bool | None = None
    wrong: list[str] = field(default_factory=list)
    error: str = ""
    eager_error: str = ""  # why the case cannot run here, compiled or not
    num_captures: int = 0
    breaks: list[str] = field(default_factory=list)
    num_programs: int = 0
    reasons: list[str] = field(default_factory=list)
    compile_s: float = 0.0
    eager_columns: tuple[int, int] | None = None  # forward, backward
    plait_columns: tuple[int, int] | None = None
    times_ms: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # engine -> why it gave no time

    def ratio(self, other: str) -> float | None:
        if other not in self.times_ms or "plait" not in self.times_ms:
            return None
        return self.times_ms[other] / self.times_ms["plait"]


def large_graph(num_nodes: int, num_edges: int, width: int) -> Graph:
    generator = torch.Generator().manual_seed(0)
    edges = generate.powerlaw_edges(num_nodes, num_edges, seed=0)
    return Graph(generate.features(num_nodes, width, seed=1), edges, generator)


def small_graph(width: int) -> Graph:
    """With isolated nodes, self-loops and repeated edges."""
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(0, 40, (2, 190), generator=generator)
    edges = torch.cat([edges, edges[:, :7], torch.arange(5).repeat(2, 1)], 1)
    return Graph(torch.randn(47, width, generator=generator), edges, generator)


def edge_counts(graph: Graph) -> set[int]:
    """Sizes that mean a row per edge: with the loops, without, with new ones; and what the case has said."""
    loops = int((graph.edge_index[0] == graph.edge_index[1]).sum())
    edges, nodes = graph.num_edges, graph.num_nodes
    counts = {edges, edges + nodes, edges - loops, edges - loops + nodes, edges // 2, *graph.extra_counts}
    return {count for count in counts if count > 2 * GRAPHS_LEAST and count != nodes}


# --- one step ---------------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """A training step of a call, with the tensors whose gradients it is for."""

    call: Call
    wanted: list[Tensor]
    weights: list[Tensor] = field(default_factory=list)  # of the outputs in the sum that is differentiated

    @classmethod
    def make(cls, case: Case, graph: Graph, *, all_inputs: bool) -> Step:
        """all_inputs: every float input wants a gradient, not only what has a row of features per node."""
        torch.manual_seed(0)
        call = case(graph.width, graph)
        wanted: list[Tensor] = []

        def fresh(item: Tensor) -> Tensor:
            item = item.detach().clone()
            is_feature = item.dim() > 1 and item.shape[-1] == graph.width and item.shape[0] <= graph.num_nodes
            if item.is_floating_point() and (all_inputs or is_feature):
                wanted.append(item.requires_grad_())
            return item

        args, kwargs = tree_map_only(Tensor, fresh, (call.args, call.kwargs))
        return cls(Call(call.model, args, kwargs), wanted)

    def loss(self, run: Callable[..., Any]) -> tuple[list[Tensor], Tensor]:
        self.call.model.zero_grad()
        for item in self.wanted:
            item.grad = None
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002 PyG draws from the global state
        result = run(*self.call.args, **self.call.kwargs)
        outputs = [item for item in tree_leaves(result) if isinstance(item, Tensor) and item.is_floating_point()]
        kept = [item for item in outputs if item.requires_grad]
        shapes = [item.shape for item in kept]
        if [item.shape for item in self.weights] != shapes:  # drawn once: it is no part of what is timed
            generator = torch.Generator().manual_seed(2)
            self.weights = [torch.randn(shape, generator=generator) for shape in shapes]
        total = sum((item * weight.to(item.dtype)).sum() for item, weight in zip(kept, self.weights, strict=True))
        if not isinstance(total, Tensor):
            total = torch.zeros(())
        return outputs, total

    def __call__(self, run: Callable[..., Any], model: nn.Module) -> dict[str, Tensor]:
        """Outputs, buffers and all gradients."""
        outputs, total = self.loss(run)
        outputs = [item.detach().clone() for item in outputs]  # backward of reversible layers frees them
        if total.requires_grad:
            total.backward()
        found: dict[str, Tensor | None] = {f"output {number}": item for number, item in enumerate(outputs)}
        found |= {f"input {number}": item.grad for number, item in enumerate(self.wanted)}
        found |= {name: parameter.grad for name, parameter in model.named_parameters()}
        found |= {name: item for name, item in model.named_buffers() if item.is_floating_point()}
        return {name: item.detach().clone() for name, item in found.items() if item is not None}


def wrong_values(want: dict[str, Tensor], got: dict[str, Tensor], precise: dict[str, Tensor]) -> list[str]:
    """What differs by more than rounding: as far from float64 as three times eager's own distance is rounding."""
    wrong = []
    for key, expected in want.items():
        if key not in got or got[key].shape != expected.shape:
            wrong.append(f"{key} is missing" if key not in got else f"{key}: shape {tuple(got[key].shape)}")
            continue
        scale = expected.abs().max().item() if expected.numel() else 0.0
        allowed = 2e-4 * scale + 2e-5
        if key in precise and precise[key].shape == expected.shape:
            allowed += 3 * _distance(expected, precise[key])
        if expected.numel() and not _distance(got[key], expected) <= allowed:
            wrong.append(f"{key}: off by {_distance(got[key], expected):.2g} of {scale:.2g}")
    return wrong + [f"{key} should be None" for key in got if key not in want]


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, torch.zeros_like(a), (a - b).abs()).max().item()


# --- check ------------------------------------------------------------------------------------------------------------------


def check(row: Row, case: Case, width: int) -> None:
    try:
        step = Step.make(case, small_graph(width), all_inputs=True)
        model = step.call.model
        start = copy.deepcopy(model)
        want = step(model, model)
    except ImportError as error:  # a package that is not here
        row.eager_error = f"{type(error).__name__}: {error}"
        return
    spare = copy.deepcopy(start)
    counters = torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
    counters.clear()
    RECORDS.clear()
    began = time.perf_counter()
    step = Step(Call(start, step.call.args, step.call.kwargs), step.wanted)
    got = step(plait.compile(start, dynamic=True), start)
    row.compile_s = time.perf_counter() - began
    row.breaks = [str(reason).strip().splitlines()[0][:160] for reason, times in counters.items() for _ in range(times)]
    records = list(RECORDS)
    row.num_captures = len(records)
    row.num_programs = sum(len(programs) for record in records for programs in record.programs.values())
    row.wrong = wrong_values(want, got, {})
    if row.wrong:
        row.wrong = wrong_values(want, got, in_float64(spare, step))
    row.is_right = not row.wrong
    reasons = [str(item) for record in records for item in record.fallbacks]
    reasons += [note for record in records for note in record.notes]
    row.reasons = list(dict.fromkeys(reasons))


def in_float64(model: nn.Module, step: Step) -> dict[str, Tensor]:
    """The same step in double precision; empty where the model does not run so."""
    double = copy.deepcopy(model).double()
    wanted: list[Tensor] = []

    def convert(item: Tensor) -> Tensor:
        if not item.is_floating_point():
            return item
        new = item.detach().double()
        if item.requires_grad:
            wanted.append(new.requires_grad_())
        return new

    args, kwargs = tree_map_only(Tensor, convert, (step.call.args, step.call.kwargs))
    try:
        return Step(Call(double, args, kwargs), wanted)(double, double)
    except Exception:
        log.debug("in float64", exc_info=True)
        return {}


# --- edge tensors -----------------------------------------------------------------------------------------------------------


class EdgeTensors(TorchDispatchMode):
    """The widest float tensor with an axis that counts edges, among what is made while the mode is on."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions run compiled under this mode, too."""
        return True

    def __init__(self, counts: set[int]) -> None:
        super().__init__()
        self.counts = counts
        self.columns = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor) and item.is_floating_point():
                for size in item.shape:
                    if size in self.counts:
                        storage = item.untyped_storage().nbytes() // item.element_size()  # an expanded number is not wide
                        self.columns = max(self.columns, min(storage, item.numel()) // size)
        return result


def columns_of(step: Step, run: Callable[..., Any], counts: set[int]) -> tuple[int, int]:
    with EdgeTensors(counts) as forward:
        _, total = step.loss(run)
    with EdgeTensors(counts) as backward:
        if total.requires_grad:
            total.backward()
    return forward.columns, backward.columns


def engines(model: nn.Module) -> dict[str, Callable[[], Callable[..., Any]]]:
    return {
        "eager": lambda: model,
        "inductor": lambda: torch.compile(model),
        "plait": lambda: plait.compile(model),
    }


def warmed(row: Row, step: Step, names: list[str]) -> dict[str, Callable[..., Any]]:
    """Every engine that runs, compiled by two steps."""
    runs: dict[str, Callable[..., Any]] = {}
    torch._dynamo.reset()
    for name in names:
        try:
            run = engines(step.call.model)[name]()
            for _ in range(2):
                _timed(step, run)
            runs[name] = run
            row.failed.pop(name, None)
        except Exception as error:
            log.debug("%s with %s", row.name, name, exc_info=True)
            row.failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return runs


# --- time -------------------------------------------------------------------------------------------------------------------


def take_times(row: Row, case: Case, graph: Graph, names: list[str]) -> None:
    """Times in turns; then, since a dispatch mode may change how a compiled function runs, the tensors that are made."""
    step = Step.make(case, graph, all_inputs=False)
    runs = warmed(row, step, names)
    if not runs:
        return
    once = {name: _timed(step, run) for name, run in runs.items()}
    rounds = max(3, min(_MOST_STEPS, int(_STEPS_S / (2 * sum(once.values())))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = collections.deque(runs)
    for _ in range(rounds):
        for name in order:
            _timed(step, runs[name])  # not counted: it finds in the caches what another engine has left there
            times[name].append(_timed(step, runs[name]))
        order.rotate(1)  # whoever comes first has no advantage of it
    row.times_ms |= {name: 1e3 * statistics.median(items) for name, items in times.items()}
    counts = edge_counts(graph)
    if "eager" in runs:
        row.eager_columns = columns_of(step, runs["eager"], counts)
    if "plait" in runs:
        row.plait_columns = columns_of(step, runs["plait"], counts)


def _timed(step: Step, run: Callable[..., Any]) -> float:
    begin = time.perf_counter()
    _, total = step.loss(run)
    if total.requires_grad:
        total.backward()
    return time.perf_counter() - begin
