"""`plait bench loader`: preparing batches, and an epoch of GraphSAGE on them, beside PyG's NeighborLoader.

PyG samples with pyg-lib or torch-sparse, whichever is installed; a library of torch-sparse's operators can be named instead.
Everything takes turns in one process. Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch_geometric.typing
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader as PygLoader
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import trim_to_layer

from plait.loader import NeighborLoader, blocks
from plait.sampling.features import FeatureRows
from plait.tools.bench import graphs
from plait.tools.engines import compile_with

CLASSES = 40
WARM_BATCHES = 4
PYG_WORKERS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class LoaderBenchOptions:
    """One graph, one set of fan-outs. num_batches: of an epoch; rounds: turns of every loader."""

    graph: str = graphs.LARGE
    fanout: tuple[int, ...] = (15, 10, 5)
    batch_size: int = 1024
    features: int = 128
    width: int = 256
    threads: int = 2
    num_batches: int = 20
    rounds: int = 3
    with_epoch: bool = True
    torch_sparse: str | None = None
    json: str | None = None


@dataclass(kw_only=True)
class Findings:
    """Seconds per batch by what was timed; bytes per second of slicing and of a straight copy; blocked share by epoch."""

    prepare_s: dict[str, float] = field(default_factory=dict)
    epoch_s: dict[str, float] = field(default_factory=dict)
    blocked: dict[str, float] = field(default_factory=dict)
    slice_rate: float = 0.0
    copy_rate: float = 0.0
    notes: list[str] = field(default_factory=list)


def run(options: LoaderBenchOptions, say: Callable[[str], None]) -> Findings:
    """Measures, and says every number as it comes."""
    torch.set_num_threads(options.threads)
    data = make_data(options)
    found = Findings()
    if not _has_sampler(options):
        found.notes.append("PyG's NeighborLoader: not measured, it needs pyg-lib or torch-sparse")
        say(found.notes[-1])
    _time_preparation(options, data, found, say)
    _time_slicing(options, data, found, say)
    if options.with_epoch:
        _time_epochs(options, data, found, say)
    if options.json:
        pathlib.Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(options.json).write_text(json.dumps(dataclasses.asdict(options) | dataclasses.asdict(found), indent=1))
    return found


def make_data(options: LoaderBenchOptions) -> Data:
    """The graph with drawn features [N, F] and classes [N]."""
    graph = graphs.load_graph(options.graph, None, options.features)
    random = torch.Generator().manual_seed(4)
    y = torch.randint(CLASSES, (graph.num_nodes,), generator=random)
    return Data(x=graph.x.detach(), y=y, edge_index=graph.edge_index)


def plait_batches(options: LoaderBenchOptions, data: Data, threads: int) -> Iterator[Any]:
    """Batches without end."""
    loader = NeighborLoader(data, list(options.fanout), batch_size=options.batch_size, shuffle=True, threads=threads, seed=0)
    while True:
        yield from loader


def pyg_batches(options: LoaderBenchOptions, data: Data, workers: int) -> Iterator[Any]:
    """Batches without end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch-sparse will not be supported for ever
        loader = PygLoader(data, list(options.fanout), batch_size=options.batch_size, shuffle=True, num_workers=workers)
    while True:
        yield from loader


def _has_sampler(options: LoaderBenchOptions) -> bool:
    if options.torch_sparse is not None:
        torch.ops.load_library(options.torch_sparse)
        torch_geometric.typing.WITH_TORCH_SPARSE = True
    return bool(torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE)


def _time_preparation(options: LoaderBenchOptions, data: Data, found: Findings, say: Callable[[str], None]) -> None:
    makers: dict[str, Callable[[], Iterator[Any]]] = {
        f"plait, {threads} threads": partial(plait_batches, options, data, threads) for threads in sorted({1, options.threads})
    }
    if _has_sampler(options):
        makers |= {f"PyG, {workers} workers": partial(pyg_batches, options, data, workers) for workers in PYG_WORKERS}
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(options.rounds):
        for name, make in makers.items():
            times[name].append(_seconds_a_batch(make(), options.num_batches))
    for name, seconds in times.items():
        found.prepare_s[name] = statistics.median(seconds)
        say(f"prepare  {name:20} {1e3 * found.prepare_s[name]:8.1f} ms a batch")


def _seconds_a_batch(batches: Iterator[Any], count: int) -> float:
    """The caller does nothing with a batch but ask for the next one."""
    with closing(batches):  # type: ignore[type-var]  # generators, all of them
        for _ in range(WARM_BATCHES):
            next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - start) / count


