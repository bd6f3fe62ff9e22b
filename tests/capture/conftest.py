"""Every test compiles anew, and a fallback is an error unless the test asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo keeps what it compiled by code object: without a reset, layers of other tests fill its limit of 8."""
    monkeypatch.setenv("PLAIT_STRICT", "1")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
