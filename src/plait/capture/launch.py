"""What a compiled graph calls at run time: a fused program, and the structure of a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from plait import graph, memory, operators
from plait.capture.last_graph import Found, LastGraph
from plait.codegen.kernel import Kernel
from plait.errors import CompilerError, IndexMapError
from plait.ir.interpret import interpret
from plait.ir.ops import Uniform
from plait.ir.program import Program, Space
from plait.structure_cache import STRUCTURE

aten = torch.ops.aten
log = logging.getLogger("plait")


class Launch:
    """One program of a compiled graph; a call finds the ordering and runs the kernel, or the interpreter where there is none.

    Called as `launch(num_edges, num_rows, rows, maps, sizes, tensors)`: `rows` is the ordering map int [E] or None, `maps` the
    index maps int [E] the program gathers by, `sizes` the number of coarse rows of each.
    """

    def __init__(self, program: Program, on_failure: Callable[[str], None], *, wrap: bool = False) -> None:
        self.wrap = wrap
        self.program = program
        self.kernel: Kernel | None = None  # set when its build has begun
        self.seen: tuple[int, int, tuple[int, ...]] | None = None  # num_edges, num_rows, sizes of the last call, for reports
        self.last: LastGraph | None = None
        self.on_failure = on_failure
        self.with_edge_id = program.needs_edge_position()
        self.edge_slots = [slot for slot, item in enumerate(program.inputs) if item.access == "edge"]
        self.only_reads_edges = bool(self.edge_slots) and program.ordered and not _depends_on_position(program)
        self.__name__ = program.name  # the name in a printed graph

    def __call__(
        self,
        num_edges: int,
        num_rows: int,
        rows: Tensor | None,
        maps: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        tensors: Sequence[Tensor],
    ) -> list[Tensor]:
        self.seen = (num_edges, num_rows, sizes)
        found = self.last.of(num_rows, rows, maps, sizes, tensors) if self.last is not None else None
        ordering, in_order, tensors = found or self._find(num_edges, num_rows, rows, maps, sizes, tensors)
        if self.kernel is not None:
            try:
                self.kernel.wait()
            except CompilerError as error:
                self.kernel = None
                self.on_failure(f"{self.program.name}: {error}")
            else:
                return self.kernel(tensors, ordering, num_rows, num_edges, in_order=in_order)
        return interpret(self.program, tensors, ordering.of_sorted() if in_order else ordering)

    def _find(
        self,
        num_edges: int,
        num_rows: int,
        rows: Tensor | None,
        maps: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        tensors: Sequence[Tensor],
    ) -> Found:
        """What the kernel reads the edges by, found by the content of the maps; built if they are new."""
        try:
            found = self._ordered(num_edges, num_rows, rows, maps, sizes, tensors)
        except IndexMapError:
            if not self.wrap:
                raise
            # checked only after it failed: indices that count from the end are rare, and legal in x[index]
            positive = tuple(operators.wrapped(item, size) for item, size in zip(maps, sizes, strict=True))
            own = operators.wrapped(rows, num_rows) if rows is not None else None
            found = self._ordered(num_edges, num_rows, own, positive, sizes, tensors)
        ordering, in_order, read = found
        self.last = LastGraph.remember(
            num_rows, rows, maps, sizes, ordering, self.edge_slots if in_order else (), tensors, read
        )
        return found

    def _ordered(
        self,
        num_edges: int,
        num_rows: int,
        rows: Tensor | None,
        maps: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        tensors: Sequence[Tensor],
    ) -> Found:
        others = list(zip(maps, sizes, strict=True))
        if rows is None:
            return graph.natural(num_edges, others), False, tensors
        edges = [tensors[slot] for slot in self.edge_slots]
        # values of the graph alone (a normalisation) are sorted once, and then read as they come
        in_order = self.only_reads_edges and all(map(graph.is_frozen, edges))
        read = tensors
        if in_order:
            read = list(tensors)
            for slot, item in zip(self.edge_slots, edges, strict=True):
                read[slot] = graph.sorted_values(item, rows, num_rows)
        return graph.ordered(rows, num_rows, others, with_edge_id=self.with_edge_id and not in_order), in_order, read


def _depends_on_position(program: Program) -> bool:
    """Whether anything but reading edge tensors needs to know which edge of the user's an entry is."""
    if any(output.value.type.space is Space.EDGE for output in program.outputs):
        return True
    return any(isinstance(node.op, Uniform) for node in program.nodes())


class StructureCall:
    """The structure of a graph: computed when its index tensors are new, found by their content otherwise."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.code = module.code
        self.__name__ = "structure"

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        key = ("structure", self.code, tuple(graph.content_key(item) if isinstance(item, Tensor) else item for item in inputs))
        found = STRUCTURE.get(key)
        if found is not None:
            return found  # type: ignore[no-any-return]
        # normal tensors even under inference_mode: a training step may find them next
        with torch.inference_mode(False), torch.no_grad():
            values = self.module(*inputs)
        held = {item.untyped_storage().data_ptr() for item in inputs if isinstance(item, Tensor)}
        result = tuple(_private(item, held) if isinstance(item, Tensor) else item for item in values)
        num_bytes = sum(item.untyped_storage().nbytes() for item in result if isinstance(item, Tensor))
        STRUCTURE.put(key, result, num_bytes)
        return result


def _private(item: Tensor, held: set[int]) -> Tensor:
    """`item` as a tensor that shares memory with nothing the user holds (addresses of storages), registered as such."""
    if item.untyped_storage().data_ptr() in held or not item.is_contiguous():
        item = item.clone(memory_format=torch.contiguous_format)
    # autograd saves a view as another tensor object, and by the object it is known again (see `capture.last_graph`)
    return graph.freeze(item.detach() if item._is_view() else item)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out=memory.empty((a.shape[0], b.shape[1]), a.dtype))


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(bias, a, b, out=memory.empty((a.shape[0], b.shape[1]), a.dtype))


def size_of(tensor: Tensor, axis: int) -> Any:
    return tensor.shape[axis]


def _view(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Says of a call that its result has no memory of its own, as operators say it."""
    function.is_view = True  # type: ignore[attr-defined]
    return function


@_view
def transposed(tensor: Tensor) -> Tensor:
    return tensor.t()


@_view
def viewed(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    # a rewritten value may lie otherwise in memory than the one that was traced; nothing is written to, so a copy will do
    return tensor.reshape(shape)


def _gathered(x: Tensor, index: Tensor, wrap: bool = False) -> Tensor:
    index = operators.wrapped(index, x.shape[0]) if wrap else index
    return torch.index_select(x, 0, index, out=memory.empty((index.shape[0], *x.shape[1:]), x.dtype))


@_view
def write_slice(
    out: Tensor, rows: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    aten.slice.Tensor(out, dim, start, end, step).copy_(rows)
    return out


@_view
def write_select(out: Tensor, part: Tensor, dim: int, index: int) -> Tensor:
    out.select(dim, index).copy_(part)
    return out


# products that write into buffers of the pool
PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
}
# what a method of the tensor does in less time than the operator, or than Python's way through the dispatcher
QUICK: dict[Any, Callable[..., Any]] = {
    aten.sym_size.int: size_of,
    aten.t.default: transposed,
    aten.view.default: viewed,
    operators.gather: _gathered,
}
