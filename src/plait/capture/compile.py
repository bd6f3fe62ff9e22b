"""`plait.compile` and `plait.clear_cache`."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from plait import memory
from plait.capture.backend import plait_backend
from plait.capture.idle import Idle, num_runs
from plait.capture.record import Record, new_record
from plait.config import Options, environment
from plait.errors import OptionError, first_line
from plait.native import cache
from plait.structure_cache import STRUCTURE

log = logging.getLogger("plait")
FLAGS = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
_DYNAMO_LOG = logging.getLogger("torch._dynamo.convert_frame")
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str})
_DENSE = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]


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
        torch._dynamo.config.suppress_errors = False  # until the call ends, see `_raised`
        raise


def _guarded(model: Callable[..., Any], compiled: Callable[..., Any], options: Options) -> Callable[..., Any]:
    call = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled
    failures, idle = _Failures(options), Idle(model)

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        leaves = _leaves(args, kwargs)
        if leaves in idle:
            return model(*args, **kwargs)
        failures.note_sparse(leaves)
        if any(map(_has_two_sizes, leaves)):
            failures.note_two_sizes()
            return model(*args, **kwargs)
        before = num_runs()
        with failures.watched():
            plain = failures.plain(args, kwargs, leaves)
            try:
                result = call(*args, **kwargs) if plain is None else call(*plain[0], **plain[1])
                idle.note_call(leaves, before)
                return result
            except BackendCompilerFailed as error:
                if isinstance(error.inner_exception, OptionError):
                    raise error.inner_exception from None
                raise
            except (AttributeError, TypeError) as error:
                if plain is None:
                    raise
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

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: Sequence[Any]) -> Any:
        """The arguments with PyG's `EdgeIndex` as the tensor it is, in which Dynamo trips over caches; None without any."""
        if not self.takes_plain or not any(map(_is_edge_index, leaves)):
            return None
        return tree_map(lambda item: item.as_tensor() if _is_edge_index(item) else item, (args, kwargs))

    def keep_wrapped(self, error: Exception) -> None:
        """The model asks an `EdgeIndex` for what a tensor does not have: it gets it from now on."""
        self.takes_plain = False
        log.info("an EdgeIndex is not passed on as a tensor: %s", error)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        names = () if environment().dynamo_flags else FLAGS  # set for the process, or only here
        if not self.options.is_strict():
            names = (*names, "suppress_errors")
        if not names:
            yield
            return
        with _raised(names):
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

    def note_sparse(self, leaves: Sequence[Any]) -> None:
        """Dynamo passes over every function that it meets with a sparse tensor, and does not say so."""
        for item in leaves:
            if isinstance(item, torch.Tensor) and item.layout not in _DENSE:
                self._fall_back(f"an input is a {item.layout} tensor, which Dynamo does not trace; pass edge_index instead")
                return

    def note_two_sizes(self) -> None:
        """As a tensor it would have lost them; as it is, Dynamo does not trace it."""
        self._fall_back("an EdgeIndex says how many source and target nodes there are; pass edge_index and size=... instead")

    def _fall_back(self, reason: str) -> None:
        if self.record is None:
            self.record = new_record(self.options)
        self.record.fall_back("capture", reason)


class _Idle(threading.local):
    """Patches of Dynamo's flags that are not in force, by the flags' names: making one takes longer than a small model."""

    def __init__(self) -> None:
        self.patches: dict[tuple[str, ...], list[Any]] = {}


_IDLE = _Idle()


@contextlib.contextmanager
def _raised(names: tuple[str, ...]) -> Iterator[None]:
    """These flags of Dynamo's set to True."""
    idle = _IDLE.patches.setdefault(names, [])
    # before torch 2.13 a patch that is in force cannot be entered again, as a compiled model in another would
    patch = idle.pop() if idle else torch._dynamo.config.patch(dict.fromkeys(names, True))
    with patch:
        yield
    idle.append(patch)


def _leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
    """Every value in the arguments. Most calls have tensors alone, for which pytree takes ten times as long."""
    given = [*args, *kwargs.values()]
    return given if all(type(item) in _PLAIN for item in given) else tree_leaves(given)


def _is_edge_index(item: Any) -> bool:
    return type(item).__name__ == "EdgeIndex" and hasattr(item, "as_tensor")


def _has_two_sizes(item: Any) -> bool:
    """Whether an `EdgeIndex` knows sizes that are not the same: layers take from it how many rows their output has."""
    if not _is_edge_index(item):
        return False
    num_rows, num_columns = item.sparse_size()
    return bool(num_rows != num_columns)


def clear_cache() -> None:
    """Forgets everything kept between runs and steps: built kernels on disk, graph structure and idle buffers in memory."""
    cache.clear()
    STRUCTURE.clear()
    memory.clear()
