"""`plait.compile` and `plait.clear_cache`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from plait import memory
from plait.capture.backend import plait_backend
from plait.capture.record import Record, new_record
from plait.config import Options, environment
from plait.errors import first_line
from plait.native import cache
from plait.structure_cache import STRUCTURE

log = logging.getLogger("plait")
FLAGS = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
_DYNAMO_LOG = logging.getLogger("torch._dynamo.convert_frame")
_DENSE = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]


def compile(model: Callable[..., Any], *, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    """`torch.compile(model, backend="plait", options=options)`, whatever Dynamo's flags are set to.

    What Dynamo fails to trace runs un-compiled, with the reason recorded and one warning. model: a module or a function.
    dynamic: as in torch.compile. options: the fields of `plait.config.Options`; an unknown one raises OptionError and lists the
    valid ones.
    """
    chosen = Options.parse(options)
    compiled = torch.compile(model, backend=plait_backend, dynamic=dynamic, options=options or None)
    return _guarded(compiled, chosen)


def _guarded(compiled: Callable[..., Any], options: Options) -> Callable[..., Any]:
    call = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled
    failures = _Failures(options)

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        failures.note_sparse(args, kwargs)
        with failures.watched():
            plain = failures.plain(args, kwargs)
            if plain is None:
                return call(*args, **kwargs)
            try:
                return call(*plain[0], **plain[1])
            except (AttributeError, TypeError) as error:
                failures.keep_wrapped(error)
        return guarded(*args, **kwargs)

    if isinstance(compiled, torch.nn.Module):
        compiled.forward = guarded
        return compiled
    return guarded


class _Failures(logging.Filter):
    """What of one model Dynamo could not trace: such a frame runs as it is, and Dynamo's long message becomes a reason."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.record: Record | None = None
        self.takes_plain = True

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with PyG's `EdgeIndex` as the tensor it is, in which Dynamo trips over caches; None without any."""
        if not self.takes_plain or not any(map(_is_edge_index, tree_leaves((args, kwargs)))):
            return None
        return tree_map(lambda item: item.as_tensor() if _is_edge_index(item) else item, (args, kwargs))

    def keep_wrapped(self, error: Exception) -> None:
        """The model asks an `EdgeIndex` for what a tensor does not have: it gets it from now on."""
        self.takes_plain = False
        log.info("an EdgeIndex is not passed on as a tensor: %s", error)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        flags: dict[str, Any] = {} if environment().dynamo_flags else dict(FLAGS)  # set for the process, or only here
        if not self.options.is_strict():
            flags["suppress_errors"] = True
        if not flags:
            yield
            return
        with torch._dynamo.config.patch(flags):
            _DYNAMO_LOG.addFilter(self)
            try:
                yield
            finally:
                _DYNAMO_LOG.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes what Dynamo says of an error that it passed over; everything else is logged as before."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.WARNING:
            return True
        self._fall_back(f"Dynamo cannot trace a part of the model: {first_line(error)}")
        return False

    def note_sparse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Dynamo passes over every function that it meets with a sparse tensor, and does not say so."""
        for item in tree_leaves((args, kwargs)):
            if isinstance(item, torch.Tensor) and item.layout not in _DENSE:
                self._fall_back(f"an input is a {item.layout} tensor, which Dynamo does not trace; pass edge_index instead")
                return

    def _fall_back(self, reason: str) -> None:
        if self.record is None:
            self.record = new_record(self.options)
        self.record.fall_back("capture", reason)


def _is_edge_index(item: Any) -> bool:
    return type(item).__name__ == "EdgeIndex" and hasattr(item, "as_tensor")


def clear_cache() -> None:
    """Forgets everything kept between runs and steps: built kernels on disk, graph structure and idle buffers in memory."""
    cache.clear()
    STRUCTURE.clear()
    memory.clear()
