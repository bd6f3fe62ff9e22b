"""Steps in flight, and everything a training script does with a model besides calling it."""

from __future__ import annotations

import copy
import io
import os
import pathlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.awkward import random_graph
from tests.capture.compiled import compiled
from tests.check import assert_same_numbers
from tests.models import CASES, Case, node_features, row_sum

GRAPHS = [random_graph(30, 200, 3), random_graph(41, 310, 4)]
INPUTS = [node_features(graph, 0) for graph in GRAPHS]
Gradients = dict[str, Tensor]


class TwoLayers(nn.Module):
    """GAT, batch norm, a smooth activation, SAGE."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = pyg.GATConv(12, 8, heads=2, dropout=dropout, add_self_loops=False)
        self.norm = nn.BatchNorm1d(16)
        self.second = pyg.SAGEConv(16, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.norm(self.first(x, edge_index))), edge_index)
        return result


def two_layers(dropout: float = 0.0) -> nn.Module:
    return Case(lambda: TwoLayers(dropout), node_features).model()


def gradients(model: nn.Module) -> Gradients:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same_gradients(got: Gradients, want: Gradients) -> None:
    largest = max(float(value.abs().max()) for value in want.values())
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_same_numbers(got[name], value, name=name, magnitude=0.05 * largest)


def assert_same_after(work: Callable[[Callable[..., Tensor], nn.Module], None]) -> None:
    """`work(call, model)` leaves the same gradients and buffers whether `call` is the model or the compiled model."""
    eager, twin = two_layers(), two_layers()
    work(eager, eager)
    work(compiled(twin), twin)

    assert_same_gradients(gradients(twin), gradients(eager))
    for name, value in eager.named_buffers():
        assert_same_numbers(dict(twin.named_buffers())[name], value, name=name)


# --- in flight -------------------------------------------------------------------------------------------------------


def test_two_forwards_before_one_backward() -> None:
    def work(call: Callable[..., Tensor], model: nn.Module) -> None:
        first, second = call(*INPUTS[0]), call(*INPUTS[1])
        (first.square().mean() + second.square().mean()).backward()

    assert_same_after(work)


def test_backwards_in_another_order_than_forwards() -> None:
    def work(call: Callable[..., Tensor], model: nn.Module) -> None:
        first, second, third = call(*INPUTS[0]), call(*INPUTS[1]), call(*INPUTS[0])
        for out in (second, third, first):
            out.square().mean().backward()

    assert_same_after(work)


def test_graph_is_retained() -> None:
    def work(call: Callable[..., Tensor], model: nn.Module) -> None:
        loss = call(*INPUTS[0]).square().mean()
        loss.backward(retain_graph=True)
        call(*INPUTS[1])  # writes to its own buffers only
        loss.backward()

    assert_same_after(work)


def test_graph_that_was_not_retained_is_gone() -> None:
    loss = compiled(two_layers())(*INPUTS[0]).square().mean()
    loss.backward()

    with pytest.raises(RuntimeError, match=r"backward through the graph a second time|retain_graph"):
        loss.backward()


def test_gradients_accumulate() -> None:
    def work(call: Callable[..., Tensor], model: nn.Module) -> None:
        for _ in range(3):
            for inputs in INPUTS:
                call(*inputs).square().mean().backward()

    assert_same_after(work)


def test_outputs_are_not_overwritten_by_later_steps() -> None:
    model = compiled(CASES["SAGEConv_mean"].model())
    first = model(*INPUTS[0])
    kept = first.detach().clone()
    for _ in range(3):
        model(*INPUTS[0]).sum().backward()

    assert torch.equal(first, kept)


def test_two_threads_call_one_model() -> None:
    model = CASES["GATConv_4_heads"].model()
    call = compiled(model)
    parameters = list(model.parameters())
    wanted = [torch.autograd.grad(model(*inputs).square().sum(), parameters) for inputs in INPUTS]
    for inputs in INPUTS:
        call(*inputs)  # captured once; what is tested is running it
    found: list[list[tuple[Tensor, ...]]] = [[], []]

    def work(number: int) -> None:
        for _ in range(20):
            found[number].append(torch.autograd.grad(call(*INPUTS[number]).square().sum(), parameters))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number, results in enumerate(found):
        assert len(results) == 20
        for result in results:
            for value, expected in zip(result, wanted[number], strict=True):
                assert_same_numbers(value, expected, magnitude=float(wanted[number][0].abs().max()))


# --- copies ----------------------------------------------------------------------------------------------------------


def test_compiled_model_is_copied() -> None:
    model = compiled(two_layers())
    model(*INPUTS[0]).sum().backward()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    eager = two_layers()
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.mul_(1.5)

    assert_same_numbers(twin(*INPUTS[0]), eager(*INPUTS[0]))
    assert_same_numbers(model(*INPUTS[0]), two_layers()(*INPUTS[0]))


def test_model_is_pickled_and_loaded() -> None:
    model = CASES["GATConv_4_heads"].model()
    call = compiled(model)
    want = call(*INPUTS[0])

    loaded = pickle.loads(pickle.dumps(model))

    assert torch.equal(compiled(loaded)(*INPUTS[0]), want)


def test_compiled_model_is_saved_whole() -> None:
    call = compiled(CASES["GATConv_4_heads"].model())
    want = call(*INPUTS[0])
    buffer = io.BytesIO()
    torch.save(call, buffer)
    buffer.seek(0)

    loaded = torch.load(buffer, weights_only=False)

    assert torch.equal(loaded(*INPUTS[0]), want)


def test_state_dict_of_the_compiled_model_loads_into_the_model() -> None:
    trained = two_layers()
    call = compiled(trained)
    with torch.no_grad():
        trained.first.lin.weight.mul_(2.0)  # type: ignore[union-attr,operator]
    state = call.state_dict()  # type: ignore[attr-defined]
    fresh = compiled(two_layers())
    fresh.load_state_dict(state)  # type: ignore[attr-defined]
    fresh.eval()  # type: ignore[attr-defined]

    assert_same_numbers(fresh(*INPUTS[0]), trained.eval()(*INPUTS[0]))


# --- checkpointing, forks, processes -----------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pyg.GATConv(12, 8, heads=2), pyg.GCNConv(16, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = checkpoint(self.first, x, edge_index, use_reentrant=False)
        result: Tensor = self.second(torch.tanh(hidden), edge_index)
        return result


def test_checkpoint_inside_a_compiled_model() -> None:
    eager, twin = (Case(Checkpointed, node_features).model() for _ in range(2))
    eager(*INPUTS[0]).square().mean().backward()
    compiled(twin)(*INPUTS[0]).square().mean().backward()

    assert_same_gradients(gradients(twin), gradients(eager))


def test_checkpoint_around_a_compiled_layer() -> None:
    eager, twin = CASES["GATConv_4_heads"].model(), CASES["GATConv_4_heads"].model()
    eager(*INPUTS[0]).square().mean().backward()
    out: Any = checkpoint(compiled(twin), *INPUTS[0], use_reentrant=False)
    out.square().mean().backward()

    assert_same_gradients(gradients(twin), gradients(eager))


FORK = """
import os, sys, torch
from torch import Tensor
torch.set_num_threads(2)

