"""Comparing numbers with eager PyTorch: what "the same" means is written down here, once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Tolerance:
    """|got - want| <= relative * |want| + absolute * magnitude, where magnitude is the largest |want| of the tensor: an entry
    that is small because large terms cancelled has the rounding of the large ones."""

    relative: float
    absolute: float


# A sum of n terms in another order differs by at most n * eps of the sum of their absolute values, and by about sqrt(n) * eps
# in practice; hubs here have 6000 edges, and a result has gone through a few such sums, exp and div.
TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-10, 1e-11),  # eps 2.2e-16: formulas must agree, rounding is far away
    torch.float32: Tolerance(1e-4, 3e-5),  # eps 1.2e-7: about 250 eps of the largest entry, 800 of the entry itself
    torch.bfloat16: Tolerance(3e-2, 1e-2),  # eps 7.8e-3: eager rounds after every operator, a kernel only at the end
    torch.float16: Tolerance(5e-3, 2e-3),  # eps 9.8e-4: the same
}

# A gradient that cancels to nothing (a bias before softmax) is noise of the size of its neighbours' rounding.
SHARE_OF_LARGEST = 0.05


def assert_same_numbers(
    got: Tensor, want: Tensor, dtype: torch.dtype | None = None, *, name: str = "value", magnitude: float = 0.0
) -> None:
    """Shape, dtype and numbers agree: exactly for ints and bools, within `TOLERANCES[dtype]` for floats, NaN and infinity as
    they are. `dtype`: whose tolerance (default: want's). `magnitude`: at least this is the size of the terms."""
    assert got.shape == want.shape, f"{name}: expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
    assert got.dtype == want.dtype, f"{name}: expected dtype {want.dtype}, got {got.dtype}"
    if not want.dtype.is_floating_point:
        wrong = got != want
        allowed = torch.zeros((), dtype=torch.float64)
    else:
        tolerance = TOLERANCES[dtype or want.dtype]
        allowed = tolerance.relative * finite(want).abs() + tolerance.absolute * max(magnitude_of(want), magnitude)
        special = ~want.isfinite() | ~got.isfinite()
        same_special = (got == want) | (got.isnan() & want.isnan())
        wrong = torch.where(special, ~same_special, (finite(got) - finite(want)).abs() > allowed)
    assert not wrong.any(), _message(got.detach(), want.detach(), wrong, allowed, name)


def finite(x: Tensor) -> Tensor:
    """x in float64, with 0 for NaN and infinity."""
    return x.detach().to(torch.float64).nan_to_num(0.0, 0.0, 0.0)


def magnitude_of(x: Tensor) -> float:
    return float(finite(x).abs().max()) if x.numel() else 0.0


def _message(got: Tensor, want: Tensor, wrong: Tensor, allowed: Tensor, name: str) -> str:
    difference = (finite(got) - finite(want)).abs()
    excess = torch.where(wrong, difference, -torch.ones_like(difference))
    place = int(excess.flatten().argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), want.shape)) if want.dim() else ()
    bound = float(allowed.expand_as(wrong).flatten()[place])
    return (
        f"{name}: {int(wrong.sum())} of {want.numel()} entries differ; the worst is {list(where)}: "
        f"got {got.flatten()[place].item()!r}, expected {want.flatten()[place].item()!r} "
        f"(difference {float(difference.flatten()[place]):.3g}, allowed {bound:.3g}, "
        f"largest expected {magnitude_of(want):.3g})"
    )


@dataclass(frozen=True)
class Numbers:
    """Everything one training step gives, by a name a reader understands."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


def assert_matches_eager(
    model: Callable[..., Any],
    *inputs: Any,
    compile: Callable[[Any], Any],
    dtype: torch.dtype | None = None,
    num_steps: int = 1,
    backward: bool = True,
) -> None:
    """Outputs, the gradients of every input that asks for one and of every parameter, and the buffers are those of the
    un-compiled `model`. Both start from a copy, so `model` and `inputs` are left as they were.

    compile: model -> callable. num_steps: run the compiled one that often, and compare every time.
    """
    want = training_step(copy.deepcopy(model), None, inputs, backward=backward)
    twin = copy.deepcopy(model)
    compiled = compile(twin)
    initial = copy.deepcopy(twin.state_dict()) if isinstance(twin, nn.Module) else None
    for _ in range(num_steps):
        if initial is not None:
            twin.load_state_dict(initial)
        got = training_step(twin, compiled, inputs, backward=backward)
        assert_same_step(got, want, dtype)


def training_step(
    model: Callable[..., Any], compiled: Callable[..., Any] | None, inputs: tuple[Any, ...], *, backward: bool = True
) -> Numbers:
    """One forward and backward of `compiled` (None: of `model`), with fixed random weights on the outputs as loss."""
    copies = pytree.tree_map_only(Tensor, _fresh, inputs)
    if isinstance(model, nn.Module):
        model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # dropout and whatever else the model draws
    result = (model if compiled is None else compiled)(*copies)
    outputs = dict(_leaves("output", result))
    differentiable = [leaf for leaf in outputs.values() if leaf.requires_grad]
    if backward and differentiable:
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) for leaf in differentiable]
        torch.autograd.backward(differentiable, weights)
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in _leaves("input", copies) if leaf.requires_grad}
    buffers: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        gradients |= {f"gradient of parameter {name}": value.grad for name, value in model.named_parameters()}
        buffers = {f"buffer {name}": value.detach().clone() for name, value in model.named_buffers()}
    detached = {name: leaf.detach().clone() for name, leaf in outputs.items()}
    copied = {name: None if grad is None else grad.detach().clone() for name, grad in gradients.items()}
    return Numbers(detached, copied, buffers)


def assert_same_step(got: Numbers, want: Numbers, dtype: torch.dtype | None = None, *, magnitude: float = 0.0) -> None:
    """magnitude: at least this is the size of the terms that the outputs add up."""
    assert list(got.outputs) == list(want.outputs), f"expected outputs {list(want.outputs)}, got {list(got.outputs)}"
    for name, value in want.outputs.items():
        assert_same_numbers(got.outputs[name], value, dtype, name=name, magnitude=magnitude)
    for name, value in want.buffers.items():
        assert_same_numbers(got.buffers[name], value, dtype, name=name)
    assert got.gradients.keys() == want.gradients.keys(), (
        f"expected gradients of {list(want.gradients)}, got {list(got.gradients)}"
    )
    largest = max((magnitude_of(value) for value in want.gradients.values() if value is not None), default=0.0)
    for name, wanted in want.gradients.items():
        found = got.gradients[name]
        assert (found is None) == (wanted is None), f"{name}: expected {_kind(wanted)}, got {_kind(found)}"
        if found is not None and wanted is not None:
            assert_same_numbers(found, wanted, dtype, name=name, magnitude=SHARE_OF_LARGEST * largest)


def _fresh(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _kind(gradient: Tensor | None) -> str:
    return "no gradient" if gradient is None else "a gradient"


def _leaves(name: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, Tensor):
            yield name + pytree.keystr(path), leaf