def _time_slicing(options: LoaderBenchOptions, data: Data, found: Findings, say: Callable[[str], None]) -> None:
    """Rows of a batch, against as many rows one after the other: what memory gives to the same threads and buffers."""
    batches = plait_batches(options, data, 1)
    ids = [next(batches).n_id for _ in range(2 * options.threads)]
    batches.close()  # type: ignore[attr-defined]
    straight = [torch.arange(len(index)) for index in ids]
    rows = FeatureRows(data.x)
    row_bytes = data.x.shape[1] * data.x.itemsize
    rates: dict[str, list[float]] = {"slice": [], "copy": []}
    for _ in range(3 * options.rounds):
        for name, indices in (("slice", ids), ("copy", straight)):
            seconds = _in_threads(rows, indices, options.threads)
            rates[name].append(2 * row_bytes * sum(map(len, indices)) / seconds)
    found.slice_rate, found.copy_rate = (statistics.median(rates[name]) for name in ("slice", "copy"))
    say(
        f"slicing  {found.slice_rate / 1e9:.1f} GB/s read and written, {100 * found.slice_rate / found.copy_rate:.0f} % of "
        f"a straight copy ({found.copy_rate / 1e9:.1f} GB/s), {options.threads} threads"
    )


def _in_threads(rows: FeatureRows, indices: list[Tensor], num_threads: int) -> float:
    def work(mine: list[Tensor]) -> None:
        for index in mine:
            rows.gather(index)

    threads = [threading.Thread(target=work, args=(indices[i::num_threads],)) for i in range(num_threads)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


# epochs


class Sage(nn.Module):
    """GraphSAGE with ReLU, in the three ways a batch can be run."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SAGEConv(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, layers: tuple[Any, ...]) -> Tensor:
        """On blocks: every layer on the rows that the next one reads."""
        for number, (layer, block) in enumerate(zip(self.layers, layers, strict=True)):
            x = layer((x, x[: block.num_dst]), block.edge_index)
            x = x if number == len(layers) - 1 else x.relu()
        return x

    def on_whole_batch(self, x: Tensor, edge_index: Tensor, hops: tuple[list[int], list[int]] | None) -> Tensor:
        """As PyG's examples do; with hops, nodes and edges that no seed needs any more are cut off before each layer."""
        for number, layer in enumerate(self.layers):
            if hops is not None:
                x, edge_index, _ = trim_to_layer(number, hops[0], hops[1], x, edge_index)
            x = layer(x, edge_index)
            x = x if number == len(self.layers) - 1 else x.relu()
        return x


def hop_counts(batch: Any, num_hops: int) -> tuple[list[int], list[int]]:
    """Nodes and edges per hop, which torch-sparse does not tell: nodes are numbered hop by hop, edges ascend by dst."""
    if getattr(batch, "num_sampled_nodes", None) is not None:
        return list(batch.num_sampled_nodes), list(batch.num_sampled_edges)
    src, dst = batch.edge_index
    nodes, edges, begin, end, first = [batch.batch_size], [], 0, batch.batch_size, 0
    for _ in range(num_hops):
        last = int(torch.searchsorted(dst, end))
        edges.append(last - first)
        begin, end, first = end, max(end, int(src[:last].max()) + 1 if last else 0), last
        nodes.append(end - begin)
    return nodes, edges


Forward = Callable[[Any], Tensor]


def _time_epochs(options: LoaderBenchOptions, data: Data, found: Findings, say: Callable[[str], None]) -> None:
    widths = (options.features, *[options.width] * (len(options.fanout) - 1), CLASSES)
    torch.manual_seed(0)
    model = Sage(widths)
    compiled = compile_with("plait", model)
    on_blocks: Mapping[str, Forward] = {
        "plait, compiled": lambda batch: compiled(batch.x, blocks(batch)),
        "plait, eager": lambda batch: model(batch.x, blocks(batch)),
    }
    whole: Mapping[str, Forward] = {
        "PyG, eager, trimmed": lambda batch: model.on_whole_batch(batch.x, batch.edge_index, batch.hops),
        "PyG, eager": lambda batch: model.on_whole_batch(batch.x, batch.edge_index, None),
    }
    for name, forward in on_blocks.items():
        _time_epoch(name, forward, model, plait_batches(options, data, options.threads), options, found, say)
    if not _has_sampler(options):
        return
    best = min((name for name in found.prepare_s if name.startswith("PyG")), key=lambda name: found.prepare_s[name])
    workers = int(best.split()[1])
    for name, forward in whole.items():
        _time_epoch(name, forward, model, pyg_batches(options, data, workers), options, found, say)


def _time_epoch(
    name: str,
    forward: Forward,
    model: nn.Module,
    batches: Iterator[Any],
    options: LoaderBenchOptions,
    found: Findings,
    say: Callable[[str], None],
) -> None:
    """Seconds per batch of training, hop counts and warm-up left out, and the share of it that waited for data."""
    optimizer = torch.optim.Adam(model.parameters())
    blocked, total = 0.0, 0.0
    with closing(batches):  # type: ignore[type-var]  # generators, all of them
        for number in range(WARM_BATCHES + options.num_batches):
            start = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            batch.hops = hop_counts(batch, len(options.fanout))
            counted = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(forward(batch)[: batch.batch_size], batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            done = time.perf_counter()
            if number >= WARM_BATCHES:
                blocked += arrived - start
                total += done - counted + arrived - start
    found.epoch_s[name], found.blocked[name] = total / options.num_batches, blocked / total
    say(f"train    {name:20} {1e3 * found.epoch_s[name]:8.1f} ms a batch, {100 * found.blocked[name]:.1f} % waiting for data")
