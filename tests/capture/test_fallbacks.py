"""What cannot be compiled runs as PyTorch runs it: the same numbers, one warning with the reason; bad input is an error."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plait.errors import IndexMapError, UnsupportedError
from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager
from tests.models import CASES, IndexAdd, SoftmaxTwice, node_features, row_sum

GRAPH = random_graph(30, 200, 3)
INPUTS = node_features(GRAPH, 0)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")


def warnings_of(work: Callable[[], object]) -> list[str]:
    """plait's warnings while `work` runs; every other warning is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(item.message) for item in caught if str(item.message).startswith("plait")]


# --- compilers -------------------------------------------------------------------------------------------------------


def failing_compiler(directory: pathlib.Path) -> str:
    """A compiler that says its version and builds nothing."""
    script = directory / "g++-broken"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo broken 1.0; exit 0;; esac\necho "error: no more room" >&2\nexit 1\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.usefixtures("lenient")
def test_without_a_compiler_the_model_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CXX", "/nonexistent/g++")

    found = warnings_of(lambda: assert_matches_eager(SoftmaxTwice(), *INPUTS, compile=compiled, num_steps=2))

    assert len(found) == 1
    assert "asks for '/nonexistent/g++', which is not a program here" in found[0]
    assert "runs as PyTorch runs it" in found[0]


@pytest.mark.usefixtures("lenient")
def test_with_a_failing_compiler_the_model_runs_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("PLAIT_CXX", failing_compiler(tmp_path))
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "cache"))

    found = warnings_of(lambda: assert_matches_eager(SoftmaxTwice(), *INPUTS, compile=compiled, num_steps=2))

    assert found
    assert all("no more room" in text for text in found)


@pytest.mark.usefixtures("lenient")
def test_unwritable_cache_does_not_stop_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(occupied))

    warnings_of(lambda: assert_matches_eager(IndexAdd(), *INPUTS, compile=compiled))


def test_strict_turns_a_missing_compiler_into_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CXX", "/nonexistent/g++")

    with pytest.raises(Exception, match="which is not a program here") as caught:
        compiled(SoftmaxTwice())(*INPUTS)

    assert isinstance(caught.value, UnsupportedError) or "UnsupportedError" in str(caught.value)


def test_strict_as_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")
    monkeypatch.setenv("PLAIT_CXX", "/nonexistent/g++")
    strict = torch.compile(SoftmaxTwice(), backend="plait", dynamic=True, options={"strict": True})

    with pytest.raises(Exception, match="which is not a program here"):
        strict(*INPUTS)


def test_unknown_option_lists_the_valid_ones() -> None:
    wrong = torch.compile(IndexAdd(), backend="plait", options={"fast": True})

    with pytest.raises(
        Exception, match="unknown option 'fast'; valid options: rest, order, memory_budget, edge_scalars, stop_after, strict"
    ):
        wrong(*INPUTS)


# --- dtypes and operators ----------------------------------------------------------------------------------------------


