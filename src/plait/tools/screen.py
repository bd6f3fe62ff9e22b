"""What the command line shows: progress of a training run, summaries, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from plait.tools.compare import Comparison, EngineRuns
from plait.tools.train import Epoch, Summary, TrainOptions

console = Console()
complaints = Console(stderr=True)


def human_bytes(count: float) -> str:
    """
    >>> human_bytes(2_265_000_000)
    '2.27 GB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """
    >>> human_seconds(0.0123)
    '12.3 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


@contextmanager
def watch_training(label: str, options: TrainOptions) -> Iterator[Callable[[Epoch], None]]:
    """A progress bar; gives what to call after each epoch."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=options.epochs, state="loading, then compiling" * (options.engine != "eager"))

        def on_epoch(epoch: Epoch) -> None:
            state = f"loss {epoch.loss:.3f}, validation {epoch.val_accuracy:.3f}"
            progress.update(task, completed=epoch.epoch, state=state)

        yield on_epoch


def show_summary(summary: Summary, out: str) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    stopped = f"stopped early after {summary.num_epochs}" if summary.stopped_early else f"all {summary.num_epochs} run"
    for name, text in (
        ("model", f"{summary.model}, engine {summary.engine}, seed {summary.seed}"),
        ("data", ", ".join([summary.data, *summary.notes])),
        ("test accuracy", f"{summary.test_accuracy:.4f} (validation {summary.val_accuracy:.4f})"),
        ("epochs", f"{stopped}, best {summary.best_epoch}"),
        ("time per epoch", f"{human_seconds(summary.epoch_s)} (median; the first took {human_seconds(summary.first_epoch_s)})"),
        ("peak memory", f"{human_bytes(summary.peak_bytes)} ({human_bytes(summary.loaded_bytes)} before the first step)"),
        ("files", f"{out}/metrics.jsonl, curves.png, best.pt, last.pt"),
    ):
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    console.print(table)


def show_comparison(result: Comparison, options: TrainOptions) -> None:
    first = result.reference.summaries[0]
    table = Table(title=f"{first.model} on {first.data}: {options.model.layers} layers, width {options.model.width}")
    table.add_column("")
    for runs in (result.reference, result.candidate):
        table.add_column(runs.engine, justify="right")
    table.add_column(f"{result.reference.engine} / {result.candidate.engine}", justify="right")
    rows: tuple[tuple[str, Callable[[EngineRuns], float], Callable[[float], str]], ...] = (
        ("time per epoch", lambda runs: runs.epoch_s, human_seconds),
        ("first epoch, compile included", lambda runs: runs.first_epoch_s, human_seconds),
        ("peak memory", lambda runs: runs.peak_bytes, human_bytes),
        ("peak memory of the steps alone", lambda runs: runs.working_bytes, human_bytes),
    )
    seeds = len(result.reference.summaries)
    name = "test accuracy" if seeds == 1 else f"test accuracy, mean of {seeds} seeds"
    table.add_row(name, f"{result.reference.accuracy:.4f}", f"{result.candidate.accuracy:.4f}", "")
    for name, value, human in rows:
        a, b = value(result.reference), value(result.candidate)
        table.add_row(name, human(a), human(b), f"{a / b:.2f}x" if b > 0 else "")
    console.print(table)
    for check in result.checks:
        mark = "[green]agree[/green]" if check.passed else "[red]DISAGREE[/red]"
        console.print(f"{mark}  {check.text}", soft_wrap=True)
    console.print(f"files  {options.out}/ENGINE/seed-N/", soft_wrap=True)
