"""LinkNeighborLoader: pairs and their rows, negative edges, labels, time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import NegativeSampling as PygNegativeSampling

from plait.errors import OptionError, ShapeError
from plait.loader import LinkNeighborLoader, NegativeSampling
from plait.sampling.negative import NodeDraw
from tests.sampling import graphs


def make_data() -> Data:
    generator = torch.Generator().manual_seed(1)
    return Data(x=torch.arange(60.0)[:, None], edge_index=graphs.edges_between(60, 60, 300, generator))


def make_hetero() -> HeteroData:
    generator = torch.Generator().manual_seed(1)
    data = HeteroData()
    data["user"].x, data["item"].x = torch.arange(30.0)[:, None], torch.arange(20.0)[:, None]
    data["user", "buys", "item"].edge_index = graphs.edges_between(30, 20, 150, generator)
    data["item", "rev_buys", "user"].edge_index = data["user", "buys", "item"].edge_index.flip(0)
    return data


def test_pairs_point_to_the_rows_of_their_nodes() -> None:
    data = make_data()
    label = torch.arange(300)
    for batch in LinkNeighborLoader(data, [3, 2], edge_label=label, batch_size=64, shuffle=True, threads=2):
        assert torch.equal(batch.n_id[batch.edge_label_index], data.edge_index[:, batch.input_id])
        assert torch.equal(batch.edge_label, batch.input_id)
        assert torch.equal(batch.x[:, 0], batch.n_id.float())


def test_binary_negatives_follow_the_positives_with_label_zero() -> None:
    loader = LinkNeighborLoader(make_data(), [3], neg_sampling=PygNegativeSampling("binary", 1.5), batch_size=100, seed=1)
    batch = next(iter(loader))

    assert batch.edge_label.tolist() == [1.0] * 100 + [0.0] * 150
    assert batch.edge_label_index.shape == (2, 250)
    assert torch.equal(
        next(iter(LinkNeighborLoader(make_data(), [3], neg_sampling_ratio=1.5, batch_size=100, seed=1))).n_id, batch.n_id
    )


def test_labels_of_the_users_make_room_for_the_negatives() -> None:
    loader = LinkNeighborLoader(make_data(), [3], edge_label=torch.arange(300) % 3, neg_sampling="binary", batch_size=6)

    assert next(iter(loader)).edge_label.tolist() == [1, 2, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("amount", [1, 3])
@pytest.mark.parametrize("disjoint", [False, True])
def test_triplets(amount: int, disjoint: bool) -> None:
    data = make_data()
    loader = LinkNeighborLoader(data, [3], neg_sampling=NegativeSampling("triplet", amount), batch_size=40, disjoint=disjoint)
    batch = next(iter(loader))

    assert torch.equal(batch.n_id[batch.src_index], data.edge_index[0, :40])
    assert torch.equal(batch.n_id[batch.dst_pos_index], data.edge_index[1, :40])
    assert batch.dst_neg_index.shape == ((40,) if amount == 1 else (40, amount))
    assert "edge_label_index" not in batch
    if disjoint:
        negatives = batch.batch[batch.dst_neg_index.view(40, -1)]
        assert bool((negatives == torch.arange(40)[:, None]).all())


@pytest.mark.parametrize("disjoint", [False, True])
def test_typed_pairs(disjoint: bool) -> None:
    data = make_hetero()
    kind = ("user", "buys", "item")
    loader = LinkNeighborLoader(
        data, [3, 2], edge_label_index=kind, neg_sampling="binary", batch_size=20, disjoint=disjoint, shuffle=True
    )
    for batch in loader:
        rows = batch[kind].edge_label_index
        count = len(batch[kind].input_id)
        ends = torch.stack([batch["user"].n_id[rows[0]], batch["item"].n_id[rows[1]]])
        assert torch.equal(ends[:, :count], data[kind].edge_index[:, batch[kind].input_id])
        assert batch[kind].edge_label.tolist() == [1.0] * count + [0.0] * count
        if disjoint:
            assert torch.equal(batch["user"].batch[rows[0]], batch["item"].batch[rows[1]])


def test_temporal_pairs_see_nothing_later() -> None:
    data = make_data()
    data.time = torch.arange(60)
    time = torch.randint(10, 60, (300,), generator=torch.Generator().manual_seed(0))
    loader = LinkNeighborLoader(
        data, [4, 4], edge_label_time=time, time_attr="time", neg_sampling=NegativeSampling("triplet", 2), batch_size=50
    )
    for batch in loader:
        limits = batch.seed_time[batch.batch]
        negatives = batch.dst_neg_index
        is_neighbour = torch.arange(batch.num_nodes) >= 4 * len(batch.input_id)

        assert bool((batch.time <= limits)[is_neighbour].all())
        assert bool((batch.time[negatives] <= batch.seed_time[:, None]).all())


def test_the_same_batches_for_any_number_of_threads() -> None:
    def run(threads: int) -> list[Any]:
        options: dict[str, Any] = {"batch_size": 30, "shuffle": True, "seed": 4, "neg_sampling": "binary"}
        loader = LinkNeighborLoader(make_data(), [3, 2], threads=threads, **options)
        return [(batch.n_id.tolist(), batch.edge_label_index.tolist(), batch.edge_index.tolist()) for batch in loader]

    assert run(0) == run(1) == run(4)


def test_nodes_are_drawn_in_proportion_to_their_weights_up_to_their_time() -> None:
    weight, time = torch.tensor([1.0, 2.0, 0.0, 4.0, 1.0]), np.array([3, 0, 1, 2, 9])
    drawn = NodeDraw(5, weight, time, "dst").draw(3, np.full(14_000, 3), 14_000)
    counts = torch.bincount(drawn, minlength=5)
    expected = torch.tensor([1.0, 2.0, 4.0]) * 2000

    assert counts[2] == counts[4] == 0
    assert float(((counts[[0, 1, 3]] - expected) ** 2 / expected).sum()) < 13.82  # chi-square, two degrees, 0.999


def test_all_nodes_are_drawn_equally_often() -> None:
    counts = torch.bincount(NodeDraw(10, None, None, "dst").draw(1, None, 50_000), minlength=10)

    assert float(((counts - 5000) ** 2 / 5000).sum()) < 27.88  # chi-square, nine degrees, 0.999


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neg_sampling": "ternary"}, OptionError, "expected 'binary' or 'triplet', got 'ternary'"),
        ({"neg_sampling": ("binary", 0)}, OptionError, "expected a positive amount, got 0"),
        ({"neg_sampling": ("triplet", 1.5)}, OptionError, "triplets need a whole amount, got 1.5"),
        ({"neg_sampling": "triplet", "edge_label": torch.ones(300)}, OptionError, "'edge_label' needs to be undefined"),
        ({"edge_label": torch.ones(3)}, ShapeError, r"one entry a seed edge, 300, got shape \[3\]"),
        ({"edge_label_time": torch.ones(300)}, OptionError, "temporal sampling needs both"),
        ({"edge_label_index": torch.tensor([[0], [60]])}, OptionError, "holds 60 at position 0, but there are 60 nodes"),
        ({"edge_label_index": torch.zeros(3, 4)}, ShapeError, r"expected \[2, seeds\], got shape \[3, 4\]"),
        ({"neg_sampling": {"mode": "binary", "src_weight": torch.ones(3)}}, OptionError, "src_weight has 3 entries for 60"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LinkNeighborLoader(make_data(), [2], **options)
