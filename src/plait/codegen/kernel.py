"""A compiled program: its source, its library, and the call."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from plait import memory
from plait.codegen.cpp import identifier, print_cpp
from plait.codegen.factor import factor
from plait.codegen.schedule import Schedule, schedule
from plait.codegen.simplify import rebuild
from plait.codegen.target import Target, native_target
from plait.codegen.tile_cpp import print_tiles
from plait.codegen.tiles import has_products, schedule_tiles
from plait.errors import ShapeError, UnsupportedError
from plait.ir.ops import LOADS, Cast
from plait.ir.program import Program, Space
from plait.native import library

if TYPE_CHECKING:
    from plait.graph import Ordering

_INTEGERS = {torch.int32: "int32_t", torch.int64: "int64_t"}
_COMMENT = re.compile(r" *//.*")
_Variant = tuple[torch.dtype, torch.dtype]  # of the index maps, of the edge positions


@functools.cache
def prelude(*, with_products: bool = False) -> str:
    """The vectors and functions every source starts with."""
    names = ("intrinsics.h", "vectors.h", "functions.h", *(["products.h"] if with_products else []))
    return "\n".join((pathlib.Path(__file__).parent / name).read_text() for name in names)


def compile_programs(programs: Sequence[Program], *, target: Target | None = None) -> list[Kernel]:
    """Kernels of all programs, from one shared library whose build starts at once and is waited for at the first launch.

    `target` is this machine unless given (vectors may be shorter than the machine's).
    """
    drafts = []
    for number, program in enumerate(programs):
        symbol = f"plait_{number}_{identifier(program.name)}"
        plan, source = generate(program, target or native_target(), symbol)
        drafts.append((program, plan, symbol, source))
    name = identifier(programs[0].name) if programs else "empty"
    header = prelude(with_products=any(plan.tile for _, plan, _, _ in drafts))
    shared = _Library(header, [source for _, _, _, source in drafts], name)
    if drafts:
        shared.build((torch.int32, torch.int32))
    return [Kernel(program, plan, source, shared, symbol) for program, plan, symbol, source in drafts]


def generate(program: Program, target: Target, symbol: str) -> tuple[Schedule, str]:
    """How a program runs, and the C++ function `symbol` that does it."""
    for node in program.nodes():
        if node.type.dtype is torch.bfloat16 and not isinstance(node.op, (*LOADS, Cast)):
            raise UnsupportedError(
                f"{program.name}: {node.op} in bfloat16 is not compiled: kernels compute in float32 and round"
            )
    try:
        reduced = rebuild(factor(rebuild(program)))
        if has_products(reduced):
            plan = schedule_tiles(reduced, target)
            return plan, print_tiles(reduced, plan, symbol)
        plan = schedule(reduced, target)
        return plan, print_cpp(reduced, plan, symbol)
    except RecursionError as error:
        raise UnsupportedError(f"{program.name}: a chain of values is too long for the code generator") from error


class _Library:
    """The functions of some kernels, built for the integer types of the index maps that occur (nearly always 32 bits)."""

    def __init__(self, header: str, sources: Sequence[str], name: str) -> None:
        self._header = header
        self._sources = tuple(_COMMENT.sub("", source) for source in sources)  # they tell the names of the caller's tensors
        self._name = name
        self._futures: dict[_Variant, library.LibraryFuture] = {}

    def source(self, variant: _Variant) -> str:
        types = f"typedef {_INTEGERS[variant[0]]} index_t;\ntypedef {_INTEGERS[variant[1]]} position_t;\n"
        return "\n".join([self._header, types, *self._sources])

    def build(self, variant: _Variant) -> library.LibraryFuture:
        if variant not in self._futures:
            self._futures[variant] = library.build(self.source(variant), self._name)
        return self._futures[variant]


class Kernel:
    """A program, how it runs, its C++ source, and the call that runs it."""

    def __init__(self, program: Program, plan: Schedule, source: str, shared: _Library, symbol: str) -> None:
        self.program = program
        self.schedule = plan
        self.source = source
        self._shared = shared
        self._symbol = symbol
        self._functions: dict[_Variant, Any] = {}
        self._is_built = False
        self._checked: object = None  # sizes and dtypes of the last call that were right
        self._needs_position = program.needs_edge_position()
        self._arguments = ctypes.c_void_p * (len(program.inputs) + len(program.outputs) + 2 + len(program.maps))
        self._inputs = tuple((item.shape, item.dtype, item.access, item.index_map) for item in program.inputs)
        self._outputs = tuple((out.value.type.space, out.value.type.shape, out.value.type.dtype) for out in program.outputs)

    def wait(self) -> None:
        """Wait until the kernel is built. Raises CompilerError."""
        if not self._is_built:
            self._function((torch.int32, torch.int32))
            self._is_built = True

    def __call__(
        self, tensors: Sequence[Tensor], structure: Ordering, num_rows: int, num_edges: int, *, in_order: bool = False
    ) -> list[Tensor]:
        """Run it: tensors by input, the ordering, its sizes -> the outputs. in_order: edge tensors are sorted already."""
        if _profiler_enabled():
            with torch.profiler.record_function(self.program.name):
                return self._launch(tensors, structure, num_rows, num_edges, in_order)
        return self._launch(tensors, structure, num_rows, num_edges, in_order)

    # in one piece: every call of a helper costs as much as a few of these lines, and this runs in each step
    def _launch(
        self, tensors: Sequence[Tensor], structure: Ordering, num_rows: int, num_edges: int, in_order: bool
    ) -> list[Tensor]:
        checked = (num_rows, num_edges, len(structure.indices), [(tensor.shape, tensor.dtype) for tensor in tensors])
        if checked != self._checked:  # most calls come with the sizes of the one before
            self._check(tensors, structure, num_rows, num_edges)
            self._checked = checked
        if self._needs_position and structure.edge_id is None and not (structure.is_identity or in_order):
            raise ShapeError(f"{self.program.name}: reads or writes edges in the user's order, and the ordering has no edge_id")
        # copies must live until the launch is over
        held = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
        pointers: list[int | None] = [tensor.data_ptr() for tensor in held]
        outputs = []
        for space, shape, dtype in self._outputs:
            full = shape if space is Space.DENSE else ((num_rows if space is Space.ROW else num_edges), *shape)
            out = memory.empty(full, dtype)
            outputs.append(out)
            pointers.append(out.data_ptr())
        pointers.append(structure.indptr.data_ptr() if structure.indptr is not None else None)
        edge_id, indices = None if in_order else structure.edge_id, structure.indices
        pointers.append(edge_id.data_ptr() if edge_id is not None else None)
        pointers += [index.data_ptr() for index in indices]
        variant = (indices[0].dtype if indices else torch.int32, edge_id.dtype if edge_id is not None else torch.int32)
        function = self._functions.get(variant) or self._function(variant)
        function(self._arguments(*pointers), num_rows, num_edges, library.num_threads())
        return outputs

    def _check(self, tensors: Sequence[Tensor], structure: Ordering, num_rows: int, num_edges: int) -> None:
        if len(tensors) != len(self._inputs) or len(structure.indices) != len(self.program.maps):
            raise ShapeError(
                f"{self.program.name}: expected {len(self._inputs)} tensors and {len(self.program.maps)} index maps, "
                f"got {len(tensors)} and {len(structure.indices)}"
            )
        sizes = {"edge": num_edges, "row": num_rows}
        for number, (tensor, (shape, dtype, access, _)) in enumerate(zip(tensors, self._inputs, strict=True)):
            given = tensor.shape
            leading = sizes.get(access)
            if access != "dense":
                given = given[1:]
                if leading is not None and tensor.shape[:1] != (leading,):
                    raise self._shape_error(number, tensor, num_rows, num_edges)
            if given != shape or tensor.dtype is not dtype or (access != "dense" and not tensor.dim()):
                raise self._shape_error(number, tensor, num_rows, num_edges)

    def _function(self, variant: _Variant) -> Any:
        function = getattr(self._shared.build(variant).result(), self._symbol)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32]
        function.restype = None
        self._functions[variant] = function
        return function

    def _shape_error(self, number: int, tensor: Tensor, num_rows: int, num_edges: int) -> ShapeError:
        item = self.program.inputs[number]
        leading = {"edge": [str(num_edges)], "row": [str(num_rows)], "at": ["any"], "dense": []}[item.access]
        expected = ", ".join([*leading, *map(str, item.shape)])
        return ShapeError(
            f"{self.program.name}: input {item.name} expected [{expected}] {item.dtype}, "
            f"got {list(tensor.shape)} {tensor.dtype}"
        )
