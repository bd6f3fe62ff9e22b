"""Orderings are found again by content: what counts as the same graph, and what is kept, for how long."""

import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait import graph, structure_cache
from plait.graph import content_key, freeze, ordered
from plait.structure_cache import STRUCTURE, CacheStats, StructureCache
from tests.graph.orderings import check


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
