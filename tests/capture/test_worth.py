"""A graph that plait would only call in a slower way runs as PyTorch runs it; what is fused is predicted to pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch._inductor.compile_fx
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule

import plait
from plait.capture.record import Record
from plait.capture.worth import Work
from tests.capture.compiled import captures, compiled, num_programs
from tests.check import assert_same_numbers
from tests.passes.tracing import numbers, traced
from tests.thorough import cases

HANDED_BACK = "fusing this graph would save less time than calling it takes: it runs as PyTorch runs it"


def run(model: Callable[..., Any], *inputs: Tensor, **options: Any) -> tuple[Any, list[Record]]:
    with captures() as records:
        out = torch.compile(model, backend="plait", dynamic=False, options=options or None)(*inputs)
    return out, records


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def test_products_with_an_activation_between_run_as_pytorch_runs_them() -> None:
    out, (record,) = run(mlp(), numbers(600, 8))

    assert type(out.grad_fn).__name__ == "AddmmBackward0"
    assert record.notes == [HANDED_BACK]
    assert record.programs == {"forward": [], "backward": []}


def test_it_does_without_gradients_too() -> None:
    with torch.no_grad():
        _, (record,) = run(mlp(), numbers(600, 8))

    assert record.notes == [HANDED_BACK]


def elementwise(x: Tensor) -> Tensor:
    return torch.tanh(x * 2 + 1).exp().mul(x).sub(x.abs()).sigmoid()


def test_a_chain_over_many_rows_is_fused() -> None:
    _, records = run(elementwise, numbers(40_000, 16).requires_grad_())

    assert num_programs(records, "forward") == num_programs(records, "backward") == 1


def test_the_same_chain_over_a_few_rows_is_not() -> None:
    _, records = run(elementwise, numbers(6, 16).requires_grad_())

    assert num_programs(records, "forward") == 0


def test_nothing_is_concluded_from_sizes_that_change() -> None:
    with captures() as records:
        compiled(elementwise)(numbers(6, 16).requires_grad_())

    assert num_programs(records, "forward") == 1


def dense(x: Tensor, place: Tensor) -> Tensor:
    out = x.new_zeros(int(place.max()) + 1, x.shape[1])
    out[place] = x  # overwrites, which no program does
    return out


def test_sizes_that_change_and_no_program_are_left_to_pytorch() -> None:
    x, place = numbers(6, 16).requires_grad_(), torch.tensor([0, 8, 2, 3, 7, 5])
    with captures() as records:
        out = compiled(dense)(x, place)

    assert HANDED_BACK in records[-1].notes
    assert_same_numbers(out.detach(), dense(x, place).detach())


def test_a_sort_that_runs_once_per_graph_pays_without_a_program() -> None:
    def in_order(x: Tensor, place: Tensor) -> Tensor:
        return x[place.sort()[1]]

    x, place = numbers(6, 16), torch.tensor([0, 8, 2, 3, 7, 5])
    with captures() as records:
        out = compiled(in_order)(x, place)

    assert num_programs(records, "inference") == 0
    assert HANDED_BACK not in records[-1].notes
    assert_same_numbers(out, in_order(x, place))


def test_edges_are_fused_whatever_their_number() -> None:
    def layer(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, dst, x[src])

    _, records = run(layer, numbers(5, 3).requires_grad_(), *torch.tensor([[0, 1, 4], [1, 1, 2]]))

    assert num_programs(records, "forward") == 1


WITH_INDUCTOR = [(is_training, is_real) for is_training in (False, True) for is_real in (False, True)]


# its first kernel takes Inductor 20 seconds: otherwise something stands for its compiler that runs the graph as it is
@pytest.mark.parametrize(("is_training", "is_real"), cases(WITH_INDUCTOR, later=[(False, True), (True, True)]))
def test_who_asks_for_inductor_gets_it(is_training: bool, is_real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_group = torch._inductor.compile_fx.compile_fx_inner
    groups = []

    def compile_noted(group: GraphModule, inputs: Sequence[object]) -> Callable[[list[object]], Sequence[object]]:
        groups.append(group)
        return compile_group(group, inputs) if is_real else lambda given: group(*given)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", compile_noted)
    model, x = mlp(), numbers(600, 8)
    with torch.set_grad_enabled(is_training):
        out, records = run(model, x, rest="inductor")

    assert len(groups) == 1 + is_training
    assert_same_numbers(out.detach(), model(x).detach())
    assert [note for record in records for note in record.notes if note == HANDED_BACK] == []


def test_who_asks_for_a_budget_gets_a_plan() -> None:
    _, (record,) = run(mlp(), numbers(600, 8), memory_budget=1 << 30)

    assert HANDED_BACK not in record.notes
    assert record.prediction is not None


def test_a_model_in_which_nothing_runs_is_soon_called_without_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), numbers(600, 8)
    call = plait.compile(model, dynamic=False)
    for _ in range(3):
        call(x)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    torch._dynamo.reset()
    monkeypatch.setattr("plait.capture.compile.plait_backend", refuse)
    assert_same_numbers(call(x), model(x))
    for other in (numbers(601, 8), numbers(600, 8).requires_grad_(), numbers(600, 8).double()):
        with pytest.raises(BackendCompilerFailed, match="compiled again"):
            call(other)


class SetsItselfUp(nn.Module):
    """Does nothing in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.SAGEConv(4, 8)
        self.is_fresh = True

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.is_fresh:
            self.is_fresh = False
            return x * 1
        out: Tensor = self.conv(x, edge_index)
        return out


def test_a_model_that_sets_itself_up_in_its_first_call_is_compiled_all_the_same() -> None:
    call = plait.compile(SetsItselfUp())
    with captures() as records:
        for _ in range(3):
            out = call(numbers(20, 4), torch.tensor([[0, 1, 2], [1, 1, 3]]))

    assert out.shape == (20, 8)
    assert num_programs(records, "forward") == 1


def test_explain_says_why() -> None:
    assert HANDED_BACK in str(plait.explain(mlp(), numbers(600, 8)))


def test_work_is_what_is_read_and_written() -> None:
    found = Work.of(traced(lambda x, y: (x.t() @ y).relu(), numbers(10, 4), numbers(10, 2)).graph)

    assert found == Work(num_calls=2, streamed_bytes=4 * (10 * 4 + 10 * 2 + 4 * 2 + 2 * 4 * 2))


def test_writes_count_as_what_they_write() -> None:
    def write(x: Tensor, rows: Tensor) -> Tensor:
        out = x.clone()
        out[2:4] = rows
        return out

    found = Work.of_captured(traced(write, numbers(10, 4), numbers(2, 4)).graph)

    assert found.streamed_bytes == 4 * (2 * 10 * 4 + 2 * 2 * 4)
