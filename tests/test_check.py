"""The checks check: what is equal passes, what is not is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.check import TOLERANCES, assert_matches_eager, assert_same_numbers
from tests.models import CASES, Case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (1, 0), (1, 3), (6, 6), (10, 40)])
def test_model_matches_itself(case: Case, num_nodes: int, num_edges: int) -> None:
    assert_matches_eager(case.model(), *case.inputs(num_nodes, num_edges), compile=lambda model: model)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rounding_is_allowed_and_a_mistake_is_not(dtype: torch.dtype) -> None:
    want = torch.linspace(-3, 3, 50, dtype=torch.float64).to(dtype)
    eps = torch.finfo(dtype).eps

    assert_same_numbers(want * (1 + eps), want)
    with pytest.raises(AssertionError, match="of 50 entries differ"):
        assert_same_numbers(want * 1.05, want)


def test_message_names_the_worst_entry() -> None:
    want = torch.zeros(2, 3)
    got = want.clone()
    got[0, 1], got[1, 2] = 0.5, -2.0

    with pytest.raises(AssertionError, match=r"out: 2 of 6 entries differ; the worst is \[1, 2\]: got -2.0, expected 0.0"):
        assert_same_numbers(got, want, name="out")


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_numbers_have_to_be_there(special: float) -> None:
    want = torch.tensor([1.0, special])

    assert_same_numbers(want.clone(), want)
    with pytest.raises(AssertionError, match="1 of 2 entries differ"):
        assert_same_numbers(torch.tensor([1.0, 2.0]), want)
    with pytest.raises(AssertionError, match="1 of 2 entries differ"):
        assert_same_numbers(want, torch.tensor([1.0, 2.0]))


def test_ints_are_compared_exactly() -> None:
    with pytest.raises(AssertionError, match="1 of 1 entries differ"):
        assert_same_numbers(torch.tensor([10**9]), torch.tensor([10**9 + 1]))


def test_shape_and_dtype_are_compared() -> None:
    with pytest.raises(AssertionError, match=r"expected shape \(2,\), got \(1, 2\)"):
        assert_same_numbers(torch.zeros(1, 2), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"expected dtype torch.float64, got torch.float32"):
        assert_same_numbers(torch.zeros(2), torch.zeros(2, dtype=torch.float64))


class Scaled(nn.Module):
    """x * weight, with a wrong gradient for one of them if asked."""

    def __init__(self, wrong: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.wrong = wrong

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        weight = self.weight.detach() if self.wrong == "missing" else self.weight
        value = x.detach() * 2 - x if self.wrong == "input" else x
        return {"y": value * weight}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("missing", "gradient of parameter weight: expected a gradient, got no gradient"),
        ("input", r"gradient of input\[0\]: 6 of 6 entries differ"),
    ],
)
def test_wrong_gradient_is_named(wrong: str, message: str) -> None:
    def spoil(model: Scaled) -> Scaled:
        model.wrong = wrong
        return model

    with pytest.raises(AssertionError, match=message):
        assert_matches_eager(Scaled(), torch.ones(2, 3, requires_grad=True), compile=spoil)


def test_wrong_output_is_named() -> None:
    def doubled(model: Scaled) -> object:
        return lambda x: {"y": 2 * model(x)["y"]}

    with pytest.raises(AssertionError, match=r"output\['y'\]: 6 of 6 entries differ"):
        assert_matches_eager(Scaled(), torch.ones(2, 3), compile=doubled)


def test_model_and_inputs_are_left_as_they_were() -> None:
    model, x = Scaled(), torch.ones(2, 3, requires_grad=True)

    assert_matches_eager(model, x, compile=lambda model: model, num_steps=3)

    assert x.grad is None
    assert model.weight.grad is None


def test_running_statistics_are_compared() -> None:
    assert_matches_eager(nn.BatchNorm1d(3), torch.randn(5, 3), compile=lambda model: model, num_steps=2)

    with pytest.raises(AssertionError, match="buffer running_mean"):
        assert_matches_eager(nn.BatchNorm1d(3), torch.randn(5, 3), compile=lambda model: lambda x: (model(x), model(x))[0])
