"""`plait train --compare`: the un-compiled model and the compiled one, each in a process of its own, side by side."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import pathlib
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from plait.errors import PlaitError
from plait.tools.train import LOSSES_KEPT, Summary, TrainOptions, first_losses, train

NUM_SEEDS = 3
# float32: a loss of a few thousand additions in another order differs by about 1e-6; ten updates of Adam amplify that,
# because it divides by the size of the gradient (seen: 2e-6 with edgeconv, inductor against eager). A wrong gradient shows
# as 1e-2 and more.
LOSS_TOLERANCE = 1e-4
NOISE_SIGMAS = 3.0

# called in the child, so a function of a module: label and options -> what to call after each epoch
Watch = Callable[[str, TrainOptions], Any]


@dataclass(frozen=True, kw_only=True)
class EngineRuns:
    """What one engine did: a summary per seed, and the first losses without dropout."""

    engine: str
    summaries: tuple[Summary, ...]
    losses: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return statistics.fmean(run.test_accuracy for run in self.summaries)

    @property
    def epoch_s(self) -> float:
        return statistics.median(run.epoch_s for run in self.summaries)

    @property
    def first_epoch_s(self) -> float:
        return self.summaries[0].first_epoch_s

    @property
    def peak_bytes(self) -> int:
        return max(run.peak_bytes for run in self.summaries)

    @property
    def working_bytes(self) -> int:
        """Peak less what Python, PyTorch and the data took before the first step."""
        return self.peak_bytes - self.summaries[0].loaded_bytes


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question that the two engines must answer alike."""

    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both engines' runs and whether they agree."""

    reference: EngineRuns
    candidate: EngineRuns
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        return all(check.passed for check in self.checks)


def compare(options: TrainOptions, *, reference: str = "eager", watch: Watch | None = None) -> Comparison:
    """Runs the reference engine and the one in `options`, one after the other, and compares them.

    With dropout the masks differ by design, so accuracies over three seeds are compared, within noise; the first losses are
    always compared with dropout 0.
    """
    seeds = range(options.seed, options.seed + (NUM_SEEDS if options.model.dropout else 1))
    both = [
        _in_own_process(dataclasses.replace(options, engine=engine), tuple(seeds), watch)
        for engine in (reference, options.engine)
    ]
    return Comparison(reference=both[0], candidate=both[1], checks=judge(both[0], both[1], options.model.dropout))


def judge(reference: EngineRuns, candidate: EngineRuns, dropout: float) -> tuple[Check, ...]:
    """Losses without dropout agree within float32 rounding; with dropout the accuracies agree within noise."""
    checks = [_check_losses(reference.losses, candidate.losses)]
    if dropout:
        checks.append(_check_accuracies(reference.summaries, candidate.summaries))
    return tuple(checks)


def _check_losses(expected: tuple[float, ...], got: tuple[float, ...]) -> Check:
    worst, epoch = max((abs(a - b) / max(abs(a), 1e-12), i + 1) for i, (a, b) in enumerate(zip(expected, got, strict=True)))
    finite = all(math.isfinite(loss) for loss in (*expected, *got))
    text = (
        f"first {len(expected)} losses, dropout 0: largest difference {worst:.1e} (step {epoch}), allowed {LOSS_TOLERANCE:.0e}"
    )
    return Check(passed=finite and worst <= LOSS_TOLERANCE, text=text)


def _check_accuracies(expected: tuple[Summary, ...], got: tuple[Summary, ...]) -> Check:
    """Noise: the spread over seeds, and no less than the sampling error of an accuracy measured on this many test nodes."""
    a, b = ([run.test_accuracy for run in runs] for runs in (expected, got))
    difference = abs(statistics.fmean(a) - statistics.fmean(b))
    mean = min(max(statistics.fmean(a + b), 0.01), 0.99)
    sampling = mean * (1 - mean) / expected[0].num_test
    variance = (statistics.variance(a) + statistics.variance(b)) / len(a) + sampling
    allowed = NOISE_SIGMAS * math.sqrt(variance)
    text = f"test accuracy over {len(a)} seeds: difference {100 * difference:.2f} points, noise {100 * allowed:.2f} points"
    return Check(passed=difference <= allowed, text=text)


def _in_own_process(options: TrainOptions, seeds: tuple[int, ...], watch: Watch | None) -> EngineRuns:
    """A spawned process, so that peak memory and the first call are the engine's own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_child, args=(sender, options, seeds, watch))
    with _interrupt_ignored():
        process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise PlaitError(
            f"engine {options.engine!r}: its process ended with exit code {process.exitcode} and no result\n"
            "  -9 means that the system stopped it, most often for lack of memory."
        ) from None
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join()
    if isinstance(answer, PlaitError):
        raise answer
    if isinstance(answer, str):
        raise PlaitError(f"engine {options.engine!r}: {answer}")
    return answer  # a pipe does not know what it carries


@contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """What is started inside ignores Ctrl-C from its first instruction; the parent has it, ends the child and says so."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers, and only it is interrupted
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_child(sender: Connection[Any, Any], options: TrainOptions, seeds: tuple[int, ...], watch: Watch | None) -> None:
    """The whole life of an engine's process; what it has to say goes through the pipe."""
    try:
        sender.send(_run_seeds(options, seeds, watch))
    except PlaitError as error:
        sender.send(error)
    except Exception as error:  # noqa: BLE001  whatever happened in here is told to the parent
        sender.send(f"{type(error).__name__}: {error}")


def _run_seeds(options: TrainOptions, seeds: tuple[int, ...], watch: Watch | None) -> EngineRuns:
    summaries = []
    for seed in seeds:
        out = pathlib.Path(options.out) / options.engine / f"seed-{seed}"
        mine = dataclasses.replace(options, seed=seed, out=str(out))
        label = f"{options.engine}, seed {seed}" if len(seeds) > 1 else options.engine
        if watch is None:
            summaries.append(train(mine))
            continue
        with watch(label, mine) as on_epoch:
            summaries.append(train(mine, on_epoch))
    without_dropout = dataclasses.replace(options, model=dataclasses.replace(options.model, dropout=0.0))
    return EngineRuns(engine=options.engine, summaries=tuple(summaries), losses=first_losses(without_dropout, LOSSES_KEPT))
