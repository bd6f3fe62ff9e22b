from plait.codegen.kernel import Kernel as Kernel
from plait.codegen.kernel import compile_programs as compile_programs
