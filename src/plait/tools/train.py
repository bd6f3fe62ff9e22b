"""The training loop of `plait train`: early stopping, a checkpoint that resumes, metrics as JSON lines, one picture."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.errors import DataError, OptionError
from plait.tools import memory
from plait.tools.curves import draw_curves
from plait.tools.data import GraphData, SourceOptions, load
from plait.tools.engines import compile_with
from plait.tools.models import ModelSpec, NodeClassifier, edge_inputs
from plait.tools.train_sampled import LoaderSpec, SampledEpochs

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
SAVE_EVERY_S = 2.0  # at most so much work is lost when the process is killed
LOSSES_KEPT = 10


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything a run depends on."""

    data: str = "digits"
    source: SourceOptions = field(default_factory=SourceOptions)
    model: ModelSpec = field(default_factory=ModelSpec)
    loader: LoaderSpec = field(default_factory=LoaderSpec)
    engine: str = "plait"
    epochs: int = 200
    patience: int = 50
    lr: float = 0.01
    weight_decay: float = 5e-4
    seed: int = 0
    threads: int | None = None
    out: str = "runs/train"
    resume: bool = False

    def __post_init__(self) -> None:
        for key, number in (("epochs", self.epochs), ("patience", self.patience)):
            if number < 1:
                raise OptionError(f"{key}: expected at least 1, got {number}")
        if not self.lr > 0:
            raise OptionError(f"lr: expected a positive number, got {self.lr}")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads: expected at least 1, got {self.threads}")
        self.loader.fanouts(self.model.layers)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit; a run may resume with more epochs or another engine."""
        everything = dataclasses.asdict(self)
        for key in ("engine", "epochs", "patience", "threads", "out", "resume"):
            del everything[key]
        del everything["source"]["download_dir"]
        return everything


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch: `step_s` is forward, backward and update, `eval_s` the forward without gradients for the accuracies."""

    epoch: int
    loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    step_s: float
    eval_s: float

    @property
    def seconds(self) -> float:
        return self.step_s + self.eval_s


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to. `epoch_s` is the median without the first epoch, which compiles."""

    engine: str
    data: str
    model: str
    seed: int
    num_epochs: int
    stopped_early: bool
    best_epoch: int
    val_accuracy: float
    test_accuracy: float
    num_test: int
    epoch_s: float
    first_epoch_s: float
    peak_bytes: int
    loaded_bytes: int  # resident before the first step: Python, PyTorch and the data
    losses: tuple[float, ...]  # of the first epochs
    notes: tuple[str, ...]


def train(options: TrainOptions, on_epoch: Callable[[Epoch], None] | None = None) -> Summary:
    """Trains, and leaves metrics.jsonl, curves.png, best.pt and last.pt in the directory `options.out`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    graph = load(options.data, options.source)
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run.start(options, graph)
    if options.resume:
        run.restore(_read_checkpoint(out / "last.pt"))
    loaded_bytes = memory.resident_bytes()
    with open(out / "metrics.jsonl", "w", encoding="utf8") as metrics:
        _write_line(metrics, "options", dataclasses.asdict(options) | {"notes": list(graph.notes)})
        for epoch in run.history:
            _write_line(metrics, "epoch", dataclasses.asdict(epoch))
        for epoch in run.epochs(out):
            _write_line(metrics, "epoch", dataclasses.asdict(epoch))
            if on_epoch:
                on_epoch(epoch)
        summary = _summarise(run, out, loaded_bytes)
        _write_line(metrics, "summary", dataclasses.asdict(summary))
    draw_curves(
        {options.engine: [dataclasses.asdict(epoch) for epoch in run.history]}, out / "curves.png", title=str(graph.name)
    )
    return summary


