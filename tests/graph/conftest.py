"""What the tests of orderings share."""

from collections.abc import Iterator

import pytest

from plait import graph
from plait.structure_cache import STRUCTURE


@pytest.fixture(autouse=True)
def empty_structure() -> Iterator[None]:
    """No graph is known when a test begins, and none when it ends."""
    STRUCTURE.clear()
    yield
    STRUCTURE.clear()


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both halves of `plait.graph`, which must agree."""
    if request.param == "torch":
        monkeypatch.setattr(graph, "_native", lambda: None)
    return str(request.param)
