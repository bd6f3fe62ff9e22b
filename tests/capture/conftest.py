"""Every test compiles anew, and a fallback is an error unless the test asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo keeps what it compiled by code object: without a reset, layers of other tests fill its limit of 8.

    With dynamic=True a slope of leaky_relu is symbolic at first, and Dynamo reads the model again, twice, when it is made a
    number: half the time of these tests. `test_shapes` covers Dynamo as it is.
    """
    monkeypatch.setenv("PLAIT_STRICT", "1")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(specialize_float=True):
        yield
    torch._dynamo.reset()
