"""`plait doctor`: what is installed, what works, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plait import native
from plait.config import environment
from plait.errors import CompilerError, LibraryCacheError, PlaitError

TORCH_RANGE = ((2, 9), (3, 0))
OPTIONAL = ("torch_geometric", "scikit-learn", "matplotlib", "typer", "rich")
FLAGS = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")

Status = Literal["ok", "note", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. `broken` means that plait cannot do its work; `note` that it works, but less well."""

    name: str
    status: Status
    text: str
    advice: str = ""

    @property
    def is_essential_failure(self) -> bool:
        return self.status == "broken"


def examine() -> list[Finding]:
    """Runs every check; one that crashes is a finding, not the end."""
    found = []
    for check in CHECKS:
        try:
            found.append(check())
        except Exception as error:  # noqa: BLE001  a doctor who faints helps nobody
            text = f"the check failed: {type(error).__name__}: {error}"
            found.append(Finding(name=check.__name__.strip("_"), status="broken", text=text, advice="Please report this."))
    return found


def _versions() -> Finding:
    found = f"plait {_version('plait') or 'not installed'}, torch {torch.__version__}, Python {platform.python_version()}"
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    if not TORCH_RANGE[0] <= numbers < TORCH_RANGE[1]:
        wanted = f"{'.'.join(map(str, TORCH_RANGE[0]))} or later, before {TORCH_RANGE[1][0]}"
        return Finding(name="versions", status="broken", text=found, advice=f"Install torch {wanted}.")
    return Finding(name="versions", status="ok", text=found)


def _extras() -> Finding:
    versions = {name: _version(name) for name in OPTIONAL}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if None in versions.values():
        return Finding(name="extras", status="note", text=text, advice="For plait train and bench: pip install 'plait[train]'")
    return Finding(name="extras", status="ok", text=text)


def _backend() -> Finding:
    entries = [entry for entry in importlib.metadata.entry_points(group="torch_dynamo_backends") if entry.name == "plait"]
    if not entries:
        advice = "Install plait (pip install plait, or pip install -e . in its source); the name comes with the installation."
        return Finding(name="back end", status="broken", text='torch.compile does not know backend="plait"', advice=advice)
    return Finding(name="back end", status="ok", text=f'torch.compile(model, backend="plait") loads {entries[0].value}')


def _compiler() -> Finding:
    try:
        chain = native.toolchain()
        seconds = native.try_compile()
    except CompilerError as error:
        advice = "Install g++ or clang++ with OpenMP, or name one with PLAIT_CXX. Until then models run un-fused."
        return Finding(name="compiler", status="broken", text=str(error), advice=advice)
    return Finding(name="compiler", status="ok", text=f"{chain.version}; a small library takes {seconds:.2f} s")


def _vectors() -> Finding:
    width = native.simd_bytes()
    text = f"{8 * width} bits ({platform.machine()})"
    if width < 32 and platform.machine() in ("x86_64", "AMD64"):
        advice = "Neither AVX2 nor AVX-512 is offered; in a virtual machine, ask for the host's CPU model."
        return Finding(name="vectors", status="note", text=text, advice=advice)
    return Finding(name="vectors", status="ok", text=text)


def _threads() -> Finding:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    text = f"{used} of {allowed} processors"
    if used > allowed:
        advice = f"More threads than processors slow each other down: set OMP_NUM_THREADS={allowed}."
        return Finding(name="threads", status="note", text=text, advice=advice)
    if used * 2 < allowed:
        advice = "Hyper-threads aside, torch.set_num_threads or OMP_NUM_THREADS can give it more."
        return Finding(name="threads", status="note", text=text, advice=advice)
    return Finding(name="threads", status="ok", text=text)


def _cache() -> Finding:
    settings = environment()
    directory = settings.cache_dir
    try:
        native.shared_cache()
    except LibraryCacheError as error:
        advice = (
            "Every process builds its kernels again. Mend the directory's owner or mode, or set PLAIT_CACHE_DIR to another."
        )
        return Finding(name="kernel cache", status="note", text=str(error), advice=advice)
    count, size = _cache_size(directory)
    text = f"{directory}: {count} kernels, {size / 1e6:.1f} of {settings.cache_bytes / 1e6:.0f} MB"
    return Finding(name="kernel cache", status="ok", text=text)


