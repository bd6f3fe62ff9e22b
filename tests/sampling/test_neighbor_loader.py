"""NeighborLoader: PyG's attributes, the same batches for any number of threads, resuming, buffers, memory."""

from __future__ import annotations

import gc
import pathlib
import resource
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import PrefetchLoader

from plait import memory
from plait.errors import OptionError, ShapeError
from plait.loader import Graph, NeighborLoader
from plait.sampling import features, native
from tests.sampling import graphs


def make_data(num_nodes: int = 200, num_edges: int = 2000, width: int = 8) -> Data:
    """Features that say which node and edge they belong to."""
    generator = torch.Generator().manual_seed(1)
    return Data(
        x=torch.arange(num_nodes * width).view(num_nodes, width).float(),
        y=torch.arange(num_nodes),
        edge_index=graphs.edges_between(num_nodes, num_nodes, num_edges, generator),
        edge_attr=torch.arange(num_edges).float(),
        name="kept",
    )


def make_hetero() -> HeteroData:
    generator = torch.Generator().manual_seed(1)
    data = HeteroData()
    data["user"].x = torch.arange(30.0)[:, None]
    data["item"].x = torch.arange(20.0)[:, None]
    data["user", "buys", "item"].edge_index = graphs.edges_between(30, 20, 150, generator)
    data["user", "buys", "item"].edge_attr = torch.arange(150.0)
    data["item", "rev_buys", "user"].edge_index = data["user", "buys", "item"].edge_index.flip(0)
    return data


def contents(batch: Any) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in batch.to_dict().items()}


def test_a_batch_has_what_pyg_gives() -> None:
    data = make_data()
    seeds = torch.tensor([3, 5, 8, 13, 21])
    batches = list(NeighborLoader(data, [4, 3], input_nodes=seeds, batch_size=2, shuffle=False))
    first = batches[0]

    assert [batch.batch_size for batch in batches] == [2, 2, 1]
    assert first.input_id.tolist() == [0, 1]
    assert first.n_id[:2].tolist() == [3, 5]
    assert torch.equal(first.x, data.x[first.n_id])
    assert torch.equal(first.y, data.y[first.n_id])
    assert torch.equal(first.edge_attr, data.edge_attr[first.e_id])
    assert torch.equal(first.n_id[first.edge_index], data.edge_index[:, first.e_id])
    assert sum(first.num_sampled_nodes) == first.num_nodes == len(first.n_id)
    assert sum(first.num_sampled_edges) == first.num_edges
    assert first.batch is None
    assert first.name == "kept"
    assert isinstance(first, Data)
    assert "n_id" not in data


def test_a_mask_numbers_its_seeds_by_node() -> None:
    mask = torch.zeros(200, dtype=torch.bool)
    mask[[7, 9]] = True
    [batch] = NeighborLoader(make_data(), [2], input_nodes=mask, batch_size=5)

    assert batch.input_id.tolist() == batch.n_id[:2].tolist() == [7, 9]


def test_a_typed_batch_has_what_pyg_gives() -> None:
    data = make_hetero()
    fanouts = {("user", "buys", "item"): [3, 2], ("item", "rev_buys", "user"): [2, 0]}
    batch = next(iter(NeighborLoader(data, fanouts, input_nodes=("item", torch.tensor([1, 4])), batch_size=2)))
    buys = batch["user", "buys", "item"]

    assert isinstance(batch, HeteroData)
    assert batch["item"].batch_size == 2
    assert batch["item"].n_id[:2].tolist() == [1, 4]
    assert torch.equal(batch["user"].x[:, 0], batch["user"].n_id.float())
    assert torch.equal(buys.edge_attr, buys.e_id.float())
    ends = torch.stack([batch["user"].n_id[buys.edge_index[0]], batch["item"].n_id[buys.edge_index[1]]])
    assert torch.equal(ends, data["user", "buys", "item"].edge_index[:, buys.e_id])
    assert batch["item", "rev_buys", "user"].num_sampled_edges[1] == 0
    assert all(counts <= 3 for counts in torch.bincount(buys.edge_index[1]).tolist())


