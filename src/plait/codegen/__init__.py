"""From a `Program` to C++ and back to a callable: `compile_programs` makes kernels, `Kernel` launches one."""

from plait.codegen.kernel import Kernel, compile_programs

__all__ = ["Kernel", "compile_programs"]