def _cache_size(directory: pathlib.Path) -> tuple[int, int]:
    sizes = []
    for file in directory.glob("*.so"):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue  # another process trimmed it in this moment
    return len(sizes), sum(sizes)


def _dynamo_flags() -> Finding:
    values = {flag: getattr(torch._dynamo.config, flag, None) for flag in FLAGS}
    text = ", ".join(f"{flag} {'on' if value else 'off'}" for flag, value in values.items())
    if not environment().dynamo_flags:
        advice = (
            "PLAIT_DYNAMO_FLAGS=0: GCNConv and GATConv with self-loops break the graph; plait.compile sets them for itself."
        )
        return Finding(name="dynamo flags", status="note", text=text, advice=advice)
    if not all(values.values()):
        advice = (
            "They are set when the back end is loaded; something switched them off, or they have other names in this torch."
        )
        return Finding(name="dynamo flags", status="note", text=text, advice=advice)
    return Finding(name="dynamo flags", status="ok", text=f"{text} (set by the back end when it is loaded)")


class _SumOfNeighbours(nn.Module):
    """The smallest layer with an index map at both ends; it needs nothing but torch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        h = self.linear(x)
        return torch.zeros_like(h).index_add(0, dst, torch.tanh(h[src] + h[dst]))


def _kernel() -> Finding:
    """Compiles a one-layer model with fallbacks turned into errors, and compares output and gradients with eager."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=random)
    src, dst = torch.randint(50, (2, 300), generator=random)
    torch.manual_seed(0)
    model = _SumOfNeighbours()
    try:
        compiled = torch.compile(model, backend="plait", options={"strict": True})
        expected, got = (_outputs(run, model, x, src, dst) for run in (model, compiled))
    except (PlaitError, RuntimeError, ImportError) as error:
        advice = "Run again with PLAIT_DUMP=dir, which keeps graphs and sources, and report it."
        first_line = (str(error).splitlines() or [""])[0]
        return Finding(name="kernel", status="broken", text=f"{type(error).__name__}: {first_line}", advice=advice)
    # relative to the largest entry, as a sum of 300 terms rounds with its largest partial sums
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, got, strict=True))
    if not worst < 1e-5:
        advice = "Results are wrong on this machine. Run with PLAIT_DUMP=dir and report it."
        return Finding(name="kernel", status="broken", text=f"differs from eager by {worst:.1e}", advice=advice)
    return Finding(name="kernel", status="ok", text=f"one layer compiled and run; differs from eager by {worst:.1e}")


def _outputs(run: Callable[..., Tensor], model: nn.Module, x: Tensor, src: Tensor, dst: Tensor) -> list[Tensor]:
    """Output and gradients of all inputs and parameters."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch itself warns of while it compiles is not the question here
        out = run(x, src, dst)
        out.sum().backward()
    gradients = [tensor.grad for tensor in (x, *model.parameters()) if tensor.grad is not None]
    return [out.detach(), *(gradient.clone() for gradient in gradients)]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Callable[[], Finding], ...] = (
    _versions,
    _extras,
    _compiler,
    _vectors,
    _threads,
    _cache,
    _backend,
    _kernel,
    _dynamo_flags,  # after a compile: loading the back end sets them
)


def show(findings: list[Finding]) -> None:
    """A line per finding, and below it what to do."""
    from plait.tools.screen import console

    colors = {"ok": "green", "note": "yellow", "broken": "red"}
    for finding in findings:
        label = f"[{colors[finding.status]}]{finding.status:6}[/] [bold]{finding.name:12}[/] "
        console.print(label, end="", highlight=False)
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
        if finding.advice:
            console.print(f"{'':20}{finding.advice}", markup=False, highlight=False, soft_wrap=True)
    num_broken = sum(finding.is_essential_failure for finding in findings)
    console.print("all well" if not num_broken else f"{num_broken} broken, see above", highlight=False)
