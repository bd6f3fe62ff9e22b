"""Find the C++ compiler, build, cache and load: for generated kernels, orderings and the sampler."""

from plait.native.cache import LibraryCache, clear, library_key, private_cache, shared_cache
from plait.native.compiler import Toolchain, cpu_features, simd_bytes, toolchain, try_compile
from plait.native.library import LibraryFuture, build, build_now, num_threads

__all__ = [
    "LibraryCache",
    "LibraryFuture",
    "Toolchain",
    "build",
    "build_now",
    "clear",
    "cpu_features",
    "library_key",
    "num_threads",
    "private_cache",
    "shared_cache",
    "simd_bytes",
    "toolchain",
    "try_compile",
]
