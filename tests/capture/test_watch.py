"""Dynamo's flags are raised while it compiles for `plait.compile`, and only then."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import plait
import plait.capture.backend  # sets the process's flags when it is loaded: not under the fixture
from plait.capture.watch import FLAGS

NAMES = (*FLAGS, "suppress_errors")


@pytest.fixture(autouse=True)
def flags_are_down(fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PLAIT_STRICT", "0")
    monkeypatch.setenv("PLAIT_DYNAMO_FLAGS", "0")
    with torch._dynamo.config.patch(dict.fromkeys(NAMES, False)):
        yield


def flags() -> tuple[bool, ...]:
    return tuple(getattr(torch._dynamo.config, name) for name in NAMES)


class Looks(nn.Module):
    """Notes the flags between two compiled pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, ...]] = []

    @torch.compiler.disable
    def look(self) -> None:
        self.seen.append(flags())

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        summed = x.new_zeros(x.size(0), 4).index_add(0, index, x[index])
        self.look()
        return summed + 1


class Untraceable(nn.Module):
    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return x.reshape(int(count), -1).tanh()


def call(run: nn.Module, num_nodes: int = 10) -> Tensor:
    out: Tensor = run(torch.ones(num_nodes, 4), torch.arange(num_nodes))
    return out


def test_flags_are_raised_in_calls_that_compile_and_in_no_other() -> None:
    model = Looks()
    run = plait.compile(model, dynamic=False)
    for num_nodes in (10, 10, 12, 12):
        call(run, num_nodes)
        assert flags() == (False, False, False)

    assert model.seen == [(True, True, True), (False, False, False)] * 2


def test_a_model_inside_another_has_its_own_flags() -> None:
    inner, outer = Looks(), Looks()
    run = plait.compile(inner, strict=True)
    outer.look = torch.compiler.disable(lambda: call(run))
    call(plait.compile(outer))

    assert inner.seen == [(True, True, True)]  # the outer one's last until its own call ends
    torch._dynamo.reset()
    call(run)
    assert inner.seen[1:] == [(True, True, False)]


def test_after_dynamo_forgets_everything_an_error_of_its_own_is_still_a_reason() -> None:
    run = plait.compile(Untraceable())
    for _ in range(2):
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = run(torch.ones(6, 2), torch.tensor(3))
        assert out.shape == (3, 4)


def test_an_error_in_the_model_leaves_the_flags_as_they_were() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("of the model's own")

    with pytest.raises(ValueError, match="of the model's own"):
        plait.compile(fails)(torch.ones(3))
    assert flags() == (False, False, False)
