"""What autograd sees of a compiled region: outputs that alias, outputs nobody uses, inputs that are written to, memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plait.capture import step
from tests.capture.compiled import captures, compiled
from tests.check import assert_same_numbers

SRC, DST = torch.tensor([[0, 1, 2, 2, 4, 0], [1, 1, 0, 3, 2, 4]])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def neighbours(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, DST, x[SRC])


def one(x: Tensor, weight: Tensor) -> Tensor:
    return torch.relu(neighbours(x @ weight))


def one_and_its_view(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = one(x, weight)
    return out, out.view(-1)


def an_input_and_another(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x, one(x, weight)


def a_view_of_an_input(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.t(), one(x, weight)


def transposed_twice(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.t().t(), one(x, weight).t().t()


def the_same_twice(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = one(x, weight)
    return out, out


def with_integers(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = one(x, weight)
    return out, out.argmax(1)


def detached(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = one(x, weight)
    return out * 2, out.detach()


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    return one(x, weight).t()


def one_and_a_product_of_its_view(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = one(x, weight)
    return out, out.view(4, 5) @ x


SHAPES = [
    one,
    one_and_its_view,
    an_input_and_another,
    a_view_of_an_input,
    transposed_twice,
    the_same_twice,
    with_integers,
    detached,
    transposed,
    one_and_a_product_of_its_view,
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo looks at it
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "view"])
@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__name__)
def test_outputs_and_gradients_equal_eager(function: Callable[..., Tensor | tuple[Tensor, ...]], leaf: bool) -> None:
    results = []
    for call in (function, compiled(function)):
        x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1).requires_grad_()
        given = x if leaf else x.t().t()  # a view with a history
        outputs = call(given, weight)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        differentiable = [item for item in outputs if item.requires_grad]
        loss = sum(((k + 1) * item * item).sum() for k, item in enumerate(differentiable))
        assert isinstance(loss, Tensor)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [x, weight])
        results.append(([item.requires_grad for item in outputs], [item.detach() for item in outputs], [first, *second]))
    (eager_flags, eager_outputs, eager_grads), (flags, outputs, grads) = results
    assert flags == eager_flags
    for got, want in zip([*outputs, *grads], [*eager_outputs, *eager_grads], strict=True):
        assert_same_numbers(got, want.detach())


def test_output_that_the_loss_does_not_use() -> None:
    def two(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return neighbours(x @ weight), torch.sigmoid(x)

    grads = []
    for call in (two, compiled(two)):
        x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1).requires_grad_()
        call(x, weight)[0].square().sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        grads.append((x.grad, weight.grad))
    for got, want in zip(*reversed(grads), strict=True):
        assert_same_numbers(got, want)


def test_gradient_that_is_expanded_or_transposed() -> None:
    for make in (lambda out: out.sum(), lambda out: (out.t() @ numbers(5, 3, seed=2)).sum()):
        grads = []
        for call in (one, compiled(one)):
            x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1)
            make(call(x, weight)).backward()
            grads.append(x.grad)
        assert_same_numbers(grads[1], grads[0])


def test_batch_norm_writes_its_statistics() -> None:
    results = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        call = compiled(model) if compile_it else model
        for number in range(3):
            call(numbers(6, 4, seed=number)).square().sum().backward()
        norm = model[1]
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        results.append((norm.running_mean, norm.running_var, norm.num_batches_tracked, model[0].weight.grad))
    for got, want in zip(*reversed(results), strict=True):
        assert_same_numbers(got, want)


def test_input_that_was_written_to_after_the_forward_is_an_error() -> None:
    x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1).requires_grad_()
    loss = compiled(one)(x, weight).sum()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_output_without_a_backward_is_freed_at_once() -> None:
    """Its backward keeps what it reads, a view of the output among it: the output must not keep itself alive."""
    call = compiled(one_and_a_product_of_its_view)
    x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1).requires_grad_()
    call(x, weight)
    gc.collect()
    gc.disable()
    try:
        out = call(x, weight)
        dead = weakref.ref(out[0].grad_fn)
        del out
        assert dead() is None
    finally:
        gc.enable()


def test_casts_of_autocast_are_made_once() -> None:
    linear = nn.Linear(4, 4)

    def layer(x: Tensor) -> Tensor:
        return torch.relu(linear(x)) @ linear.weight

    grads, kinds = [], []
    for call in (layer, compiled(layer)):
        x = numbers(5, 4).requires_grad_()
        linear.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = call(x)
            out.float().sum().backward()
        kinds.append((out.dtype, x.grad.dtype if x.grad is not None else None))
        grads.append((out.detach().float(), x.grad, linear.weight.grad))
    assert kinds[0] == kinds[1] == (torch.bfloat16, torch.float32)
    for got, want in zip(*reversed(grads), strict=True):
        assert got is not None
        assert want is not None
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_plain_graphs_go_without_wrappers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    kept = step.Step.__init__

    def noted(self: step.Step, *args: object) -> None:
        made.append(self)
        kept(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(step.Step, "__init__", noted)
    x, weight = numbers(5, 4).requires_grad_(), numbers(4, 4, seed=1).requires_grad_()
    compiled(lambda x, weight: one(x, weight))(x, weight).sum().backward()
    assert len(made) == 1
    compiled(lambda x, weight: a_view_of_an_input(x, weight))(x, weight)[1].sum().backward()
    assert len(made) == 1  # autograd must know the view for one


def test_a_graph_with_nothing_to_fuse_runs_as_pytorch_runs_it() -> None:
    """What AOTAutograd takes apart (a batch norm) would only get slower."""
    norm = nn.BatchNorm1d(4)
    x = torch.randn(6, 4, requires_grad=True)
    with captures() as records:
        out = compiled(norm)(x)

    assert type(out.grad_fn).__name__ == "NativeBatchNormBackward0"
    assert [note for record in records for note in record.notes] == [
        "nothing in this graph is fused or moved: it runs as PyTorch runs it"
    ]
    assert int(norm.num_batches_tracked) == 1
