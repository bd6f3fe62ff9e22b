"""What the schedule must know of the machine: how long its vectors are."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

import torch

from plait.native.compiler import simd_bytes

# name of the C++ scalar type that computes a dtype; a bool is a mask of i32 lanes, a bfloat16 an f32 that it can hold
SCALARS = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i32",
    torch.bfloat16: "f32",
}
# and of the one in tensors, where that is another
IN_TENSORS = {torch.bool: "u8", torch.bfloat16: "bf16"}


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
        return self.vector_bytes // lane_bytes(dtype)


def lane_bytes(dtype: torch.dtype) -> int:
    """Bytes of a number in a vector."""
    return 4 if dtype in IN_TENSORS else dtype.itemsize


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
