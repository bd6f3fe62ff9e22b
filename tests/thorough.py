"""Which cases run every time, and which when there is time: `HYPOTHESIS_PROFILE=thorough`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import TypeVar

T = TypeVar("T")

IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def cases(every: Iterable[T], later: Collection[T]) -> list[T]:
    """All of them in a thorough run, else those that are not in `later`: cases that differ from another by little, and take a
    capture and a build of their own all the same."""
    found = list(every)
    assert all(item in found for item in later)
    return found if IS_THOROUGH else [item for item in found if item not in later]
