"""What Dynamo does while it compiles for `plait.compile`: with which flags, and what of its messages becomes a reason.

A call of a compiled model may make Dynamo compile, and mostly does not. Raising flags in every call would take as long as a
small model does, so that a call says only that it is under way, and Dynamo says when it begins to compile.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch._dynamo.callback import callback_handler

from plait.capture.record import Record, new_record
from plait.config import Options, environment
from plait.errors import first_line

FLAGS = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
_DYNAMO_LOG = logging.getLogger("torch._dynamo.convert_frame")


class Failures(logging.Filter):
    """What of one model Dynamo could not trace: such a frame runs as it is, and Dynamo's long message becomes a reason."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.record: Record | None = None

    def flags(self) -> tuple[str, ...]:
        """The flags of Dynamo's that are raised for this model, and are not for the process."""
        names = () if environment().dynamo_flags else FLAGS
        return names if self.options.is_strict() else (*names, "suppress_errors")

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes what Dynamo says of an error that it passed over; everything else is logged as before."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.WARNING:
            return True
        self.note(f"Dynamo cannot trace a part of the model: {first_line(error)}")
        return False

    def note(self, reason: str) -> None:
        """Records why a part of the model, or all of it, is not compiled."""
        if self.record is None:
            self.record = new_record(self.options)
        self.record.fall_back("capture", reason)


class _UnderWay(threading.local):
    """The watched calls that are under way in this thread, the innermost last."""

    def __init__(self) -> None:
        self.calls: list[Watch] = []


_UNDER_WAY = _UnderWay()


class Watch:
    """One call of a compiled model: should Dynamo compile in it, then with the model's flags, which last until the call ends.

    They last so long because Dynamo decides only after it has compiled whether it passes over an error.
    """

    __slots__ = ("failures", "raised")

    def __init__(self, failures: Failures) -> None:
        self.failures = failures
        self.raised: ExitStack | None = None

    def __enter__(self) -> None:
        if _on_compile_start not in callback_handler.start_callbacks:  # torch._dynamo.reset() forgets them
            callback_handler.register_start_callback(_on_compile_start)
        _UNDER_WAY.calls.append(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _UNDER_WAY.calls.pop()
        if self.raised is not None:
            self.raised.close()

    def raise_flags(self) -> None:
        """Dynamo begins to compile; it may do so several times in a call."""
        if self.raised is not None:
            return
        self.raised = ExitStack()
        names = self.failures.flags()
        if names:
            self.raised.enter_context(torch._dynamo.config.patch(dict.fromkeys(names, True)))
        if "suppress_errors" in names:
            _DYNAMO_LOG.addFilter(self.failures)
            self.raised.callback(_DYNAMO_LOG.removeFilter, self.failures)


def _on_compile_start(*_: Any) -> None:
    if _UNDER_WAY.calls:
        _UNDER_WAY.calls[-1].raise_flags()
