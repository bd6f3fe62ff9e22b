"""`plait.explain`: what plait does with a model, as data that prints itself. What it says was seen in a run, not estimated.

Legend: E edges, i.e. entries of the fine domain a program runs over; N its rows.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import re
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from plait.capture.backend import plait_backend
from plait.capture.record import RECORDS, Record
from plait.config import Options
from plait.tools.explain_capture import CaptureReport, describe_capture


@dataclass(frozen=True)
class Explanation:
    """What plait did with one call of a model; `str()` is a report, `to_json()` the same for programs.

    model: class or function name. mode: "training" (forward and backward) or "inference".
    captures: the graphs Dynamo cut the model into, in the order of their capture; one, unless there are graph breaks.
    fallbacks: every part that runs as PyTorch runs it, with the reason. graph_breaks: why Dynamo cut the model.
    """

    model: str
    mode: str
    captures: tuple[CaptureReport, ...]
    fallbacks: tuple[str, ...]
    graph_breaks: tuple[str, ...]

    @property
    def num_programs(self) -> int:
        """Fused programs of all captures, forward and backward."""
        return sum(len(direction.programs) for capture in self.captures for direction in capture.directions)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        from plait.tools.explain_text import to_text

        return to_text(self)


def explain(
    model: Callable[..., Any],
    *inputs: Any,
    backward: bool = True,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """What plait fuses, keeps, recomputes and leaves in `model(*inputs, **kwargs)`, and why.

    model: a module or a function, compiled or not. backward: also run the backward pass, where there is something to
    differentiate; False explains inference. options: as for `plait.compile`, except that a fallback is listed, never raised.

    The model is captured anew and run once. Its parameters, gradients, buffers and attributes, the inputs and the random
    state are afterwards what they were; what was compiled before stays compiled.

    >>> def sum_of_neighbours(x, src, dst):
    ...     return torch.zeros_like(x).index_add(0, dst, x[src])
    >>> ends = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    >>> found = explain(sum_of_neighbours, torch.ones(3, 4), *ends)
    >>> found.num_programs, found.fallbacks
    (1, ())
    """
    chosen = {**(options or {}), "strict": False}
    Options.parse(chosen)
    plain = _uncompiled(model)
    captured: list[tuple[Record, tuple[str, ...]]] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        names = _input_names(gm)
        compiled = plait_backend(gm, example_inputs, options=chosen)
        captured.append((RECORDS[-1], names))  # after the return: a capture that starts again leaves a record too
        return compiled

    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    with _undisturbed(plain), _quiet(), torch.set_grad_enabled(backward and torch.is_grad_enabled()):
        compiled = _compile(backend)
        outputs = compiled(plain, *_fresh(inputs), **_fresh(kwargs))
        differentiated = _differentiate(outputs)
    captures = tuple(describe_capture(record, names) for record, names in captured)
    return Explanation(
        _name(plain),
        "training" if differentiated else "inference",
        captures,
        tuple(dict.fromkeys(reason for capture in captures for reason in capture.fallbacks)),
        tuple(
            _first_lines(reason)
            for reason, count in torch._dynamo.utils.counters["graph_break"].items()
            if count > breaks.get(reason, 0)
        ),
    )


def _uncompiled(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model under `torch.compile`, if it is compiled already."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "_torchdynamo_orig_callable", None)
        if inner is None:
            return model
        model = inner


def _compile(backend: Callable[..., Any]) -> Callable[..., Any]:
    """`call(model, *inputs)`, compiled with caches of its own: Dynamo keeps what it compiled by code object."""

    def call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    fresh = types.FunctionType(call.__code__.replace(), globals(), "explained")
    # newer torch: what is compiled behind a graph break does not count against the user's own limit of recompilations
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    extra: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    return torch.compile(fresh, backend=backend, **extra)


def _input_names(gm: torch.fx.GraphModule) -> tuple[str, ...]:
    """What the user calls the inputs of a captured graph: `conv1.att_src`, or where a function found them."""
    names = []
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            continue
        source = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", node.name)
        names.append(_plain_source(source() if callable(source) else str(source)))
    return tuple(names)


def _plain_source(source: str) -> str:
    """
    >>> _plain_source("L['model']._modules['conv1']._parameters['att_src']"), _plain_source("L['args'][0]")
    ('conv1.att_src', 'input 0')
    """
    given = re.fullmatch(r"L\['args'\]\[(\d+)\]", source)
    if given:
        return f"input {given[1]}"
    # what stands before is the capture's own: our frame, the module a global was found in
    source = re.sub(r"^L\['(?:model|kwargs)'\]|^[LG](?:\['__import_\w+'\])?|_(?:modules|parameters|buffers)(?=\[)", "", source)
    return re.sub(r"\.*\['(\w+)'\]", r".\1", source).lstrip(".")


def _name(model: Callable[..., Any]) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)


def _first_lines(reason: str) -> str:
    """Dynamo's reason, and what it says next; the rest is developer's context."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    return " ".join(lines[:2])


# --- one training step that leaves nothing behind --------------------------------------------------------------------


def _differentiate(outputs: Any) -> bool:
    """Runs the backward pass without touching any `.grad`; returns whether there was one."""
    tensors = [item for item in pytree.tree_leaves(outputs) if isinstance(item, Tensor) and item.requires_grad]
    leaves = _gradient_leaves(tensors)
    if not leaves:
        return False
    torch.autograd.grad(tensors, leaves, [torch.ones_like(item) for item in tensors], allow_unused=True)
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
def _quiet() -> Iterator[None]:
    """Without warnings: plait's would say to call what is running, and torch's own while it compiles are not the question."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