@torch.compile(backend="plait", dynamic=True)
def layer(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, dst, torch.tanh(x[src]) * x[dst])

generator = torch.Generator().manual_seed(0)
x = torch.randn(50, 8, generator=generator, requires_grad=True)
src, dst = torch.randint(50, (2, 400), generator=generator)
want = torch.autograd.grad(layer(x, src, dst).sum(), x)[0]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # OpenMP's threads are not here: torch itself would wait for them
    new_src = src.flip(0).contiguous()
    again = torch.autograd.grad(layer(x, src, dst).sum(), x)[0]
    layer(x, new_src, dst)
    os._exit(0 if torch.equal(again, want) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_model_runs_in_a_forked_child() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, env=dict(os.environ))

    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore")  # torch.distributed warns about its own deprecated calls
def test_model_runs_under_ddp(tmp_path: pathlib.Path) -> None:
    eager, twin = two_layers(), two_layers()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        call = compiled(nn.parallel.DistributedDataParallel(twin))
        call(*INPUTS[0]).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    eager(*INPUTS[0]).square().mean().backward()

    assert_same_gradients(gradients(twin), gradients(eager))


# --- gradients of gradients --------------------------------------------------------------------------------------------


def penalty(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """The squared gradient of a loss with respect to the features."""
    x = inputs[0].detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(call(x, *inputs[1:]).square().mean(), x, create_graph=True)
    return grad.square().sum()


def test_gradient_penalty_equals_eager() -> None:
    """And the running statistics of the batch norm are those of one forward, though the region runs again."""

    def work(call: Callable[..., Tensor], model: nn.Module) -> None:
        penalty(call, INPUTS[0]).backward()

    assert_same_after(work)


class Dropped(nn.Module):
    """Cubed messages, a third of them dropped; they are returned, so that a test can see which."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        messages = torch.nn.functional.dropout(x[src] ** 3 + 4.0, 1 / 3, self.training)
        return row_sum(messages, dst, x.shape[0]), messages


def test_gradient_of_a_gradient_has_the_mask_of_the_forward() -> None:
    x, edge_index = INPUTS[0]
    x = x.detach().clone().requires_grad_()
    src, dst = edge_index
    out, messages = compiled(Dropped())(x, edge_index)
    torch.rand(7)  # others draw numbers too before the backward
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)

    mask = (messages != 0).detach().to(x.dtype) * 1.5
    same = row_sum(mask * (x[src] ** 3 + 4.0), dst, x.shape[0])
    (grad_by_mask,) = torch.autograd.grad(same.square().sum(), x, create_graph=True)
    (second_by_mask,) = torch.autograd.grad(grad_by_mask.square().sum(), x)
    assert 0.5 < float((mask != 0).float().mean()) < 0.8
    assert_same_numbers(out, same)
    assert_same_numbers(grad, grad_by_mask)
    assert_same_numbers(second, second_by_mask)


# --- the same bits -----------------------------------------------------------------------------------------------------


def train(num_steps: int) -> list[Tensor]:
    """Losses, then weights, of a GAT with dropout."""
    torch.manual_seed(0)
    model = two_layers(dropout=0.4)
    call = compiled(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = call(*INPUTS[step % 2]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses + [parameter.detach().clone() for parameter in model.parameters()]


def test_training_with_dropout_gives_the_same_bits_again() -> None:
    first, second = train(20), train(20)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({float(loss) for loss in first[:20]}) == 20


class Propagation(nn.Module):
    """Weighted sums and a softmax over neighbours, no product with a weight: MKL's bits depend on its threads."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        scores = torch.tanh(x[src] * x[dst]).exp()
        return row_sum(scores * x[src], dst, x.shape[0]) / (row_sum(scores, dst, x.shape[0]) + 1.0)


def test_threads_do_not_change_the_bits() -> None:
    graph = random_graph(300, 20_000, 6)
    x, edge_index = node_features(graph, 0)
    call = compiled(Propagation())
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            out = call(x, edge_index)
            results.append((out.detach(), *torch.autograd.grad(out.square().sum(), x)))
    finally:
        torch.set_num_threads(before)

    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
