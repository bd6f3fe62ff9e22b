"""The pool of large buffers: reused when idle, never while anything can still read them."""

import copy
import gc
import io
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait import memory
from plait.memory import POOLED_BYTES, BufferPool, PoolStats, size_class

LARGE = 1 << 20  # float32: 4 MiB


@pytest.fixture
def pool() -> BufferPool:
    return BufferPool(lambda: 1 << 30)


@given(st.integers(POOLED_BYTES, 1 << 42))
def test_a_size_class_wastes_an_eighth_at_most(num_bytes: int) -> None:
    size = size_class(num_bytes)

    assert num_bytes <= size <= num_bytes + num_bytes // 8
    assert size % 4096 == 0
    assert size_class(size) == size


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.bfloat16, torch.half]
)
def test_a_buffer_is_a_tensor_like_any_other(pool: BufferPool, dtype: torch.dtype) -> None:
    tensor = pool.empty((5, LARGE // 5 + 1), dtype)
    tensor.fill_(1)

    assert tensor.shape == (5, LARGE // 5 + 1)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % 4096 == 0
    assert bool((tensor == 1).all())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (7,), (2, 3)])
def test_small_tensors_come_from_torch(pool: BufferPool, shape: tuple[int, ...]) -> None:
    assert pool.empty(shape, torch.float32).shape == shape
    assert pool.stats().leased_blocks == 0


def test_a_dead_tensors_buffer_is_used_again(pool: BufferPool) -> None:
    tensor = pool.empty((LARGE,), torch.float32)
    address = tensor.data_ptr()
    del tensor

    assert pool.empty((LARGE // 2,), torch.float64).data_ptr() == address
    assert (pool.stats().hits, pool.stats().misses) == (1, 1)


@pytest.mark.parametrize("keep", ["view", "detach", "numpy", "storage", "autograd", "dlpack"])
def test_a_buffer_is_not_used_again_while_something_reads_it(pool: BufferPool, keep: str) -> None:
    owner = [pool.empty((LARGE,), torch.float32).fill_(1)]
    weight = torch.ones((), requires_grad=True)
    kept = {
        "view": lambda: owner[0][10:20],
        "detach": lambda: owner[0].detach(),
        "numpy": lambda: owner[0].numpy(),
        "storage": lambda: owner[0].untyped_storage(),
        "autograd": lambda: weight * owner[0],
        "dlpack": lambda: torch.from_dlpack(owner[0]),
    }[keep]()
    owner.clear()
    other = pool.empty((LARGE,), torch.float32).fill_(2)

    assert pool.stats().leased_blocks == 2
    if keep == "autograd":
        kept.sum().backward()
        assert weight.grad is not None
        assert weight.grad.item() == LARGE
    del kept, other
    gc.collect()
    assert pool.stats().leased_blocks == 0
    assert pool.stats().idle_blocks == 2


def test_idle_bytes_stay_below_the_bound_and_the_oldest_go_first() -> None:
    pool = BufferPool(lambda: 3 * 4 * LARGE)
    tensors = [pool.empty((LARGE,), torch.float32) for _ in range(5)]
    newest = tensors[-1].data_ptr()
    while tensors:
        tensors.pop(0)

    assert pool.stats().idle_bytes == 3 * 4 * LARGE
    assert pool.empty((LARGE,), torch.float32).data_ptr() == newest


def test_a_bound_of_zero_means_tensors_of_torchs_own() -> None:
    pool = BufferPool(lambda: 0)
    for _ in range(3):
        tensor = pool.empty((LARGE,), torch.float32)
        tensor.untyped_storage().resize_(0)

    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


def test_what_nobody_wants_for_long_is_released(pool: BufferPool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.empty((LARGE,), torch.float32)
    assert pool.stats().idle_blocks == 1
    now_s = memory.time.monotonic()
    monkeypatch.setattr(memory.time, "monotonic", lambda: now_s + 60)

    assert pool.stats().idle_blocks == 0


def test_clear_releases_idle_buffers_and_leaves_living_ones(pool: BufferPool) -> None:
    living = pool.empty((LARGE,), torch.float32).fill_(3)
    pool.empty((LARGE,), torch.float32)
    pool.clear()

    assert (pool.stats().idle_blocks, pool.stats().leased_blocks) == (0, 1)
    assert bool((living == 3).all())


def test_sizes_that_change_at_every_step_share_few_blocks(pool: BufferPool) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in torch.randint(LARGE, LARGE + LARGE // 4, (300,), generator=generator).tolist():
        pool.empty((count,), torch.float32)

    assert pool.stats().idle_blocks <= 3


def test_a_tensor_that_dies_in_a_cycle_gives_its_buffer_back(pool: BufferPool) -> None:
    cycle: list[object] = [pool.empty((LARGE,), torch.float32)]
    cycle.append(cycle)
    del cycle
    gc.collect()

    assert pool.stats().idle_blocks == 1


def test_a_finalizer_inside_the_lock_does_not_wait_for_it(pool: BufferPool) -> None:
    tensor = pool.empty((LARGE,), torch.float32)
    with pool._lock:
        thread = threading.Thread(target=lambda: holder.clear())
        holder = [tensor]
        del tensor
        thread.start()
        thread.join(timeout=10)
        finished = not thread.is_alive()

    assert finished
    assert pool.stats().idle_blocks == 1


def test_many_threads_never_share_a_buffer(pool: BufferPool) -> None:
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(60):
            tensor = pool.empty((LARGE // 4,), torch.float32)
            tensor.numpy().fill(mark)
            if not bool((tensor == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert pool.stats().leased_blocks == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_has_buffers_of_its_own(pool: BufferPool) -> None:
    tensor = pool.empty((LARGE,), torch.float32)
    tensor.numpy().fill(1)
    pid = os.fork()
    if pid == 0:
        tensor.numpy().fill(2)
        ours = memory.empty((LARGE,), torch.float32).numpy()
        ours.fill(3)
        os._exit(0 if ours[0] == 3 else 1)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert bool((tensor == 1).all())


def test_what_is_too_large_fails_as_in_torch(pool: BufferPool) -> None:
    pool.empty((LARGE,), torch.float32)
    with pytest.raises(RuntimeError, match="allocate"):
        pool.empty((1 << 55,), torch.float32)

    assert pool.stats().idle_blocks == 0


def test_a_pooled_tensor_can_be_saved_copied_and_shared(pool: BufferPool) -> None:
    tensor = pool.empty((LARGE,), torch.float32).fill_(1)
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    copies = [torch.load(file), copy.deepcopy(tensor), tensor.share_memory_()]

    assert all(bool((found == 1).all()) for found in copies)


def test_the_environment_bounds_the_process_wide_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_POOL_BYTES", "0")
    memory.clear()
    memory.empty((LARGE,), torch.float32)

    assert memory.stats().idle_bytes == 0
    memory.clear()
