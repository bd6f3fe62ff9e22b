"""Orderings by content: what they are, when they are found again, and what they cost."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait import graph, structure_cache
from plait.errors import CompilerError, IndexMapError, ShapeError
from plait.graph import Ordering, content_key, freeze, natural, ordered
from plait.native import library
from plait.structure_cache import STRUCTURE, CacheStats, StructureCache


@pytest.fixture(autouse=True)
def empty_structure() -> Iterator[None]:
    STRUCTURE.clear()
    yield
    STRUCTURE.clear()


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both halves of the module, which must agree."""
    if request.param == "torch":
        monkeypatch.setattr(graph, "_native", lambda: None)
    return str(request.param)


def check(found: Ordering, rows: Tensor, num_rows: int, others: list[tuple[Tensor, int]], with_edge_id: bool) -> None:
    """The meaning of an ordering, in NumPy."""
    expected = np.argsort(rows.numpy(), kind="stable")
    counts = np.bincount(rows.numpy(), minlength=num_rows)
    assert found.indptr is not None
    assert found.indptr.dtype == torch.int64
    np.testing.assert_array_equal(found.indptr.numpy(), np.concatenate([[0], np.cumsum(counts)]))
    assert (found.num_edges, found.num_rows) == (len(rows), num_rows)
    assert found.is_identity == bool((np.diff(rows.numpy()) >= 0).all())
    if with_edge_id and not found.is_identity:
        assert found.edge_id is not None
        assert found.edge_id.dtype == torch.int32
        np.testing.assert_array_equal(found.edge_id.numpy(), expected)
    else:
        assert found.edge_id is None
    dtype = torch.int32 if all(size < 2**31 for _, size in others) else torch.int64
    for index, (other, _) in zip(found.indices, others, strict=True):
        assert index.dtype == dtype
        assert index.is_contiguous()
        np.testing.assert_array_equal(index.numpy(), other.numpy()[expected])


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
        rf"^index map: the ordering map holds {value} at position 73, but it points into 10000 rows \(valid: 0 to 9999\)"
        r"\n  If ids start at 1, subtract 1;"
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


# ----------------------------------------------------------------------------------------------------------- found by content