def test_without_pyg_a_graph_gives_the_same_batches() -> None:
    data = make_data()
    plain = Graph(data.edge_index, 200, {"x": data.x, "y": data.y}, {"edge_attr": data.edge_attr})
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True, "seed": 3}
    for one, other in zip(NeighborLoader(plain, [4, 2], **options), NeighborLoader(data, [4, 2], **options), strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.edge_index, other.edge_index)
        assert torch.equal(one.e_id, other.e_id)


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_batches_are_the_same_for_any_number_of_threads(threads: int) -> None:
    data, options = make_data(), {"batch_size": 16, "shuffle": True, "seed": 11}
    loader, alone = NeighborLoader(data, [5, 3], threads=threads, **options), NeighborLoader(data, [5, 3], threads=0, **options)
    for _ in range(2):
        assert [contents(batch) for batch in loader] == [contents(batch) for batch in alone]


def test_pyg_copies_batches_to_a_device_ahead() -> None:
    """What pins batches and copies them on a stream of its own takes any loader; on a CPU it passes them on."""
    data, options = make_data(), {"batch_size": 16, "shuffle": True, "seed": 11}
    ahead = PrefetchLoader(NeighborLoader(data, [5, 3], **options), device=torch.device("cpu"))

    assert [contents(batch) for batch in ahead] == [contents(batch) for batch in NeighborLoader(data, [5, 3], **options)]


def test_without_a_compiler_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data, options = make_data(), {"batch_size": 16, "shuffle": True, "seed": 11}
    expected = [contents(batch) for batch in NeighborLoader(data, [5, 3], **options)]
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(features, "load", lambda: None)

    assert [contents(batch) for batch in NeighborLoader(data, [5, 3], **options)] == expected


def test_epochs_differ_and_seeds_fix_them() -> None:
    options = {"batch_size": 64, "shuffle": True, "seed": 5}
    loader, again = NeighborLoader(make_data(), [5], **options), NeighborLoader(make_data(), [5], **options)
    first, second = ([contents(batch) for batch in loader] for _ in range(2))

    assert first != second
    assert sorted(i for batch in second for i in batch["input_id"]) == list(range(200))
    assert [contents(batch) for batch in again] == first


def test_manual_seed_fixes_the_batches() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append([contents(batch) for batch in NeighborLoader(make_data(), [5], batch_size=64, shuffle=True)])

    assert found[0] == found[1]


def test_resuming_in_the_middle_of_an_epoch_gives_the_batches_that_are_left() -> None:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": True, "seed": 2}
    whole = NeighborLoader(make_data(), [5, 3], **options)
    list(whole)
    epoch = iter(whole)
    for _ in range(5):
        next(epoch)
    state = whole.state_dict()
    left = [contents(batch) for batch in epoch]
    resumed = NeighborLoader(make_data(), [5, 3], **(options | {"seed": 999, "threads": 1}))
    resumed.load_state_dict(state)

    assert state == {"seed": 2, "epoch": 1, "batch": 5}
    assert [contents(batch) for batch in resumed] == left
    assert [contents(batch) for batch in resumed] == [contents(batch) for batch in whole]


def test_an_epoch_that_is_left_begins_anew() -> None:
    loader = NeighborLoader(make_data(), [5], batch_size=16)
    for _ in loader:
        break

    assert len(list(loader)) == len(loader) == 13
    assert loader.state_dict()["epoch"] == 2


def test_temporal_batches_of_the_reported_failure() -> None:
    """pyg#7794: node 1 asked for at time 1 was given the edge of time 2."""
    data = Data(
        edge_index=torch.tensor([[1, 0, 1, 1, 2], [0, 1, 2, 0, 0]]), edge_time=torch.tensor([1, 2, 3, 4, 5]), num_nodes=3
    )
    options: dict[str, Any] = {"time_attr": "edge_time", "batch_size": 1}
    early, late = (
        next(iter(NeighborLoader(data, [-1, -1], input_nodes=torch.tensor([1]), input_time=torch.tensor([time]), **options)))
        for time in (1, 2)
    )

    assert early.edge_time.tolist() == []
    assert late.edge_time.tolist() == [2, 1]  # 0 -> 1 at time 2, then 1 -> 0 at time 1
    assert late.n_id[late.edge_index].tolist() == [[0, 1], [1, 0]]


def test_times_of_nodes_are_the_seeds_own() -> None:
    data = make_data()
    data.time = torch.arange(200)
    for batch in NeighborLoader(data, [5, 5], batch_size=20, time_attr="time"):
        assert bool((batch.time <= batch.seed_time[batch.batch]).all())
        assert torch.equal(batch.seed_time, batch.time[: batch.batch_size])


