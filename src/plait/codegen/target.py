"""What the schedule must know of the machine: how long its vectors are."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

import torch

from plait.native.compiler import simd_bytes

# name of the C++ scalar type that computes a dtype; a bool is a mask of i32 lanes
SCALARS = {torch.float32: "f32", torch.float64: "f64", torch.int32: "i32", torch.int64: "i64", torch.bool: "i32"}


@dataclass(frozen=True)
class Target:
    """vector_bytes: length of a vector register; registers: number of them."""

    vector_bytes: int = 64
    registers: int = 32

    def lanes(self, dtype: torch.dtype) -> int:
        """Number of lanes of a full vector.

        >>> Target(64).lanes(torch.float64)
        8
        """
        return self.vector_bytes // (4 if dtype is torch.bool else dtype.itemsize)


@cache
def native_target() -> Target:
    """This machine, which is what kernels are built for."""
    length = simd_bytes()
    return Target(length, 32 if length == 64 or platform.machine() in ("aarch64", "arm64") else 16)


def power_of_two_below(limit: int) -> int:
    """The largest power of two <= limit.

    >>> power_of_two_below(33)
    32
    """
    return 1 << (limit.bit_length() - 1)
