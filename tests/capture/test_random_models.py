"""A few random layers against eager; `make fuzz` runs as many as there is time for."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests import fuzz
from tests.random_layers import random_model


# derandomised, as each case is compiled: a change that breaks one fails every time; not shrunk, as a seed has no smaller one:
# `tests.fuzz` cuts the source down instead
@settings(max_examples=3, derandomize=True, phases=[Phase.generate])
@given(st.integers(0, 1 << 30))
def test_random_layer_matches_eager(seed: int) -> None:
    assert fuzz.run(seed) == ""


@given(st.integers(0, 1 << 30))
def test_random_layer_is_the_same_for_the_same_seed(seed: int) -> None:
    source = random_model(seed).source()

    assert source == random_model(seed).source()
    assert "x" in source
