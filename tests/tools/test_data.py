"""Sources of graphs: what the files may hold, and what is said when they are wrong."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from plait.errors import DataError
from plait.tools import generate
from plait.tools.data import PYG_SETS, SourceOptions, load


def arrays(**changes: Any) -> dict[str, Any]:
    """A good file: a path of six nodes. A change to None removes the key."""
    good = {
        "num_nodes": np.int32(6),
        "edge_index": np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]], np.int32),
        "undirected": np.uint8(1),
        "x": np.arange(12, dtype=np.float32).reshape(6, 2),
        "y": np.array([0, 1, 0, 1, 0, 1], np.uint8),
        "train_idx": np.array([0, 1], np.int32),
        "val_idx": np.array([2, 3], np.int32),
        "test_idx": np.array([4, 5], np.int32),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Any:
    def write(**changes: Any) -> str:
        np.savez(tmp_path / "graph.npz", **arrays(**changes))
        return str(tmp_path / "graph.npz")

    return write


def test_digits_is_a_symmetric_graph_with_disjoint_parts() -> None:
    graph = load("digits")

    assert (graph.num_nodes, graph.num_classes, graph.x.shape[1]) == (1797, 10, 64)
    src, dst = graph.edge_index
    there, back = {*zip(src.tolist(), dst.tolist(), strict=True)}, {*zip(dst.tolist(), src.tolist(), strict=True)}
    assert there == back
    assert torch.cat([graph.train_idx, graph.val_idx, graph.test_idx]).unique().numel() == 1797


def test_digits_split_follows_the_seed() -> None:
    again, other = load("digits", SourceOptions(seed=0)), load("digits", SourceOptions(seed=1))

    assert torch.equal(again.train_idx, load("digits").train_idx)
    assert not torch.equal(other.train_idx, again.train_idx)


def test_undirected_pairs_get_their_reverse_and_a_loop_stays_single(write: Any) -> None:
    path = write(edge_index=np.array([[0, 1, 2], [1, 1, 3]], np.int32))

    assert load(path).edge_index.tolist() == [[0, 1, 2, 1, 3], [1, 1, 3, 0, 2]]


def test_directed_edges_are_taken_as_they_are(write: Any) -> None:
    assert load(write(undirected=np.uint8(0))).num_edges == 5


def test_bit_packed_features(write: Any) -> None:
    dense = np.random.default_rng(0).integers(0, 2, (6, 11)).astype(np.uint8)

    graph = load(write(x=None, x_bits=np.packbits(dense, axis=1), x_shape=np.array([6, 11])))

    assert np.array_equal(graph.x.numpy(), dense)


def test_coded_features(write: Any) -> None:
    mask = np.array([[1, 1], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]], np.uint8)
    codes, table, table_ptr = np.array([0, 1, 0]), np.array([0.5, 2.0, 3.0], np.float32), np.array([0, 1, 3])
    packed = np.packbits(mask, axis=1)

    graph = load(write(x=None, x_bits=packed, x_shape=np.array([6, 2]), x_codes=codes, x_table=table, x_table_ptr=table_ptr))

    assert graph.x[:2].tolist() == [[0.5, 3.0], [0.0, 2.0]]


def test_sparse_features_with_and_without_values(write: Any) -> None:
    sparse = {
        "x": None,
        "x_shape": np.array([6, 3]),
        "x_indptr": np.array([0, 2, 2, 2, 2, 2, 3]),
        "x_indices": np.array([0, 2, 1]),
    }

    assert load(write(**sparse)).x[[0, 5]].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert load(write(**sparse, x_data=np.array([5, 6, 7]))).x[[0, 5]].tolist() == [[5.0, 0.0, 6.0], [0.0, 7.0, 0.0]]


def test_missing_features_are_drawn_and_the_notes_say_so(write: Any) -> None:
    first, again = load(write(x=None)), load(write(x=None))

    assert first.x.shape == (6, 128)
    assert torch.equal(first.x, again.x)
    assert "no features" in first.notes[0]


def test_published_splits_are_chosen_by_number(write: Any) -> None:
    splits = np.array([[0, 0, 1, 1, 2, 2], [2, 2, 1, 1, 0, 0]], np.uint8)
    path = write(train_idx=None, splits=splits)

    assert load(path, SourceOptions(split=1)).train_idx.tolist() == [4, 5]
    with pytest.raises(DataError, match="split 2: the file has splits 0 to 1"):
        load(path, SourceOptions(split=2))


def test_a_random_split_is_drawn_on_request(write: Any) -> None:
    graph = load(write(train_idx=None, y=np.arange(6) % 2), SourceOptions(random_split=True))

    assert sorted(torch.cat([graph.train_idx, graph.val_idx, graph.test_idx]).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": None}, r"key 'edge_index' is missing: expected int \[2, E\]; the file has .*num_nodes"),
        ({"num_nodes": None}, "key 'num_nodes' is missing"),
        ({"undirected": None}, "key 'undirected' is missing"),
        ({"y": None}, "key 'y' is missing: this file has no labels"),
        ({"train_idx": None}, "no split: expected keys 'train_idx'.*--random-split"),
        ({"val_idx": None}, "key 'val_idx' is missing"),
        ({"num_nodes": np.float32(6)}, "key 'num_nodes': expected the number of nodes, one int, got float32"),
        ({"edge_index": np.array([[0, 9], [1, 2]])}, "key 'edge_index': expected entries from 0 to 5, got 9"),
        ({"edge_index": np.array([[0, -1], [1, 2]])}, "key 'edge_index': expected entries from 0 to 5, got -1"),
        ({"edge_index": np.zeros((3, 4), np.int32)}, r"key 'edge_index': expected int \[2, E\], got \[3, 4\]"),
        ({"edge_index": np.zeros((2, 4), np.float32)}, r"key 'edge_index': expected int \[2, E\], got float32 \[2, 4\]"),
        ({"x": np.zeros((5, 2), np.float32)}, "key 'x': expected 6 rows, as num_nodes says, got 5 rows"),
        ({"y": np.zeros(5, np.int32)}, r"key 'y': expected int \[6\], one class a node, got \[5\]"),
        ({"y": np.zeros(6, np.float32)}, r"key 'y': expected int \[6\], one class a node, got float32"),
        ({"y": np.full(6, -1)}, "key 'y': expected a label for every node of the split, got -1"),
        ({"train_idx": np.array([0, 6])}, "key 'train_idx': expected entries from 0 to 5, got 6"),
        ({"train_idx": np.array([], np.int32)}, "key 'train_idx': expected at least one node, got none"),
        ({"x": None, "x_bits": np.zeros((6, 1), np.uint8)}, "key 'x_shape' is missing"),
        (
            {"x": None, "x_bits": np.zeros((6, 1), np.uint8), "x_shape": np.array([6, 9])},
            r"key 'x_bits': expected uint8 \[6, 2\]",
        ),
        (
            {"x": None, "x_indptr": np.array([0, 2]), "x_indices": np.array([0, 1]), "x_shape": np.array([6, 2])},
            "key 'x_indptr': expected 7 rising entries from 0 to 2, got 2 entries",
        ),
    ],
)
def test_a_broken_key_is_named_with_what_was_expected_and_found(write: Any, changes: dict[str, Any], message: str) -> None:
    path = write(**changes)

    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        load(path)
    assert "graph.npz" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz: no such file"):
        load(str(tmp_path / "nowhere.npz"))


def test_a_file_that_is_no_archive_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")

    with pytest.raises(DataError, match=r"text\.npz: not a readable \.npz file"):
        load(str(tmp_path / "text.npz"))


def test_a_cut_file_is_named(write: Any) -> None:
    path = pathlib.Path(write())
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load(str(path))


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"(?s)data 'corra': no such source.*digits.*rmat:.*Cora, CiteSeer"):
        load("corra")


def test_without_a_network_the_message_says_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_geometric.datasets

    def unreachable(**arguments: Any) -> None:
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(torch_geometric.datasets, PYG_SETS["Cora"][0], unreachable)

    with pytest.raises(DataError, match=r"(?s)pyg:Cora: could not be downloaded.*no network.*digits"):
        load("pyg:Cora", SourceOptions(download_dir=str(tmp_path)))


@pytest.mark.parametrize("kind", ["rmat", "powerlaw"])
def test_generated_graphs_have_the_sizes_asked_for(kind: str) -> None:
    source = f"{kind}:nodes=100,edges=1000,features=5,classes=3,seed=4"
    graph = load(source)

    assert (graph.num_nodes, graph.num_edges, graph.x.shape[1], graph.num_classes) == (100, 1000, 5, 3)
    assert int(graph.edge_index.max()) < 100
    assert torch.equal(graph.edge_index, load(source).edge_index)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rmat:nodes=100", "edges missing"),
        ("rmat:nodes=100,edges=ten", "edges: expected a whole number, got 'ten'"),
        ("rmat:nodes=100,edges=10,colour=3", "unknown 'colour'; valid: nodes, edges, features, classes, seed"),
        ("powerlaw:nodes=2,edges=10", "nodes: expected at least 5, got 2"),
    ],
)
def test_a_wrong_size_of_a_generated_graph_is_explained(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source)


def test_no_edges_can_be_generated() -> None:
    assert generate.rmat_edges(10, 0, seed=0).shape == (2, 0)