class Propagate(nn.Module):
    """x[src] summed, in any dtype."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros_like(x).index_add(0, dst, torch.tanh(x[src]) * x[dst])


@pytest.mark.usefixtures("lenient")
def test_float16_runs_as_it_is_and_says_so() -> None:
    x = INPUTS[0].detach().half().requires_grad_()

    found = warnings_of(lambda: assert_matches_eager(Propagate(), x, INPUTS[1], compile=compiled, num_steps=2))

    assert len(found) == 1
    assert "work on edges in float16 is not compiled; kernels know float32, float64 and bfloat16" in found[0]


class Unknown(nn.Module):
    """An operator on edges that plait has no rule for, between operators that it has."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        messages = self.function(torch.tanh(x[src]) * x[dst])
        return row_sum(messages * 2.0, dst, x.shape[0])


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "sort along the edges": lambda messages: messages.sort(dim=0).values,
    "sort along the features": lambda messages: messages.sort(dim=1).values,
    "cumsum along the edges": lambda messages: messages.cumsum(0),
    "cumsum along the features": lambda messages: messages.cumsum(1),
    "softmax over all edges": lambda messages: messages.softmax(0),
    "mean of all edges": lambda messages: messages - messages.mean(),
    "mean of every column": lambda messages: messages - messages.mean(0, keepdim=True),
    "flip of the edges": lambda messages: messages.flip(0),
    "roll of the edges": lambda messages: messages.roll(1, 0),
    "lgamma": lambda messages: torch.lgamma(messages.abs() + 1.0),
    "layer norm": lambda messages: nn.functional.layer_norm(messages, messages.shape[1:]),
    "product of edges": lambda messages: messages @ (messages.T @ messages) * 1e-2,
    "a boolean mask": lambda messages: messages.masked_fill(messages > 0.5, 0.0),
    "every other edge written": lambda messages: messages.index_fill(0, torch.tensor([0, 2, 4]), 0.0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operator_runs_in_the_middle_of_the_rest(name: str) -> None:
    """Not a fallback of the whole graph: what is around it is fused all the same."""
    with captures() as records:
        assert_matches_eager(Unknown(UNKNOWN[name]), *INPUTS, compile=compiled)

    assert all(record.programs["forward"] for record in records)


@pytest.mark.parametrize(
    ("name", "operator"),
    [("lgamma", "aten.lgamma"), ("sort along the edges", "aten.sort"), ("cumsum along the edges", "aten.cumsum")],
)
def test_reason_of_what_runs_unfused_is_recorded(name: str, operator: str) -> None:
    x = INPUTS[0].detach()
    with captures() as records:
        compiled(Unknown(UNKNOWN[name]))(x, INPUTS[1])

    assert any(operator in line and "unfused" in line for record in records for line in record.notes)


@pytest.mark.usefixtures("lenient")
def test_memory_that_is_freed_on_the_way_is_read_before() -> None:
    """As reversible layers free their inputs; a kernel behind that read what was no longer there."""

    def layer(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        sums = row_sum(left[src], dst, x.shape[0])
        out = right + sums * row_sum(sums[src], dst, x.shape[0])
        x.untyped_storage().resize_(0)
        return out

    x, src, dst = torch.randn(3, 2), torch.tensor([0, 2]), torch.tensor([1, 1])
    want = layer(x.clone(), src, dst)

    given = x.clone()
    found = warnings_of(lambda: torch.testing.assert_close(compiled(layer)(given, src, dst), want))

    assert given.untyped_storage().nbytes() == 0
    assert len(found) == 1
    assert "the graph runs as it was captured" in found[0]


# --- bad input -------------------------------------------------------------------------------------------------------


class Selected(nn.Module):
    """index_select and index_add: entries must lie in [0, N), as in PyG's layers."""

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, dst, torch.tanh(x.index_select(0, src)))


class Indexed(nn.Module):
    """x[idx]: entries in [-N, 0) count from the end."""

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.zeros_like(x).index_put((dst,), torch.tanh(x[src]), accumulate=True)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
SRC, DST = torch.tensor([0, 4, 2, 2, 1, 3]), torch.tensor([1, 1, 0, 3, 3, 4])


def replaced(index: Tensor, position: int, entry: int) -> Tensor:
    result = index.clone()
    result[position] = entry
    return result


@pytest.mark.parametrize("entry", [5, 99, -1])
@pytest.mark.parametrize("end", ["src", "dst"])
def test_index_out_of_range_is_named(end: str, entry: int) -> None:
    src = replaced(SRC, 3, entry) if end == "src" else SRC
    dst = replaced(DST, 3, entry) if end == "dst" else DST

    with pytest.raises(
        IndexMapError, match=rf"holds {entry} at position 3, out of bounds: it points into 5 rows \(valid: 0 to 4\)"
    ):
        compiled(Selected())(X, src, dst)


@pytest.mark.parametrize("entry", [5, 99, -6])
@pytest.mark.parametrize("end", ["src", "dst"])
def test_index_out_of_range_that_may_count_from_the_end(end: str, entry: int) -> None:
    src = replaced(SRC, 3, entry) if end == "src" else SRC
    dst = replaced(DST, 3, entry) if end == "dst" else DST

    with pytest.raises(IndexError, match="at position 3, out of bounds: it points into 5 rows"):
        compiled(Indexed())(X, src, dst)


def test_negative_index_counts_from_the_end_where_torch_does() -> None:
    assert_matches_eager(Indexed(), X, replaced(SRC, 3, -5), replaced(DST, 2, -1), compile=compiled)
    assert_matches_eager(Indexed(), X, SRC - 5, DST - 5, compile=compiled)


def test_negative_indices_count_from_the_end_where_a_kernel_reads_values_of_the_graph_alone() -> None:
    def normalised(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        weight = (src * dst).to(x.dtype).sin()  # per edge, the same in every step
        return torch.zeros_like(x).index_add(0, dst, x[src] * weight.unsqueeze(1))

    assert_matches_eager(normalised, X, SRC - 5, DST, compile=compiled, num_steps=2)


def test_too_few_rows_of_features_is_named() -> None:
    with pytest.raises(IndexMapError, match="holds 4 at position 1, out of bounds: it points into 3 rows"):
        compiled(Selected())(X.detach()[:3], SRC, DST.clamp(max=2))


def test_error_after_a_good_call_leaves_the_model_usable() -> None:
    model = compiled(Selected())
    want = model(X, SRC, DST)
    with pytest.raises(IndexMapError):
        model(X, replaced(SRC, 0, 7), DST)

    assert torch.equal(model(X, SRC, DST), want)


def raised_by(call: Callable[..., object], *inputs: Tensor) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is what the test compares
        call(*inputs)
    return caught.value


@pytest.mark.parametrize("model", [Selected, Indexed])
@pytest.mark.parametrize(
    ("src", "dst"),
    [(SRC.double(), DST), (SRC, DST.double()), (SRC[:4], DST), (SRC, DST[:4]), (SRC.view(2, 3), DST)],
    ids=["float src", "float dst", "short src", "short dst", "src with two axes"],
)
def test_wrong_kind_of_index_is_an_error_as_in_eager(model: type[nn.Module], src: Tensor, dst: Tensor) -> None:
    raised_by(model(), X, src, dst)

    error = raised_by(compiled(model()), X, src, dst)

    assert isinstance(error, RuntimeError | IndexError | ValueError | TypeError)
    assert "plait bug" not in str(error)


def test_wrong_number_of_columns_is_an_error_as_in_eager() -> None:
    model = CASES["GCNConv"].model()
    assert isinstance(raised_by(model, X, INPUTS[1] % 5), RuntimeError)

    assert isinstance(raised_by(compiled(model), X, INPUTS[1] % 5), RuntimeError)
