"""One step of a model that leaves nothing behind: what `plait.explain` runs, counts and times."""

from __future__ import annotations

import contextlib
import inspect
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from plait.tools.explain_count import Recorder


@dataclass(frozen=True)
class Call:
    """The model and what it is called with; every run finds everything as it was."""

    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, how: Callable[..., Any]) -> tuple[bool, float]:
        """One step of `how(model, ...)`, forward and backward; returns whether there was a backward, and its seconds."""
        with _undisturbed(self.model):
            inputs, kwargs = _fresh(self.inputs), _fresh(self.kwargs)
            start = time.perf_counter()
            outputs = how(self.model, *inputs, **kwargs)
            has_backward = _differentiate(*_backward_of(outputs))
            return has_backward, time.perf_counter() - start

    def recorder(self) -> Recorder:
        held = {
            name: item
            for module in _modules(self.model)
            for name, item in (*module.named_parameters(), *module.named_buffers())
        }
        return Recorder(held)

    def record(self, how: Callable[..., Any], recorder: Recorder) -> None:
        """One step, every operator of it recorded."""
        with _undisturbed(self.model):
            inputs, kwargs = _fresh(self.inputs), _fresh(self.kwargs)
            given = {f"input {number}": item for number, item in enumerate(inputs)} | kwargs
            leaves = ((name, item) for name, tree in given.items() for item in pytree.tree_leaves(tree))
            recorder.hold({name: item for name, item in leaves if isinstance(item, Tensor)})
            with recorder, recorder.saving():
                outputs = how(self.model, *inputs, **kwargs)
            tensors, ends, grads = _backward_of(outputs)
            recorder.hold({"gradient" if len(grads) == 1 else f"gradient {n}": item for n, item in enumerate(grads)})
            recorder.direction = "backward"
            with recorder:
                _differentiate(tensors, ends, grads)


def _backward_of(outputs: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What a backward pass starts from, the leaves it leads to, and the gradients it starts with."""
    tensors = [item for item in pytree.tree_leaves(outputs) if isinstance(item, Tensor) and item.requires_grad]
    return tensors, _gradient_leaves(tensors), [torch.ones_like(item) for item in tensors]


def _differentiate(tensors: list[Tensor], leaves: list[Tensor], grads: list[Tensor]) -> bool:
    """Runs the backward pass without touching any `.grad`; returns whether there was one."""
    if not leaves:
        return False
    torch.autograd.grad(tensors, leaves, grads, allow_unused=True)
    return True


def _gradient_leaves(outputs: list[Tensor]) -> list[Tensor]:
    """The leaves whose gradient a backward pass from `outputs` would accumulate."""
    leaves: list[Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [item.grad_fn for item in outputs]
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            leaves.append(function.variable)
        stack.extend(following for following, _ in function.next_functions)
    return leaves


def _fresh(tree: Any) -> Any:
    """Copies of the tensors in `tree`, one for each: the model may write to them, and a gradient must stop there."""
    copies: dict[int, Tensor] = {}

    def copy(item: Tensor) -> Tensor:
        if id(item) not in copies:
            copies[id(item)] = item.detach().clone().requires_grad_(item.requires_grad)
        return copies[id(item)]

    return pytree.tree_map_only(Tensor, copy, tree)


@contextlib.contextmanager
def _undisturbed(model: Callable[..., Any]) -> Iterator[None]:
    """Puts back attributes, buffers and random states. Parameters are not written: no gradient is accumulated."""
    modules = list(dict.fromkeys(part for module in _modules(model) for part in module.modules()))
    tables = [table for part in modules for table in (part.__dict__, part._parameters, part._buffers, part._modules)]
    before = [dict(table) for table in tables]
    buffers = [item for part in modules for item in part._buffers.values() if item is not None]
    contents = [item.detach().clone() for item in buffers]
    python_state, numpy_state = random.getstate(), numpy.random.get_state()  # noqa: NPY002  a model may use the global one
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)  # noqa: NPY002
        for table, old in zip(tables, before, strict=True):
            if table.keys() != old.keys() or any(table[key] is not old[key] for key in old):
                table.clear()
                table.update(old)
        with torch.no_grad():
            for item, content in zip(buffers, contents, strict=True):
                # only what changed: a write would invalidate what a forward of the user's has saved
                if not torch.equal(item, content):
                    item.copy_(content)


def _modules(model: Callable[..., Any]) -> list[nn.Module]:
    """The modules a model is made of: itself, or those a function reads from its surroundings."""
    owner = getattr(model, "__self__", None)
    found = [model, owner]
    if inspect.isfunction(model):
        around = inspect.getclosurevars(model)
        found += [*around.nonlocals.values(), *around.globals.values()]
    return [item for item in found if isinstance(item, nn.Module)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: plait's would say to call what is running, and torch's own while it compiles are not the question."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