def first_losses(options: TrainOptions, num_steps: int) -> tuple[float, ...]:
    """The losses of the first steps, no validation and no files: what two engines are compared by."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    run = _Run.start(options, load(options.data, options.source))
    return tuple(run.step() for _ in range(num_steps))


class _Run:
    """The state of a training run: model, optimizer, what has happened so far."""

    def __init__(
        self,
        options: TrainOptions,
        graph: GraphData,
        model: NodeClassifier,
        compiled: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.options = options
        self.graph = graph
        self.model = model
        self.compiled = compiled
        self.optimizer = optimizer
        self.inputs: tuple[Tensor, ...] = (graph.x, *edge_inputs(options.model, graph.edge_index, graph.num_nodes))
        self.sampled: SampledEpochs | None = None
        if options.loader.kind == "neighbor":
            self.sampled = SampledEpochs(options.loader, options.model, graph, options.seed, model, options.engine)
        self.history: list[Epoch] = []
        self.best: Epoch | None = None

    @staticmethod
    def start(options: TrainOptions, graph: GraphData) -> _Run:
        torch.manual_seed(options.seed)
        model = NodeClassifier(options.model, graph.x.shape[1], graph.num_classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        return _Run(options, graph, model, compile_with(options.engine, model), optimizer)

    def step(self, after_batch: Callable[[], None] = lambda: None) -> float:
        """Forward, backward, update; the loss before the update. With sampled batches all of an epoch, and the mean loss."""
        if self.sampled is not None:
            return self.sampled.run(self.optimizer, after_batch)
        self.compiled.train()
        self.optimizer.zero_grad(set_to_none=True)
        part = self.graph.train_idx
        loss = F.cross_entropy(self.compiled(*self.inputs)[part], self.graph.y[part])
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def scores(self) -> Tensor:
        self.compiled.eval()
        return self.compiled(*self.inputs)

    def accuracy(self, scores: Tensor, part: Tensor) -> float:
        return float((scores[part].argmax(1) == self.graph.y[part]).float().mean())

    def epochs(self, out: pathlib.Path) -> Iterator[Epoch]:
        """Runs the epochs that are left, saving the best and, now and then, the last."""
        saved_at = time.perf_counter()

        def save_now_and_then() -> None:
            nonlocal saved_at
            if time.perf_counter() - saved_at > SAVE_EVERY_S:
                _write_checkpoint(out / "last.pt", self.state())
                saved_at = time.perf_counter()

        while len(self.history) < self.options.epochs and not self.is_stale():
            epoch = self._epoch(save_now_and_then)
            self.add(epoch)
            if self.best is epoch:
                _write_checkpoint(out / "best.pt", self.state())
            save_now_and_then()
            yield epoch
        _write_checkpoint(out / "last.pt", self.state())

    def _epoch(self, after_batch: Callable[[], None]) -> Epoch:
        start = time.perf_counter()
        loss = self.step(after_batch)
        stepped = time.perf_counter()
        scores = self.scores()
        val = self.graph.val_idx
        val_loss = float(F.cross_entropy(scores[val], self.graph.y[val]))
        train_accuracy, val_accuracy = self.accuracy(scores, self.graph.train_idx), self.accuracy(scores, val)
        return Epoch(
            epoch=len(self.history) + 1,
            loss=loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            step_s=stepped - start,
            eval_s=time.perf_counter() - stepped,
        )

    def add(self, epoch: Epoch) -> None:
        """The best epoch has the highest validation accuracy; of equal ones the lower validation loss, then the earlier."""
        self.history.append(epoch)
        rank = (epoch.val_accuracy, -epoch.val_loss)
        if self.best is None or rank > (self.best.val_accuracy, -self.best.val_loss):
            self.best = epoch

    def is_stale(self) -> bool:
        """Whether validation has not improved for `patience` epochs."""
        return self.best is not None and len(self.history) - self.best.epoch >= self.options.patience

    def state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "identity": self.options.identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "sampled": self.sampled.state() if self.sampled else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        mine, theirs = self.options.identity(), state["identity"]
        different = [key for key in mine if mine[key] != theirs.get(key)]
        if different:
            shown = "; ".join(f"{key}: {theirs.get(key)} in the checkpoint, {mine[key]} now" for key in different)
            raise OptionError(f"--resume: the checkpoint in {self.options.out} is of another run: {shown}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        for epoch in state["history"]:
            self.add(Epoch(**epoch))
        if self.sampled:
            self.sampled.restore(state["sampled"])


def _summarise(run: _Run, out: pathlib.Path, loaded_bytes: int) -> Summary:
    """The test accuracy is that of the best epoch's weights."""
    best = run.best
    assert best is not None  # at least one epoch ran, or was restored
    run.model.load_state_dict(_read_checkpoint(out / "best.pt")["model"])
    later = [epoch.seconds for epoch in run.history[1:]] or [run.history[0].seconds]
    return Summary(
        engine=run.options.engine,
        data=run.graph.name,
        model=run.options.model.name,
        seed=run.options.seed,
        num_epochs=len(run.history),
        stopped_early=len(run.history) < run.options.epochs,
        best_epoch=best.epoch,
        val_accuracy=best.val_accuracy,
        test_accuracy=run.accuracy(run.scores(), run.graph.test_idx),
        num_test=len(run.graph.test_idx),
        epoch_s=statistics.median(later),
        first_epoch_s=run.history[0].seconds,
        peak_bytes=memory.peak_bytes(),
        loaded_bytes=loaded_bytes,
        losses=tuple(epoch.loss for epoch in run.history[:LOSSES_KEPT]),
        notes=run.graph.notes,
    )


def _write_line(file: TextIO, kind: str, values: dict[str, Any]) -> None:
    file.write(json.dumps({"kind": kind} | values) + "\n")
    file.flush()


def _write_checkpoint(path: pathlib.Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a kill while writing leaves the older file."""
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"{path}: no checkpoint to resume from\n  Train without --resume first, or name the directory with --out."
        )
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it and train again") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise DataError(f"{path}: expected a checkpoint of format {CHECKPOINT_FORMAT}")
    return state
