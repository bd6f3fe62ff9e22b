"""`plait.explain`: what plait does with a model, as data that prints itself. What it says was seen in a run, not estimated.

Legend: E edges, i.e. entries of the fine domain a program runs over; N its rows.
"""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from plait.capture.backend import plait_backend
from plait.capture.launch import Launch
from plait.capture.record import RECORDS, Record
from plait.capture.tune import machine_costs
from plait.config import Options
from plait.costs import BY_BYTES
from plait.errors import CompilerError
from plait.tools.explain_capture import CaptureReport, Seconds, describe_capture
from plait.tools.explain_programs import edge_value_bytes, measured_s, predicted_s, recorded_by, sizes_of, watched
from plait.tools.explain_step import Call, quiet
from plait.tools.explain_work import Run


@dataclass(frozen=True)
class Explanation:
    """What plait did with one call of a model; `str()` is a report, `to_json()` the same for programs.

    model: class or function name. mode: "training" (forward and backward) or "inference".
    captures: the graphs Dynamo cut the model into, in the order of their capture; one, unless there are graph breaks.
    fallbacks: every part that runs as PyTorch runs it, with the reason. graph_breaks: why Dynamo cut the model.
    before, after: what the un-compiled and the compiled model execute, counted while they run by the same rules (see
    `plait.tools.explain_count`); None where that was not counted, and uncounted says why.
    step_s: median seconds of a step before and after, None unless asked for.
    """

    model: str
    mode: str
    captures: tuple[CaptureReport, ...]
    fallbacks: tuple[str, ...]
    graph_breaks: tuple[str, ...]
    before: Run | None
    after: Run | None
    uncounted: tuple[str, ...]
    step_s: tuple[float | None, float | None]

    @property
    def num_programs(self) -> int:
        """Fused programs of all captures, forward and backward."""
        return sum(len(direction.programs) for capture in self.captures for direction in capture.directions)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        from plait.tools.explain_text import to_text

        return to_text(self)

    def to_html(self) -> str:
        """The same as one page that needs nothing else: what flows, before and after, with the programs' code."""
        from plait.tools.explain_page import to_html

        return to_html(self)


def explain(
    model: Callable[..., Any],
    *inputs: Any,
    backward: bool = True,
    eager: bool = True,
    measure: bool = False,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """What plait fuses, keeps, recomputes and leaves in `model(*inputs, **kwargs)`, and why.

    model: a module or a function, compiled or not. backward: also run the backward pass, where there is something to
    differentiate; False explains inference. eager: also run the un-compiled model, to count what it does (it needs its usual
    memory, and is left out where that is not free). measure: also time the programs and the step. options: as for
    `plait.compile`, except that a fallback is listed, never raised.

    The model is captured anew and run a few times. Its parameters, gradients, buffers and attributes, the inputs and the random
    state are afterwards what they were; what was compiled before stays compiled.

    >>> def sum_of_neighbours(x, src, dst):
    ...     return torch.zeros_like(x).index_add(0, dst, x[src])
    >>> ends = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2, 0, 1])
    >>> found = explain(sum_of_neighbours, torch.ones(3, 4), *ends)
    >>> found.num_programs, found.fallbacks
    (1, ())
    >>> found.before.tally.edge_operators, found.after.tally.kernels
    (2, 1)
    """
    chosen = {**(options or {}), "strict": False}
    parsed = Options.parse(chosen)
    plain = _uncompiled(model)
    captured: list[tuple[Record, tuple[str, ...]]] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        names = _input_names(gm)
        compiled = plait_backend(gm, example_inputs, options=chosen)
        captured.append((RECORDS[-1], names))  # after the return: a capture that starts again leaves a record too
        return compiled

    call = Call(plain, inputs, kwargs)
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    with quiet(), torch.set_grad_enabled(backward and torch.is_grad_enabled()):
        compiled = _compile(backend)
        differentiated, _ = call.run(compiled)
        records = [record for record, _ in captured]
        counted = _count(call, compiled, records, eager=eager)
        seconds, step_s = _seconds(
            call, compiled, _launches(records), measure=measure, eager=eager and counted.before is not None
        )
    if parsed.rest != "eager":
        counted.reasons.append("what Inductor runs is in no count")
    captures = tuple(describe_capture(record, names, seconds) for record, names in captured)
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
        counted.before,
        counted.after,
        tuple(counted.reasons),
        step_s,
    )


@dataclass
class _Counted:
    before: Run | None
    after: Run | None
    reasons: list[str]


def _count(call: Call, compiled: Callable[..., Any], records: list[Record], *, eager: bool) -> _Counted:
    """One step of each, operator by operator; both are told apart by the index maps that either of them met."""
    reasons: list[str] = []
    captures = {id(launch): number for number, record in enumerate(records) for launch in _launches([record])}
    launches = _launches(records)
    after = call.recorder()
    with watched(launches, recorded_by(after, captures)):
        call.record(compiled, after)
    known = after.sizes().joined(sizes_of(launches))
    before = None
    if eager and (reason := _too_large(records)) is not None:
        reasons.append(reason)
    elif eager:
        before = call.recorder()
        call.record(_as_written, before)
        known = known.joined(before.sizes())
    if launches and not after.num_programs:
        reasons.append("the compiled model did not run as compiled while it was counted")
        return _Counted(before.run(known) if before is not None else None, None, reasons)
    return _Counted(before.run(known) if before is not None else None, after.run(known), reasons)


def _as_written(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The un-compiled model, also where parts of it are compiled."""
    with torch.compiler.set_stance("force_eager"):
        return model(*args, **kwargs)


def _too_large(records: list[Record]) -> str | None:
    """Why the un-compiled model should not run: what its backward needs of the values that no kernel writes does not fit."""
    written = sum(
        launch.seen[0] * edge_value_bytes(launch.program)
        for record in records
        for launch in record.launches.get("forward", [])
        if launch.seen is not None
    )
    free = _available_bytes()
    if free is None or written < free:
        return None
    return (
        f"eager was not run: it may need {written / 1e9:.0f} GB for values that plait does not write, "
        f"and {free / 1e9:.0f} GB are free"
    )


def _available_bytes() -> int | None:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _launches(records: list[Record]) -> list[Launch]:
    return [launch for record in records for parts in record.launches.values() for launch in parts]


REPEATS = 5


def _seconds(
    call: Call, compiled: Callable[..., Any], launches: list[Launch], *, measure: bool, eager: bool
) -> tuple[Seconds, tuple[float | None, float | None]]:
    """Seconds of programs: predicted from what was measured on this machine once, and measured now where asked for."""
    try:
        costs = machine_costs()
    except CompilerError:
        costs = BY_BYTES
    predicted: dict[int, float] = {}
    if costs is not BY_BYTES:  # which is no machine's
        found = {id(launch): predicted_s(launch, costs) for launch in launches}
        predicted = {key: number for key, number in found.items() if number is not None}
    if not measure:
        return Seconds(predicted, {}), (None, None)
    measured, after_s = measured_s(launches, lambda: call.run(compiled)[1], REPEATS)
    before_s = measured_s([], lambda: call.run(_as_written)[1], REPEATS)[1] if eager else None
    return Seconds(predicted, measured), (before_s, after_s)


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