def random_graph(num_edges: int = 1000, num_rows: int = 100, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    src, dst = torch.randint(0, num_rows, (2, num_edges), generator=generator)
    return src, dst


def test_an_equal_graph_is_found_again() -> None:
    src, dst = random_graph()
    first = ordered(dst, 100, [(src, 100)], with_edge_id=False)

    assert ordered(dst.clone(), 100, [(src.clone(), 100)], with_edge_id=False) is first
    assert ordered(dst, 101, [(src, 100)], with_edge_id=False) is not first
    assert ordered(dst, 100, [(src, 101)], with_edge_id=False) is not first
    assert ordered(src, 100, [(dst, 100)], with_edge_id=False) is not first


@pytest.mark.parametrize("write", ["numpy", "data", "index_put", "set_"])
def test_a_write_that_leaves_no_trace_is_seen(engine: str, write: str) -> None:
    src, dst = random_graph()
    ordered(dst, 100, [(src, 100)], with_edge_id=True)
    if write == "numpy":
        dst.numpy()[500] = (int(dst[500]) + 1) % 100
    elif write == "data":
        dst.data[500] = (int(dst[500]) + 1) % 100
    elif write == "index_put":
        dst[500] = (int(dst[500]) + 1) % 100
    else:
        dst.set_(dst.flip(0))

    check(ordered(dst, 100, [(src, 100)], with_edge_id=True), dst, 100, [(src, 100)], True)


def test_a_write_under_inference_mode_is_seen() -> None:
    with torch.inference_mode():
        src, dst = random_graph()
        ordered(dst, 100, [(src, 100)], with_edge_id=True)
        dst[3] = (int(dst[3]) + 1) % 100
        check(ordered(dst, 100, [(src, 100)], with_edge_id=True), dst, 100, [(src, 100)], True)


def test_an_ordering_built_under_inference_mode_serves_training() -> None:
    src, dst = random_graph()
    with torch.inference_mode():
        found = ordered(dst, 100, [(src, 100)], with_edge_id=True)

    assert not any(t.is_inference() for t in (found.indptr, found.edge_id, *found.indices) if t is not None)


def test_one_sort_serves_several_sets_of_maps() -> None:
    src, dst = random_graph()
    first = ordered(dst, 100, [(src, 100)], with_edge_id=True)
    second = ordered(dst, 100, [(src, 100), (dst, 100)], with_edge_id=True)

    assert second.indptr is first.indptr
    assert second.edge_id is first.edge_id
    check(second, dst, 100, [(src, 100), (dst, 100)], True)


def test_an_ordering_with_edge_id_serves_without() -> None:
    src, dst = random_graph()
    wide = ordered(dst, 100, [(src, 100)], with_edge_id=True)
    narrow = ordered(dst, 100, [(src, 100)], with_edge_id=False)

    assert narrow is wide


def test_an_edge_id_asked_for_later_is_built() -> None:
    src, dst = random_graph()
    narrow = ordered(dst, 100, [(src, 100)], with_edge_id=False)
    wide = ordered(dst, 100, [(src, 100)], with_edge_id=True)

    assert wide.indptr is narrow.indptr
    check(wide, dst, 100, [(src, 100)], True)


@given(
    st.integers(1, 70_000),
    st.integers(0, 2**20),
    st.sampled_from([torch.int32, torch.int64]),
    st.sampled_from([1, 2]),
    st.integers(0, 30),
)
@settings(deadline=None, max_examples=60)
def test_one_changed_bit_changes_the_key(length: int, seed: int, dtype: torch.dtype, stride: int, bit: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1000, (length, stride), generator=generator, dtype=dtype)[:, 0]
    position = int(torch.randint(0, length, (), generator=generator))
    before = content_key(values)
    values.data[position] ^= 1 << bit
    after = content_key(values)
    values.data[position] ^= 1 << bit

    assert before.high != after.high
    assert before.low != after.low
    assert content_key(values) == before
    assert content_key(values.contiguous()) == before


def test_every_single_change_gives_another_key(engine: str) -> None:
    values = torch.arange(700)
    keys = {content_key(values)}
    for position in range(700):
        for change in (1, -1, 1 << 31, 1 << 62):
            changed = values.clone()
            changed[position] += change
            keys.add(content_key(changed))

    assert len(keys) == 1 + 4 * 700


def test_order_length_and_dtype_are_part_of_the_key(engine: str) -> None:
    values = torch.arange(100)
    swapped = values.clone()
    swapped[[3, 67]] = swapped[[67, 3]]
    blocks = torch.cat([values[64:], values[:64]])
    different = [values, swapped, blocks, values[:99], torch.cat([values, torch.zeros(1, dtype=torch.int64)]), values.int()]
    different += [torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)]
    different += [values.view(10, 10), values.view(20, 5), values.double(), values > 50]

    assert len({content_key(tensor) for tensor in different}) == len(different)


def test_pairs_of_changes_do_not_cancel() -> None:
    """Two changed words in the same lane of the hash, in every pair of bits: none may give the key of the other or of none."""
    keys = set()
    for first in range(64):
        for second in range(64):
            values = np.zeros(128, np.uint64)
            values[0] = 1 << first
            values[64] = 1 << second
            key = content_key(torch.from_numpy(values.view(np.int64)))
            keys.add((key.high, key.low))

    assert len(keys) == 64 * 64


def test_any_tensor_has_a_key(engine: str) -> None:
    square = torch.arange(12.0).view(3, 4)

    assert content_key(square.t()) == content_key(square.t().contiguous())
    assert content_key(square.half()) != content_key(square)
    assert content_key(torch.tensor([1 + 2j]).conj()) == content_key(torch.tensor([1 - 2j]))
    assert content_key(torch.tensor(1.0)) == content_key(torch.tensor(1.0))
    assert content_key(torch.zeros(13, dtype=torch.uint8)[1:]) == content_key(torch.zeros(12, dtype=torch.uint8))
    assert content_key(torch.tensor([5]).expand(40)) == content_key(torch.full((40,), 5))


# ------------------------------------------------------------------------------------------------------------------- frozen


def test_a_frozen_tensor_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = freeze(torch.arange(10))
    key = content_key(tensor)
    monkeypatch.setattr(graph, "_native", None)  # reading it would fail

    assert content_key(tensor) is key
    assert content_key(tensor.detach()) is key
    assert content_key(tensor.view(10)) is key


def test_only_the_same_place_is_frozen() -> None:
    tensor = freeze(torch.arange(10))

    assert content_key(tensor[:5]) == content_key(torch.arange(5))
    assert content_key(tensor[::2]) == content_key(torch.arange(0, 10, 2))
    assert content_key(tensor.view(2, 5)) == content_key(torch.arange(10).view(2, 5))


def test_a_known_key_is_taken_as_it_is() -> None:
    key = content_key(torch.arange(10))
    tensor = freeze(torch.arange(10), key)

    assert content_key(tensor) is key