def test_bidirectional_batches_have_every_edge_both_ways() -> None:
    batch = next(iter(NeighborLoader(make_data(), [3, 3], batch_size=8, subgraph_type="bidirectional")))
    pairs = set(zip(*batch.edge_index.tolist(), strict=True))

    assert pairs == {(dst, src) for src, dst in pairs}
    assert len(pairs) == batch.num_edges
    assert bool((batch.edge_index[1].diff() >= 0).all())


def test_bidirectional_typed_batches_turn_edges_into_the_reverse_type() -> None:
    fanouts = {("user", "buys", "item"): [3], ("item", "rev_buys", "user"): [0]}
    batch = next(
        iter(NeighborLoader(make_hetero(), fanouts, input_nodes=("item", None), batch_size=4, subgraph_type="bidirectional"))
    )
    there, back = batch["user", "buys", "item"].edge_index, batch["item", "rev_buys", "user"].edge_index

    assert there.shape[1] > 0
    assert set(zip(*there.tolist(), strict=True)) == set(zip(*back.flip(0).tolist(), strict=True))


def test_a_batch_that_is_kept_is_never_overwritten() -> None:
    data = make_data(5000, 40_000, 64)  # features above 1 MiB a batch: they live in the pool
    loader = NeighborLoader(data, [10, 10], batch_size=500, threads=2)
    kept, copies = [], []
    for number, batch in enumerate(loader):
        if number % 3 == 0:
            kept.append(batch.x[:7])  # a view alone
            copies.append(data.x[batch.n_id[:7]])
    for _ in range(2):
        for _batch in loader:
            pass

    assert kept[0].untyped_storage().nbytes() >= memory.POOLED_BYTES
    assert all(torch.equal(view, copy) for view, copy in zip(kept, copies, strict=True))


def test_buffers_are_used_again() -> None:
    data = make_data(5000, 40_000, 64)
    loader = NeighborLoader(data, [10, 10], batch_size=500, threads=2)
    list(zip(loader, range(3), strict=False))
    for _ in loader:
        pass
    before = memory.stats()
    for _ in loader:
        pass
    after = memory.stats()

    assert after.misses - before.misses <= 3  # a batch may be larger than any before it
    assert after.hits - before.hits >= len(loader) - 3


def test_a_batch_dies_with_its_last_tensor() -> None:
    loader = NeighborLoader(make_data(), [5], batch_size=50)
    batch = next(iter(loader))
    alive = weakref.ref(batch.x)
    del batch
    gc.collect()

    assert alive() is None


def test_soak_memory_is_flat() -> None:
    loader = NeighborLoader(make_data(), [5, 3], batch_size=50, shuffle=True, threads=2)

    def run(epochs: int) -> int:
        for _ in range(epochs):
            for _batch in loader:
                pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    run(60)
    peak_kib = run(20)

    assert run(150) - peak_kib < 4096  # 600 batches of 30 KiB would be 18 MiB


def test_memory_mapped_features_and_their_hot_rows(tmp_path: pathlib.Path) -> None:
    data = make_data()
    expected = data.x.clone()
    np.save(tmp_path / "x.npy", data.x.numpy())
    data.x = np.load(tmp_path / "x.npy", mmap_mode="r")
    for hot_rows in (0, 20, 10_000):
        loader = NeighborLoader(data, [5, 3], batch_size=32, hot_rows=hot_rows)
        hot = loader.source.nodes[0].values["x"].hot
        assert (0 if hot is None else len(hot.rows)) == min(hot_rows, 200)
        for batch in loader:
            assert torch.equal(batch.x, expected[batch.n_id])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_arrive_as_they_are_or_widened(dtype: torch.dtype) -> None:
    data = make_data()
    special = torch.tensor([0.0, -0.0, 1e-7, -3e-6, 65504.0, float("inf"), float("-inf"), 1 / 3])
    data.x = torch.cat([special.expand(100, 8), torch.randn(100, 8)]).to(dtype)
    kept, widened = (next(iter(NeighborLoader(data, [5], batch_size=200, upcast=upcast))) for upcast in (False, True))

    assert kept.x.dtype is dtype
    assert torch.equal(kept.x, data.x[kept.n_id])
    assert widened.x.dtype is torch.float32
    assert torch.equal(widened.x, data.x.float()[widened.n_id])


