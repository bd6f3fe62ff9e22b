"""Orderings: what they are, and which index maps are errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait import graph
from plait.errors import CompilerError, IndexMapError, ShapeError
from plait.graph import content_key, natural, ordered
from plait.native import library
from plait.structure_cache import STRUCTURE
from tests.graph.orderings import check


@st.composite
def maps(draw: st.DrawFn) -> tuple[Tensor, int, list[tuple[Tensor, int]]]:
    """A map and up to three others: any length, dtype and stride, no rows used or all, sorted or not, one huge row."""
    num_edges = draw(st.sampled_from([0, 1, 2, 7, 100, 5000]))
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)

    def one(size: int) -> Tensor:
        values = rng.integers(0, size, num_edges)
        if draw(st.booleans()):
            values[rng.random(num_edges) < 0.7] = size // 2
        if draw(st.booleans()):
            values.sort()
        dtype = draw(st.sampled_from([np.int32, np.int64])) if size < 2**31 else np.int64
        stride = draw(st.sampled_from([1, 1, 2, 3]))
        wide = np.zeros((num_edges, stride), dtype)
        wide[:, 0] = values
        return torch.from_numpy(wide)[:, 0]

    num_rows = draw(st.sampled_from([1, 2, 5, 100, 3000, 20000]))
    sizes = draw(st.lists(st.sampled_from([1, 3, 1000, 2**31 - 1, 2**31, 2**40]), max_size=3))
    return one(num_rows), num_rows, [(one(size), size) for size in sizes]


@given(maps(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_an_ordering_is_a_stable_sort_and_both_engines_agree(
    given_maps: tuple[Tensor, int, list[tuple[Tensor, int]]], with_edge_id: bool
) -> None:
    rows, num_rows, others = given_maps
    with pytest.MonkeyPatch.context() as patch:
        STRUCTURE.clear()
        check(ordered(rows, num_rows, others, with_edge_id=with_edge_id), rows, num_rows, others, with_edge_id)
        patch.setattr(graph, "_native", lambda: None)
        STRUCTURE.clear()
        check(ordered(rows, num_rows, others, with_edge_id=with_edge_id), rows, num_rows, others, with_edge_id)


@pytest.mark.parametrize("num_rows", [5, 2048, 2049, 100_000, 1_000_000])
@pytest.mark.parametrize("num_others", [0, 1, 2])
@pytest.mark.parametrize("with_edge_id", [False, True])
def test_large_maps_are_sorted_in_parallel_alike(num_rows: int, num_others: int, with_edge_id: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randint(0, num_rows, (150_000,), generator=generator)
    rows[torch.rand(150_000, generator=generator) < 0.3] = num_rows - 1  # one hub
    others = [(torch.randint(0, 70_000, (150_000,), generator=generator), 70_000) for _ in range(num_others)]

    check(ordered(rows, num_rows, others, with_edge_id=with_edge_id), rows, num_rows, others, with_edge_id)


def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randint(0, 50_000, (200_000,), generator=torch.Generator().manual_seed(0))
    keys = set()
    for num_threads in (1, 2, 3, 7):
        monkeypatch.setattr(library, "num_threads", lambda num_threads=num_threads: num_threads)
        STRUCTURE.clear()
        keys.add(content_key(rows))
        check(ordered(rows, 50_000, [(rows, 50_000)], with_edge_id=True), rows, 50_000, [(rows, 50_000)], True)

    assert len(keys) == 1


def test_a_sorted_map_of_many_rows_is_the_identity(engine: str) -> None:
    rows = torch.randint(0, 90_000, (100_000,), generator=torch.Generator().manual_seed(0)).sort().values
    found = ordered(rows, 90_000, [(rows, 90_000)], with_edge_id=True)

    check(found, rows, 90_000, [(rows, 90_000)], True)
    assert found.is_identity


def test_the_natural_order_checks_and_narrows(engine: str) -> None:
    other = torch.tensor([3, 0, 3])
    found = natural(3, [(other, 4)])
    other[0] = 1  # the cached copy must stay what its key says

    assert (found.indptr, found.edge_id, found.is_identity, found.num_edges) == (None, None, True, 3)
    assert found.indices[0].dtype == torch.int32
    assert found.indices[0].tolist() == [3, 0, 3]
    assert natural(3, [(other, 4)]).indices[0].tolist() == [1, 0, 3]


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("length", [100, 100_000])
@pytest.mark.parametrize("value", [10_000, -1, 2**40, -(2**50)])
def test_an_entry_outside_is_named_with_its_position(engine: str, length: int, value: int) -> None:
    rows = torch.zeros(length, dtype=torch.int64)
    rows[73] = value
    rows[80:] = value
    message = (
        rf"^index map: the ordering map holds {value} at position 73, out of bounds: it points into 10000 rows "
        r"\(valid: 0 to 9999\)\n  If ids start at 1, subtract 1;"
    )
    with pytest.raises(IndexMapError, match=message):
        ordered(rows, 10_000, [], with_edge_id=False)
    with pytest.raises(IndexMapError, match=r"map 1 holds -?\d+ at position 73"):
        ordered(torch.zeros(length, dtype=torch.int64), 1, [(rows * 0, 1), (rows, 10_000)], with_edge_id=False)
    with pytest.raises(IndexMapError, match=r"map 0 holds -?\d+ at position 73"):
        natural(length, [(rows, 10_000)])


def test_an_entry_into_an_empty_domain_is_an_error(engine: str) -> None:
    with pytest.raises(IndexMapError, match=r"points into 0 rows \(valid: none\)"):
        ordered(torch.tensor([0]), 0, [], with_edge_id=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_an_index_map_must_be_int64_or_int32(engine: str, dtype: torch.dtype) -> None:
    with pytest.raises(IndexMapError, match=f"expected int64 or int32, got {str(dtype)[6:]} .map 1."):
        ordered(torch.tensor([0]), 1, [(torch.zeros(1, dtype=dtype), 1)], with_edge_id=False)


def test_maps_of_one_domain_have_one_length(engine: str) -> None:
    with pytest.raises(ShapeError, match=r"expected 2, got 3 \(map 1\)"):
        ordered(torch.tensor([0, 0]), 1, [(torch.tensor([0, 0, 0]), 1)], with_edge_id=False)
    with pytest.raises(ShapeError, match=r"expected 5, got 3 \(map 0\)"):
        natural(5, [(torch.tensor([0, 0, 0]), 1)])


def test_an_index_map_is_a_vector(engine: str) -> None:
    with pytest.raises(ShapeError, match=r"expected one dimension, got shape \[1, 2\]"):
        ordered(torch.tensor([[0, 0]]), 1, [], with_edge_id=False)


def test_without_a_compiler_one_warning_and_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(source: str, name: str) -> None:
        raise CompilerError("C++ compiler: none found")

    monkeypatch.setattr(library, "build_now", missing)
    graph._native.cache_clear()
    try:
        rows = torch.tensor([2, 0, 2])
        for _ in range(2):
            STRUCTURE.clear()
            check(ordered(rows, 3, [(rows, 3)], with_edge_id=True), rows, 3, [(rows, 3)], True)
    finally:
        graph._native.cache_clear()

    assert len(caplog.records) == 1
    assert "none found\n  Graphs are ordered by torch operators instead" in caplog.text
