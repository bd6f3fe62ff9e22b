"""`plait.compile` and `plait.clear_cache`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule

from plait import memory
from plait.capture.arguments import Arguments
from plait.capture.backend import plait_backend
from plait.capture.idle import Idle, num_runs
from plait.capture.watch import Failures, Watch
from plait.config import Options
from plait.errors import OptionError
from plait.native import cache
from plait.structure_cache import STRUCTURE

log = logging.getLogger("plait")
# as a tensor it would have lost them; as it is, Dynamo does not trace it
_TWO_SIZES = "an EdgeIndex says how many source and target nodes there are; pass edge_index and size=... instead"


def compile(model: Callable[..., Any], *, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    """`torch.compile(model, backend="plait", options=options)`, whatever Dynamo's flags are set to.

    What Dynamo fails to trace runs un-compiled, with the reason recorded and one warning. model: a module or a function.
    dynamic: as in torch.compile. options: the fields of `plait.config.Options`; an unknown one raises OptionError and lists the
    valid ones. The first call raises MemoryBudgetError where no plan fits `memory_budget`.
    """
    chosen = Options.parse(options)
    compiled = torch.compile(model, backend=_backend, dynamic=dynamic, options=options or None)
    return _guarded(model, compiled, chosen)


def _backend(gm: GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """The backend; what was asked for and cannot be is an error, although Dynamo passes over errors here."""
    try:
        return plait_backend(gm, example_inputs, **options)
    except OptionError:
        torch._dynamo.config.suppress_errors = False  # until the call ends, see `Watch`
        raise


def _guarded(model: Callable[..., Any], compiled: Callable[..., Any], options: Options) -> Callable[..., Any]:
    call = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled
    failures, idle = Failures(options), Idle(model)
    takes_plain = True  # whether the model does with an `EdgeIndex` only what can be done with a tensor

    def run(given: Arguments) -> Any:
        nonlocal takes_plain
        if takes_plain and given.edge_indices:
            args, kwargs = given.plain()
            try:
                return call(*args, **kwargs)
            except (AttributeError, TypeError) as error:
                takes_plain = False
                log.info("an EdgeIndex is not passed on as a tensor: %s", error)
        return call(*given.args, **given.kwargs)

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = Arguments(args, kwargs)
        if given.leaves in idle:
            return model(*args, **kwargs)
        if given.sparse is not None:
            failures.note(f"an input is a {given.sparse} tensor, which Dynamo does not trace; pass edge_index instead")
        if given.edge_indices and given.have_two_sizes():
            failures.note(_TWO_SIZES)
            return model(*args, **kwargs)
        before = num_runs()
        try:
            with Watch(failures):
                result = run(given)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, OptionError):
                raise error.inner_exception from None
            raise
        idle.note_call(given.leaves, before)
        return result

    if isinstance(compiled, torch.nn.Module):
        compiled.forward = guarded
        return compiled
    return guarded


def clear_cache() -> None:
    """Forgets everything kept between runs and steps: built kernels on disk, graph structure and idle buffers in memory."""
    cache.clear()
    STRUCTURE.clear()
    memory.clear()