@pytest.mark.parametrize("width", [256, 250])  # rows of whole cache lines are written past the caches, others are not
def test_large_batches_have_the_right_rows(width: int) -> None:
    data = make_data(5000, 40_000, width)
    for batch in NeighborLoader(data, [10, 10], batch_size=2000, threads=2):
        assert batch.x.nbytes > 4 << 20
        assert torch.equal(batch.x, data.x[batch.n_id])


def test_features_that_are_not_rows_in_memory_are_indexed() -> None:
    data = make_data()
    data.x = torch.randn(8, 200).t()  # columns, not rows
    batch = next(iter(NeighborLoader(data, [5], batch_size=32)))

    assert torch.equal(batch.x, data.x[batch.n_id])


def test_a_transform_runs_in_order_in_the_callers_thread() -> None:
    def number(batch: Data) -> Data:
        batch.drawn = torch.rand(())
        return batch

    torch.manual_seed(0)
    found = [
        float(batch.drawn) for batch in NeighborLoader(make_data(), [2], batch_size=50, transform=number, seed=1, threads=2)
    ]
    torch.manual_seed(0)

    assert found == [float(torch.rand(())) for _ in range(4)]


def test_an_error_in_a_thread_says_which_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = NeighborLoader(make_data(), [2], batch_size=50, threads=2)

    def run_out(*_: Any) -> None:
        raise MemoryError("no memory for 83 MB")

    monkeypatch.setattr(memory, "empty", run_out)
    with pytest.raises(MemoryError, match="no memory for 83 MB") as caught:
        list(loader)

    assert caught.value.__notes__ == ["while batch 0 of epoch 0 was prepared"]


def test_a_sampler_of_the_users_chooses_the_seeds() -> None:
    loader = NeighborLoader(make_data(), [2], batch_size=2, sampler=[9, 4, 4])

    assert [batch.n_id[: batch.batch_size].tolist() for batch in loader] == [[9, 4], [4]]
    assert loader([7, 8]).n_id[:2].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_neighbors": [-2]}, OptionError, "at least 0, or -1 for all neighbors, got -2"),
        ({"subgraph_type": "both"}, OptionError, "expected 'directional' or 'bidirectional' or 'induced', got 'both'"),
        ({"temporal_strategy": "first"}, OptionError, "expected 'uniform' or 'last', got 'first'"),
        ({"time_attr": "when"}, OptionError, "time attribute 'when' is neither"),
        ({"time_attr": "edge_time"}, OptionError, "input_time: needed where time_attr is a time of edges"),
        ({"input_time": torch.zeros(200)}, OptionError, "'input_time' is set"),
        ({"weight_attr": "w"}, OptionError, "no edges have an attribute of this name"),
        ({"input_nodes": [0, 200]}, OptionError, "holds 200 at position 1, but there are 200 nodes"),
        ({"input_nodes": torch.ones(3, dtype=torch.bool)}, ShapeError, r"mask of 200 nodes, got shape \[3\]"),
        ({"batch_size": 0}, OptionError, "batch_size: expected at least 1, got 0"),
        ({"threads": -1}, OptionError, "threads: expected at least 0, got -1"),
        ({"bath_size": 4}, OptionError, "unknown option 'bath_size'; valid options: batch_size"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], error: type, message: str) -> None:
    data = make_data()
    data.edge_time = torch.zeros(2000, dtype=torch.int64)
    with pytest.raises(error, match=message):
        len(NeighborLoader(data, **({"num_neighbors": [2]} | options)))


def test_other_data_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"a Data or HeteroData of PyG, or a plait\.loader\.Graph, got int"):
        NeighborLoader(3, [2])
    with pytest.raises(OptionError, match="edge_index: expected int64"):
        NeighborLoader(Data(x=torch.zeros(3, 1), adj_t=torch.eye(3).to_sparse()), [2])


def test_a_graph_without_edges_gives_its_seeds() -> None:
    batches = list(NeighborLoader(Data(x=torch.arange(3)), [2, 2], batch_size=2))

    assert [batch.x.tolist() for batch in batches] == [[0, 1], [2]]


def test_a_typed_graph_needs_a_type_and_all_fanouts() -> None:
    data = make_hetero()
    with pytest.raises(OptionError, match="needs a node type"):
        NeighborLoader(data, [2])
    with pytest.raises(OptionError, match="node type 'shop': the graph has 'user', 'item'"):
        NeighborLoader(data, [2], input_nodes="shop")
    with pytest.raises(OptionError, match="missing number of neighbors for edge type"):
        NeighborLoader(data, {("user", "buys", "item"): [2]}, input_nodes="item")
