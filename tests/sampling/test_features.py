"""Slicing: every width, type and size of batch has the rows that indexing gives; large features go onto huge pages safely."""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np
import pytest
import torch

from plait.sampling import features, pages
from plait.sampling.features import FeatureRows, HotRows, feature_rows


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random bits: every number there is, NaN too."""
    bits = torch.randint(-(2**63), 2**63 - 1, (int(np.prod(shape)) * dtype.itemsize // 8 + 1,), dtype=torch.int64)
    return bits.view(dtype)[: int(np.prod(shape))].view(shape)


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


# from 4 MiB on a batch is written past the caches, in whole lines of 64 bytes
@pytest.mark.parametrize("num_rows", [0, 1, 3, 50, 40_000])
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (128, torch.float32),
        (16, torch.float32),
        (602, torch.float32),
        (25, torch.float32),
        (3, torch.float32),
        (128, torch.bfloat16),
        (301, torch.bfloat16),
        (33, torch.int8),
        (100, torch.bool),
        (1, torch.int64),
        (9, torch.int64),
    ],
)
def test_rows_are_those_of_indexing(width: int, dtype: torch.dtype, num_rows: int) -> None:
    torch.manual_seed(0)
    data = torch.rand(2000, width) > 0.5 if dtype is torch.bool else numbers((2000, width), dtype)
    index = torch.randint(2000, (num_rows,))

    assert features.load() is not None
    assert_same_bits(FeatureRows(data).gather(index), data[index])


@pytest.mark.parametrize("width", [128, 100, 8, 1201])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [7, 20_000])
def test_widened_rows_are_those_of_torch(width: int, dtype: torch.dtype, num_rows: int) -> None:
    torch.manual_seed(0)
    data = numbers((1000, width), dtype)
    index = torch.randint(1000, (num_rows,))

    found = FeatureRows(data, upcast=True).gather(index)
    assert found.dtype is torch.float32
    assert torch.equal(found.isnan(), data.float()[index].isnan())
    assert_same_bits(found.nan_to_num(0.5), data.float()[index].nan_to_num(0.5))


def test_rows_with_gaps_between_them_and_rows_kept_elsewhere() -> None:
    torch.manual_seed(0)
    wide = torch.randn(1000, 300)
    index = torch.randint(1000, (20_000,))
    slots = np.full(1000, -1, np.int32)
    slots[::3] = np.arange(334)
    kept = HotRows(slots, -wide[::3, :250].contiguous())

    assert_same_bits(FeatureRows(wide[:, :250]).gather(index), wide[index, :250])
    expected = torch.where((index % 3 == 0)[:, None], -wide[index, :250], wide[index, :250])
    assert_same_bits(FeatureRows(wide[:, :250], hot=kept).gather(index), expected)


LARGE = pages.MIN_BYTES // 512 + 10_000  # rows of 128 float32


def huge_bytes(data: torch.Tensor) -> int:
    """Of the mapping that holds a tensor, what is on huge pages."""
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= data.data_ptr() < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the tensor is in no mapping")


def needs_huge_pages() -> None:
    """Skips the test where the kernel gives none, whoever asks."""
    if not pages.advise(torch.ones(LARGE, 128)):
        pytest.skip("no huge pages here")


def test_large_features_go_onto_huge_pages_and_stay_as_they_are() -> None:
    needs_huge_pages()
    data = torch.randn(LARGE, 128)
    wanted = data.nbytes - (4 << 20)  # a part of a page at either end
    address, copy = data.data_ptr(), data.numpy().copy()
    rows = feature_rows(data)

    assert rows.data is data
    assert data.data_ptr() == address
    assert (data.numpy() == copy).all()
    found = huge_bytes(data)
    if pages.advise(data) < wanted:  # asked once more, by name
        pytest.skip("the kernel has no more huge pages")
    assert found >= wanted


def test_small_and_foreign_memory_is_left_alone(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((LARGE, 128), np.float32))
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r+"))
    assert float(mapped.sum()) == LARGE * 128

    assert pages.advise(mapped) == 0
    assert pages.advise(torch.ones(LARGE, 128).share_memory_()) == 0
    assert pages.advise(torch.ones(1000, 128)) == 0
    assert pages.advise(torch.ones(LARGE, 256)[:, :128]) == 0
    assert pages.advise(torch.eye(10).to_sparse()) == 0


def test_memory_shared_by_a_fork_is_not_copied() -> None:
    needs_huge_pages()
    data = torch.ones(LARGE, 128)
    child = os.fork()
    if child == 0:
        os._exit(0 if pages.advise(data) == 0 else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_where_the_kernel_forbids_huge_pages_nothing_is_asked(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SETTING", tmp_path / "enabled")
    assert pages.advise(torch.ones(LARGE, 128)) == 0

    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert pages.advise(torch.ones(LARGE, 128)) == 0
