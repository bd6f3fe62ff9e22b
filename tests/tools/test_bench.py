"""The benchmark: what it measures on a tiny cell, and that it times nothing that is wrong."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest
import torch
from rich.console import Console

from plait.errors import DataError, OptionError
from plait.tools.bench import bandwidth, graphs, layers, report, worker
from plait.tools.bench.check import compare_files
from plait.tools.bench.driver import BenchOptions, CellResult, EngineResult, Spread, can_run, geometric_mean, run_cell
from plait.tools.bench.run import make_plan

TINY = "powerlaw:50/300"
WRONG_ENGINE = """
def halve_gradient(model):
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * 0.5)
    return model
"""


def tiny_options(*engines: str, **changes: object) -> BenchOptions:
    return BenchOptions(engines=engines, rounds=3, seconds=0.5, width=8, threads=1, **changes)  # type: ignore[arg-type]


def test_a_cell_has_times_and_memory_of_every_engine() -> None:
    cell = run_cell("gcn", TINY, tiny_options("eager"))

    assert (cell.num_nodes, cell.num_edges) == (50, 300)
    assert [result.engine for result in cell.results] == ["eager"]
    for result in cell.results:
        assert result.error is None
        assert result.train is not None
        assert result.infer is not None
        assert 0 < result.train.low <= result.train.median <= result.train.high
        assert result.first_call_s is not None
        assert result.warm_call_s is not None
        assert result.extra_bytes is not None
    assert cell.ratio("eager") == 1.0


def test_an_engine_with_a_wrong_gradient_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG_ENGINE)
    wrong = f"{tmp_path}/wrong.py:halve_gradient"
    cell = run_cell("sage", TINY, tiny_options("eager", wrong, with_memory=False, with_inference=False))

    refused = cell.engine(wrong)
    assert refused is not None
    assert refused.is_wrong
    assert refused.train is None
    assert "grad differs from eager" in str(refused.error)
    assert cell.engine("eager") is not None


def test_an_engine_that_fails_is_told_in_a_line() -> None:
    assert worker.explain(RuntimeError("no such luck\nat line 3")) == "RuntimeError: no such luck"
    assert worker.explain(RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")) == "out of memory"
    assert worker.explain(OptionError("engine 'x'")) == "engine 'x'"


@pytest.mark.parametrize("name", layers.SparseStack.MODELS)
def test_torch_sparse_computes_the_same_layer(name: str) -> None:
    graph = graphs.load_graph(TINY, None, 8)
    model = layers.make_model(name, (8, 8, 8))
    expected, got = model(graph.x, graph.edge_index), layers.SparseStack(name, model)(graph.x, graph.edge_index)

    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(out.square().sum(), (graph.x, *model.parameters())) for out in (expected, got)]
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", layers.LAYERS)
@pytest.mark.parametrize("width", [7, 8])
def test_every_layer_runs_at_odd_and_even_width(name: str, width: int) -> None:
    graph = graphs.load_graph(TINY, None, width)

    assert layers.make_model(name, graph.widths)(graph.x, *layers.edges_of(name, graph)).shape == (50, width)


@pytest.mark.parametrize(
    ("change", "allowed"), [(0.0, True), (1e-5, True), (1e-1, False), (float("nan"), False), (float("inf"), False)]
)
def test_the_check_is_relative_to_the_largest_entry(tmp_path: pathlib.Path, change: float, allowed: bool) -> None:
    expected = np.linspace(-2, 2, 100, dtype=np.float32)
    got = expected.copy()
    got[50] += change
    np.savez(tmp_path / "a.npz", out=expected)
    np.savez(tmp_path / "b.npz", out=got)

    assert compare_files(tmp_path / "a.npz", tmp_path / "b.npz", "gat").is_allowed is allowed


def test_a_missing_gradient_is_wrong(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "a.npz", out=np.ones(3), grad=np.ones(3))
    np.savez(tmp_path / "b.npz", out=np.ones(3))

    assert not compare_files(tmp_path / "a.npz", tmp_path / "b.npz", "gat").is_allowed


def test_a_maximum_may_choose_another_of_two_near_values(tmp_path: pathlib.Path) -> None:
    expected = np.ones(100_000, np.float32)
    flipped, wrong = expected.copy(), expected.copy()
    flipped[3] = 0.0
    wrong[::100] = 0.0
    np.savez(tmp_path / "eager.npz", grad=expected)
    np.savez(tmp_path / "flipped.npz", grad=flipped)
    np.savez(tmp_path / "wrong.npz", grad=wrong)

    assert compare_files(tmp_path / "eager.npz", tmp_path / "flipped.npz", "edgeconv").is_allowed
    assert not compare_files(tmp_path / "eager.npz", tmp_path / "wrong.npz", "edgeconv").is_allowed
    assert not compare_files(tmp_path / "eager.npz", tmp_path / "flipped.npz", "gat").is_allowed


def made_up_cell() -> CellResult:
    def result(engine: str, seconds: float) -> EngineResult:
        spread = Spread(low=seconds, median=seconds, high=seconds, num_samples=1)
        return EngineResult(engine=engine, train=spread, infer=spread, first_call_s=1.0, extra_bytes=1000)

    results = (
        result("eager", 4.0),
        result("inductor", 2.0),
        result("plait", 0.5),
        EngineResult(engine="dgl", error="[no] dgl"),
    )
    return CellResult(model="gat", graph=TINY, num_nodes=50, num_edges=300, results=results)


def test_the_ratio_is_against_the_better_of_eager_and_inductor() -> None:
    assert made_up_cell().ratio() == 4.0
    assert made_up_cell().ratio("dgl") is None
    assert math.isclose(geometric_mean([1.0, 4.0, 16.0]), 4.0)


def test_results_are_shown_written_and_drawn(tmp_path: pathlib.Path) -> None:
    cell = made_up_cell()
    console = Console(record=True, width=100, file=(tmp_path / "out.txt").open("w"))
    report.show_cell(cell, console)
    report.show_ratios([cell], "plait", console)
    console.file.close()
    report.write_json(tmp_path / "a" / "bench.json", report.as_json([cell], tiny_options("eager"), None, "plait"))
    report.draw([cell], tmp_path / "bench.png")

    text = console.export_text()
    assert "500 ms" in text
    assert "[no] dgl" in text
    assert "geometric mean of 1: 4.00" in text
    content = json.loads((tmp_path / "a" / "bench.json").read_text())
    assert content["cells"][0]["ratio"] == content["geometric_mean"] == 4.0
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_checked_before_anything_runs(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="model 'gta'"):
        make_plan(["gta"], [], quick=False, data_dir=None, json=None, png=None)
    with pytest.raises(DataError, match=r"graph 'cora': name the directory"):
        make_plan(["gat"], ["cora"], quick=False, data_dir=None, json=None, png=None)
    with pytest.raises(DataError, match=r"cora.npz: no such file"):
        make_plan(["gat"], ["cora"], quick=False, data_dir=str(tmp_path), json=None, png=None)


def test_a_real_graph_has_its_features_and_two_layers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.npz"
    x = np.ones((4, 10), np.float32)
    np.savez(path, num_nodes=np.int32(4), edge_index=np.array([[0, 1], [1, 2]]), undirected=np.uint8(1), x=x)

    graph, projected = graphs.load_graph(str(path), None), graphs.load_graph(f"{path}@3", None)
    assert graph.widths == (10, 64, 8)
    assert not graph.x.requires_grad
    assert projected.x.shape == (4, 3)


def test_sizes_are_read_with_their_units() -> None:
    graph = graphs.load_graph("rmat:0.1k/200", None, 4)

    assert (graph.num_nodes, graph.num_edges) == (100, 200)


def test_engines_are_left_out_of_what_they_cannot_do() -> None:
    assert can_run("torch_sparse", "gin")
    assert not can_run("torch_sparse", "gat")
    assert not can_run("dgl", "transformer")


def test_a_share_is_of_the_gather_bandwidth() -> None:
    machine = bandwidth.Bandwidth(copy=2e10, gather=1e10, gather_by="kernel")
    kernels = [bandwidth.KernelTraffic(name=name, bytes=size, seconds=1.0) for name, size in (("a", 8e9), ("b", 5e9))]

    assert bandwidth.shares(kernels, machine) == [("b", 5e9, 0.5), ("a", 8e9, 0.8)]
