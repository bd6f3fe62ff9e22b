"""`plait bench` from start to end: cells one after the other, shown as they come, written after each one."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.status import Status

from plait.errors import OptionError
from plait.tools.bench import bandwidth, graphs, report
from plait.tools.bench.driver import BenchOptions, CellResult, run_cell
from plait.tools.bench.layers import find_layer
from plait.tools.screen import console

ALL_MODELS = ("gcn", "gcn_plain", "sage", "sage_max", "gin", "gat", "gat_plain", "gatv2", "gmm", "edgeconv", "transformer")
QUICK_MODELS = ("gcn", "sage", "gat", "gatv2", "edgeconv")
GENERATED_GRAPHS = (graphs.CORA_SIZED, graphs.SMALL, graphs.LARGE)
QUICK_GRAPHS = (graphs.SMALL,)
CANDIDATE = "plait"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which cells, and where the results go."""

    models: tuple[str, ...]
    graphs: tuple[str, ...]
    json: str | None = None
    png: str | None = None
    with_bandwidth: bool = True


def make_plan(
    models: Sequence[str], names: Sequence[str], *, quick: bool, data_dir: str | None, json: str | None, png: str | None
) -> Plan:
    """Fills in the defaults; an unknown model or graph is an error before anything runs."""
    real = tuple(graphs.REAL_FILES) if data_dir else ()
    plan = Plan(
        models=tuple(models) or (QUICK_MODELS if quick else ALL_MODELS),
        graphs=tuple(names) or (QUICK_GRAPHS if quick else GENERATED_GRAPHS + real),
        json=json,
        png=png,
    )
    for model in plan.models:
        find_layer(model)
    for name in plan.graphs:
        graphs.check_name(name, data_dir)
    return plan


def run(plan: Plan, options: BenchOptions) -> list[CellResult]:
    """All cells. Raises nothing for an engine that fails: the table says so."""
    if not options.engines:
        raise OptionError("engines: expected at least one")
    found_bandwidth = None
    if plan.with_bandwidth:
        torch.set_num_threads(options.threads)
        with console.status("memory bandwidth"):
            found_bandwidth = bandwidth.measure()
        report.show_bandwidth(found_bandwidth, console)
    cells: list[CellResult] = []
    for graph in plan.graphs:
        for model in plan.models:
            label = f"{model} on {graph}"
            with console.status(label) as status:
                cells.append(run_cell(model, graph, options, partial(_show_state, status, label)))
            report.show_cell(cells[-1], console, found_bandwidth)
            if plan.json:
                report.write_json(pathlib.Path(plan.json), report.as_json(cells, options, found_bandwidth, CANDIDATE))
    report.show_ratios(cells, CANDIDATE, console)
    if plan.png:
        report.draw(cells, pathlib.Path(plan.png))
    return cells


def _show_state(status: Status, label: str, state: str) -> None:
    status.update(f"{label}: {state}")


def has_wrong_engine(cells: Sequence[CellResult]) -> bool:
    """Whether some engine gave other numbers than eager."""
    return any(result.is_wrong for cell in cells for result in cell.results)
