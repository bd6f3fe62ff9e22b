"""What `plait bench` shows and writes: tables, JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.tools.bench.bandwidth import Bandwidth, shares
from plait.tools.bench.driver import BenchOptions, CellResult, EngineResult, Spread, geometric_mean
from plait.tools.curves import COLORS
from plait.tools.screen import human_bytes, human_seconds


def show_cell(cell: CellResult, console: Console, machine: Bandwidth | None = None) -> None:
    """One table per cell: a line per engine; below it plait's kernels as shares of the gather bandwidth."""
    title = f"{cell.model} on {cell.graph}: {cell.num_nodes} nodes, {cell.num_edges} edges"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("engine")
    for name in ("training\nstep", "\ninference", "\nx", "first\ncall", "caches\nfull", "new\ngraph", "extra\nmemory"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in cell.results:
        if result.error is not None:
            table.add_row(escape(result.engine), "-")
            continue
        ratio = cell.ratio(result.engine)
        table.add_row(
            escape(result.engine),
            _spread(result.train),
            _spread(result.infer),
            f"{ratio:.2f}" if ratio else "",
            *(human_seconds(s) if s is not None else "" for s in (result.first_call_s, result.warm_call_s, result.new_graph_s)),
            human_bytes(result.extra_bytes) if result.extra_bytes is not None else "",
        )
    console.print(table)
    for result in cell.results:
        for problem in (result.error, result.memory_error):
            if problem is not None:
                console.print(f"{result.engine}: {problem}", style="red", markup=False, soft_wrap=True)
        if machine is not None and result.kernels:
            _show_kernels(result, machine, console)


def _show_kernels(result: EngineResult, machine: Bandwidth, console: Console) -> None:
    seconds = {kernel.name: kernel.seconds for kernel in result.kernels}
    for name, rate, share in shares(result.kernels, machine):
        text = f"  {name}: {human_seconds(seconds[name])}, {human_bytes(rate)}/s, {100 * share:.0f} % of the gather bandwidth"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_ratios(cells: Sequence[CellResult], candidate: str, console: Console) -> None:
    """Models by graphs: how many times faster than the better of eager and inductor, and the geometric mean."""
    ratios = {(cell.model, cell.graph): ratio for cell in cells if (ratio := cell.ratio(candidate)) is not None}
    if not ratios:
        return
    graphs = list(dict.fromkeys(cell.graph for cell in cells))
    console.print(f"{candidate}, training step: times faster than the better of eager and inductor")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for graph in graphs:
        table.add_column(graph, justify="right")
    for model in dict.fromkeys(cell.model for cell in cells):
        table.add_row(model, *(f"{ratios[model, graph]:.2f}" if (model, graph) in ratios else "" for graph in graphs))
    console.print(table)
    console.print(f"geometric mean of {len(ratios)}: {geometric_mean(list(ratios.values())):.2f}")


def show_bandwidth(found: Bandwidth, console: Console) -> None:
    console.print(
        f"memory: copy {human_bytes(found.copy)}/s, random rows of 512 bytes {human_bytes(found.gather)}/s ({found.gather_by})"
    )


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    unit, size = ("s", 1.0) if spread.median >= 1 else ("ms", 1e-3)
    return f"{spread.median / size:.3g} {unit}\n[dim]{spread.low / size:.3g}-{spread.high / size:.3g}[/dim]"


def as_json(cells: Sequence[CellResult], options: BenchOptions, bandwidth: Bandwidth | None, candidate: str) -> dict[str, Any]:
    """Everything measured, and on what machine."""
    ratios = [ratio for cell in cells if (ratio := cell.ratio(candidate)) is not None]
    return {
        "machine": {
            "processor": processor_name(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": options.threads,
        },
        "options": dataclasses.asdict(options),
        "bandwidth": dataclasses.asdict(bandwidth) if bandwidth else None,
        "cells": [dataclasses.asdict(cell) | {"ratio": cell.ratio(candidate)} for cell in cells],
        "geometric_mean": geometric_mean(ratios) if ratios else None,
    }


def processor_name() -> str:
    """As /proc/cpuinfo calls it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")


def draw(cells: Sequence[CellResult], path: pathlib.Path) -> None:
    """Two rows of bars, one group per cell: training step time and extra memory, both on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    engines = list(dict.fromkeys(result.engine for cell in cells for result in cell.results))
    figure = Figure(figsize=(max(6.0, 1.2 * len(cells)), 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    width = 0.8 / max(1, len(engines))
    for i, engine in enumerate(engines):
        found: list[EngineResult | None] = [cell.engine(engine) for cell in cells]
        places = [place + i * width for place in range(len(cells))]
        times = [result.train.median * 1e3 if result and result.train else 0.0 for result in found]
        sizes = [max(0, result.extra_bytes or 0) / 1e6 if result else 0.0 for result in found]
        above.bar(places, times, width, label=engine, color=COLORS[i % len(COLORS)])
        below.bar(places, sizes, width, color=COLORS[i % len(COLORS)])
    for axes, name in ((above, "training step, ms"), (below, "extra memory, MB")):
        axes.set_ylabel(name)
        if any(patch.get_height() > 0 for patch in axes.patches):
            axes.set_yscale("log")
        axes.grid(axis="y", alpha=0.3)
    below.set_xticks([place + 0.4 - width / 2 for place in range(len(cells))])
    below.set_xticklabels([f"{cell.model}\n{cell.graph}" for cell in cells], fontsize=7, rotation=45, ha="right")
    above.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
