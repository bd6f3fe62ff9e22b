"""The two operators everything is reduced to, and the counter-based draws, in plain torch: the reference on any device.

`gather` and `segment_reduce` are the meaning of `plait::gather` and `plait::segment_reduce`; `counter_uniform` is the meaning
of edge dropout's random numbers. Generated kernels must give the same numbers.

Legend: N coarse rows, E fine rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from plait.errors import IndexMapError

REDUCTIONS = ("sum", "prod", "max", "min")
_SCATTER_NAME = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin"}


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Coarse rows to fine rows: x [N, ...], index int [E] with entries in [0, N) -> [E, ...]; else IndexMapError.

    >>> gather(torch.tensor([10.0, 20.0]), torch.tensor([1, 1, 0])).tolist()
    [20.0, 20.0, 10.0]
    """
    with _named(index, x.shape[0]):
        return x.index_select(0, index)


def segment_reduce(
    values: Tensor, index: Tensor, num_rows: int, *, reduce: str, init: float = 0.0, include_init: bool = False
) -> Tensor:
    """Fine rows to coarse rows: values [E, ...], index int [E] with entries in [0, num_rows) -> [num_rows, ...].

    A row without entries gives `init`. Sums and products start from `init`; max and min see the entries only, and `init` as one
    more of them if `include_init` is set. NaN wins in max and min. Raises IndexMapError for other entries.

    >>> segment_reduce(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2]), 3, reduce="sum").tolist()
    [1.0, 0.0, 5.0]
    """
    out = values.new_full((num_rows, *values.shape[1:]), init)
    with _named(index, num_rows):
        if reduce == "sum":
            return out.index_add(0, index, values)
        expanded = index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        include_self = include_init or reduce == "prod"
        return out.scatter_reduce(0, expanded, values, _SCATTER_NAME[reduce], include_self=include_self)


@contextlib.contextmanager
def _named(index: Tensor, num_rows: int) -> Iterator[None]:
    """torch's error about an entry out of bounds as one that says which: looked for only behind it."""
    try:
        yield
    except (IndexError, RuntimeError):
        outside = ((index < 0) | (index >= num_rows)).nonzero()
        if outside.numel():
            position = int(outside[0])
            raise IndexMapError.outside("the index", int(index[position]), position, num_rows) from None
        raise


_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words of low bias (constants: Wellons, "Prospecting for Hash Functions", 2018); x in [0, 2^32)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def counter_bits(seed: Tensor, position: Tensor, num_channels: int) -> Tensor:
    """32 random bits for every (position, channel): seed int64 [], position int64 [E] -> int64 [E, num_channels] in [0, 2^32).

    bits = mix(mix(mix(mix(position_low) ^ seed_low) + position_high + channel * 0x9E3779B9) ^ seed_high), all modulo 2^32: a
    round between any two keys, so that neighbours in one of them are unrelated and no two seeds give the same draws in
    another order.
    """
    position = position.to(torch.int64)
    low, high = seed & _MASK, (seed >> 32) & _MASK
    channel = torch.arange(num_channels, device=position.device, dtype=torch.int64)
    row = _mix(_mix(position & _MASK) ^ low) + ((position >> 32) & _MASK)
    word = (row.unsqueeze(1) + ((channel * 0x9E3779B9) & _MASK)) & _MASK
    return _mix(_mix(word) ^ high)


def counter_uniform(seed: Tensor, position: Tensor, inner_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Floats in [0, 1): seed int64 [], position int64 [E] -> [E, *inner_shape]; the top 24 of `counter_bits` times 2^-24.

    dtype: float32 or float64, which hold 24 bits; a shorter float would round the largest draws to 1.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"counter_uniform: expected float32 or float64, got {dtype}\n  Draw in float32 and convert what is made of it."
        )
    num_channels = 1
    for size in inner_shape:
        num_channels *= size
    bits = counter_bits(seed, position, num_channels) >> 8
    return (bits.to(dtype) * 2.0**-24).view(-1, *inner_shape)
