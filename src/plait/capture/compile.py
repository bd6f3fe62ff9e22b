"""`plait.compile` and `plait.clear_cache`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from plait import memory
from plait.capture.backend import plait_backend
from plait.config import Options, environment
from plait.native import cache
from plait.structure_cache import STRUCTURE

FLAGS = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}


def compile(model: Callable[..., Any], *, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    """`torch.compile(model, backend="plait", options=options)`, whatever Dynamo's flags are set to.

    model: a module or a function. dynamic: as in torch.compile. options: the fields of `plait.config.Options`; an unknown one
    raises OptionError and lists the valid ones.
    """
    Options.parse(options)
    compiled = torch.compile(model, backend=plait_backend, dynamic=dynamic, options=options or None)
    if environment().dynamo_flags:
        return compiled  # the flags were set for the process when the backend was imported
    return _with_flags(compiled)


def _with_flags(compiled: Callable[..., Any]) -> Callable[..., Any]:
    call = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled

    @functools.wraps(call)
    def patched(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(FLAGS):
            return call(*args, **kwargs)

    if isinstance(compiled, torch.nn.Module):
        compiled.forward = patched
        return compiled
    return patched


def clear_cache() -> None:
    """Forgets everything kept between runs and steps: built kernels on disk, graph structure and idle buffers in memory."""
    cache.clear()
    STRUCTURE.clear()
    memory.clear()