def test_the_end_of_a_frozen_tensor_ends_its_entry() -> None:
    before = len(graph._FROZEN)
    memory = torch.arange(10)  # outlives the frozen alias, as a reused buffer would
    alias = freeze(memory.detach())
    assert len(graph._FROZEN) == before + 1
    del alias
    memory[0] = 5

    assert len(graph._FROZEN) == before
    assert content_key(memory) == content_key(memory.clone())


# ----------------------------------------------------------------------------------------------------------- structure cache


def test_the_least_recently_used_goes_first() -> None:
    cache = StructureCache(lambda: 100)
    for key in "abc":
        cache.put(key, key.upper(), 40)
        cache.get("a")

    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")
    assert cache.stats().bytes == 80


def test_the_newest_entry_always_stays() -> None:
    cache = StructureCache(lambda: 100)
    cache.put("small", 1, 10)
    cache.put("huge", 2, 1000)

    assert (cache.get("huge"), cache.get("small")) == (2, None)


def test_both_orderings_of_a_graph_above_the_bound_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_GRAPH_BYTES", "1000")
    src, dst = random_graph()
    old = random_graph(seed=1)
    ordered(old[0], 100, [(old[1], 100)], with_edge_id=False)
    by_dst = ordered(dst, 100, [(src, 100)], with_edge_id=False)
    by_src = ordered(src, 100, [(dst, 100)], with_edge_id=False)

    assert ordered(dst, 100, [(src, 100)], with_edge_id=False) is by_dst
    assert ordered(src, 100, [(dst, 100)], with_edge_id=False) is by_src
    assert STRUCTURE.stats().entries == 2


def test_a_replaced_entry_is_counted_once() -> None:
    cache = StructureCache(lambda: 100)
    for value in range(5):
        cache.put("key", value, 30)

    assert cache.get("key") == 4
    assert (cache.stats().entries, cache.stats().bytes) == (1, 30)


def test_hits_misses_and_clear() -> None:
    cache = StructureCache(lambda: 100)
    cache.put("key", 1, 10)
    cache.get("key")
    cache.get("other")
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    cache.clear()

    assert cache.stats() == CacheStats(0, 0, 0, 0)


def test_graphs_that_never_come_back_do_not_fill_the_bound() -> None:
    cache = StructureCache(lambda: 1 << 40)
    for step in range(100):
        cache.put(step, step, 16 << 20)

    assert cache.stats().bytes <= 128 << 20


def test_graphs_that_come_back_get_the_room_they_need() -> None:
    cache = StructureCache(lambda: 1 << 40)
    built = []
    for _ in range(4):
        misses = 0
        for number in range(100):
            if cache.get(number) is None:
                misses += 1
                cache.put(number, number, 16 << 20)
        built.append(misses)

    assert built[0] == 100
    assert built[2:] == [0, 0]


def test_the_room_never_grows_above_the_limit() -> None:
    cache = StructureCache(lambda: 1 << 30)
    for step in range(1000):
        number = step % 200
        if cache.get(number) is None:
            cache.put(number, number, 16 << 20)
        assert cache.stats().bytes <= 1 << 30


def test_a_graph_that_changes_at_every_step_grows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_GRAPH_BYTES", "100000")
    generator = np.random.default_rng(0)
    frozen = len(graph._FROZEN)
    for _ in range(10_000):
        rows = torch.from_numpy(generator.integers(0, 10, 20))
        ordered(rows, 10, [(rows, 10)], with_edge_id=True)

    assert STRUCTURE.stats().bytes <= 100_000
    assert len(graph._SORTS) <= STRUCTURE.stats().entries
    assert len(STRUCTURE._ghosts) <= structure_cache._NUM_GHOSTS
    assert len(graph._FROZEN) == frozen


def test_two_threads_with_two_graphs_do_not_mix_them() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        src, dst = random_graph(seed=seed)
        expected = np.argsort(dst.numpy(), kind="stable")
        for step in range(100):
            if step % 10 == 0:
                STRUCTURE.clear()
            found = ordered(dst, 100, [(src, 100)], with_edge_id=True)
            if found.edge_id is None or not np.array_equal(found.edge_id.numpy(), expected):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_orders_large_graphs() -> None:
    src, dst = random_graph(200_000, 30_000)
    ordered(dst, 30_000, [(src, 30_000)], with_edge_id=True)  # the parent's OpenMP threads have run
    expected = np.argsort(src.numpy(), kind="stable")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            found = ordered(src, 30_000, [(dst, 30_000)], with_edge_id=True)
            status = 0 if found.edge_id is not None and np.array_equal(found.edge_id.numpy(), expected) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
