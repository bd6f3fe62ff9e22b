"""Counter-based random numbers: a number depends on its key and counter alone, never on what was drawn before, or by whom.

The arithmetic is random.h's, word for word, on NumPy arrays of uint64 (which wrap around silently, unlike NumPy scalars).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def words(values: Any) -> Words:
    """Values as an array of uint64 of at least one dimension; negative ones wrap around."""
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def mix(x: Words) -> Words:
    """A bijection of 64-bit words in which every bit of the result depends on every bit of x (the finalizer of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(key: Words, counter: Words) -> Words:
    """Number `counter` of the stream `key`, elementwise; the result may be the key of a stream in turn."""
    return mix(key + (counter + np.uint64(1)) * np.uint64(_STEP))


def below(word: Words, n: Words) -> NDArray[np.int64]:
    """Uniform in [0, n), n < 2^32, from uniform words: the upper half of the 128-bit product."""
    high, low = word >> np.uint64(32), word & np.uint64(0xFFFFFFFF)
    return ((high * n + (low * n >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def unit(word: Words) -> NDArray[np.float64]:
    """Uniform in [0, 1), 53 bits."""
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def key_of(*parts: int) -> int:
    """One key from several numbers, such as seed, epoch and batch.

    >>> key_of(1, 2) == key_of(1, 2), key_of(1, 2) == key_of(2, 1)
    (True, False)
    """
    key = words(0)
    for part in parts:
        key = draw(key, words(part & _WORD))
    return int(key[0])
