"""Find the C++ compiler, and say what it builds for."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from plait.config import environment
from plait.errors import CompilerError

MACHINES = ("x86_64", "aarch64")

# No fast-math: NaN and infinity are as in eager PyTorch. fp-contract is off because a backward kernel must compute again the
# very bits of the forward one, whatever the compiler fuses around them; generated code asks for fma where it wants one.
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
_NATIVE_FLAG = {"x86_64": "-march=native", "aarch64": "-mcpu=native"}
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_INSTALL = "Install g++ (Debian: apt install g++; Fedora: dnf install gcc-c++; conda: gxx), or set PLAIT_CXX to a compiler."

_PROBE = """
#include <omp.h>
extern "C" int plait_probe(int n) {
    int sum = 0;
    #pragma omp parallel for reduction(+ : sum) num_threads(2)
    for (int i = 0; i < n; ++i) sum += i;
    return sum;
}
"""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """command: the compiler, with its own arguments; version: one line; flags: for a shared library; features: the CPU's."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    features: tuple[str, ...]

    def identity(self) -> str:
        """Everything of it that can change the bytes of a library, as text for a cache key."""
        return "\n".join((" ".join(self.command), self.version, " ".join(self.flags), " ".join(self.features)))


def toolchain() -> Toolchain:
    """The compiler the environment asks for now: $PLAIT_CXX, $CXX, g++ or clang++.

    Found again on every call, so that a changed environment counts; what costs time (asking its version) is done once for every
    compiler. Raises CompilerError if the platform is not supported, or there is no compiler, or it does not run.
    """
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in MACHINES:
        raise CompilerError(
            f"C++ kernels: built on Linux on {' or '.join(MACHINES)} only, this is {sys.platform} on {machine}\n"
            "  The model runs without them."
        )
    command = _find(environment().compiler)
    modified_ns = pathlib.Path(command[0]).stat().st_mtime_ns
    return Toolchain(command, _version(command, modified_ns), (*_FLAGS, _NATIVE_FLAG[machine]), cpu_features())


def _find(asked: str | None) -> tuple[str, ...]:
    """The command of the compiler: a path, a name on PATH, or either with arguments, such as `ccache g++`."""
    candidates = [[asked], shlex.split(asked)] if asked else [["g++"], ["clang++"]]
    for words in candidates:
        path = shutil.which(words[0]) if words else None
        if path is not None:
            return (path, *words[1:])
    if asked:
        raise CompilerError(f"C++ compiler: PLAIT_CXX or CXX asks for {asked!r}, which is not a program here\n  {_INSTALL}")
    raise CompilerError(f"C++ compiler: none found, neither g++ nor clang++ is on PATH\n  {_INSTALL}")


@functools.lru_cache(maxsize=16)
def _version(command: tuple[str, ...], modified_ns: int) -> str:
    """The first line of `--version`; `modified_ns` is there so that an upgraded compiler is asked again."""
    try:
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CompilerError(f"C++ compiler: `{' '.join(command)} --version` failed: {error}\n  {_INSTALL}") from error
    return asked.stdout.partition("\n")[0]


@functools.lru_cache(maxsize=1)
def cpu_features() -> tuple[str, ...]:
    """The features of the CPU, sorted, as the kernel names them; empty where /proc is not there."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(set(value.split())))
    return ()


def simd_bytes() -> int:
    """Width of a vector register: 64 with AVX-512F, 32 with AVX2, otherwise 16 (SSE2, NEON)."""
    features = cpu_features()
    if "avx512f" in features:
        return 64
    return 32 if "avx2" in features else 16


def try_compile() -> float:
    """Build, load and run a small OpenMP library in a temporary directory; seconds it took. Raises CompilerError."""
    chain = toolchain()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="plait-probe-") as folder:
        source, built = pathlib.Path(folder, "probe.cpp"), pathlib.Path(folder, "probe.so")
        source.write_text(_PROBE)
        run = subprocess.run(
            [*chain.command, *chain.flags, str(source), "-o", str(built)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise CompilerError(f"C++ compiler: {chain.command[0]} does not build a small program:\n{run.stderr[:2000]}")
        try:
            found = ctypes.CDLL(str(built)).plait_probe(10)
        except OSError as error:
            raise CompilerError(f"C++ compiler: what {chain.command[0]} built does not load: {error}") from error
    if found != 45:
        raise CompilerError(f"C++ compiler: a small program built by {chain.command[0]} gave {found}, expected 45")
    return time.perf_counter() - start
