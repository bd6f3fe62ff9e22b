"""Whether a compiled graph is predicted to take less time than the captured one; where it is not, PyTorch runs it as it was.

Between graph breaks there are often a few small operators, or products with an activation behind them. There is little to
fuse, and what is saved is less than what Python needs to call two compiled halves where PyTorch's autograd needs none.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Graph, Node

from plait.capture.inplace import WRITES, write_in_place
from plait.capture.launch import PRODUCTS, Launch, StructureCall
from plait.capture.partition import copy_graph
from plait.capture.record import Record
from plait.ir.program import Program
from plait.passes.edit import aten, hint, is_call, is_tensor, is_view, static, value
from plait.passes.liveness import num_bytes

# Measured on 2 cores, torch 2.13, rounded: only their order of magnitude matters, which is why `plait.costs`, whose numbers
# take seconds to measure on a new machine, is not asked.
_CALL_S = 4e-6  # an operator that makes a tensor
_LAUNCH_S = 25e-6  # a program, or a lookup of structure
_STEP_S = 100e-6  # around a training step: an autograd function in Python, and its backward
_STREAM_BYTES = 1e10  # read or written in a second
_SORTING = 30  # a sort, in passes over its data
_MARGIN = 0.8  # what is predicted to take more than this of the time may as well take longer
# glibc maps larger blocks anew each time: half of the time to write one is page faults. Ours come from a pool.
_MAPPED_BYTES = 32 << 20
_SORTS = (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten._unique2.default)


@dataclass(frozen=True)
class Work:
    """What running a graph once takes. streamed_bytes: read and written, pages that are mapped anew counted twice."""

    num_calls: int = 0
    num_launches: int = 0
    streamed_bytes: int = 0

    @staticmethod
    def of(graph: Graph) -> Work:
        """The work of a graph, as it was captured or as it was assembled."""
        found = [_of_call(node) for node in graph.nodes if node.op == "call_function" and not _is_free(node)]
        return Work(*(sum(column) for column in zip(*found, strict=True))) if found else Work()

    @staticmethod
    def of_captured(graph: Graph) -> Work:
        """The work of a functional graph where PyTorch runs it: writes go where they went before it was made functional."""
        written = copy_graph(graph)
        write_in_place(written)
        return Work.of(written)

    def seconds(self) -> float:
        return self.num_calls * _CALL_S + self.num_launches * _LAUNCH_S + self.streamed_bytes / _STREAM_BYTES


def is_worthwhile(captured: Work, halves: Sequence[Graph], record: Record) -> bool:
    """Whether the assembled halves are predicted to take less time than the work of the captured graph.

    They are taken to if rows of one domain meet those of another in a kernel, which saves the most, and nobody would want to
    predict; if a pass moved work; or if the user asks for more than the usual. Where sizes vary, any program is taken to pay,
    and so is a sort that runs once per graph. Where they depend on data (dense batches), the sort alone is.
    """
    if record.moved or record.dropped or record.options.rest != "eager" or record.options.memory_budget is not None:
        return True
    programs = [launch.program for launches in record.launches.values() for launch in launches]
    if any(program.reads_maps() and _computes_floats(program) for program in programs):
        return True
    if not all(map(_has_known_sizes, halves)):
        return any(map(_sorts_once, halves)) or (bool(programs) and not any(map(_has_sizes_of_data, halves)))
    compiled = sum(Work.of(graph).seconds() for graph in halves)
    wrapper = _STEP_S if len(halves) > 1 else 0.0
    return compiled + wrapper < _MARGIN * captured.seconds()


def _has_known_sizes(graph: Graph) -> bool:
    tensors = [value(node) for node in graph.nodes if is_tensor(node)]
    return all(static(size) is not None for tensor in tensors for size in tensor.shape)


def _has_sizes_of_data(graph: Graph) -> bool:
    tensors = [value(node) for node in graph.nodes if is_tensor(node)]
    return any(hint(size) is None for tensor in tensors for size in tensor.shape)


def _computes_floats(program: Program) -> bool:
    """Counts of ints take no time worth a kernel's launch."""
    return any(output.value.type.dtype.is_floating_point for output in program.outputs)


def _sorts_once(half: Graph) -> bool:
    """Whether the structure that was cut off from a graph holds a sort."""
    structures = [node.target.module.graph for node in half.nodes if isinstance(node.target, StructureCall)]
    return any(is_call(node, *_SORTS) for graph in structures for node in graph.nodes)


def _is_free(node: Node) -> bool:
    if isinstance(node.target, StructureCall):
        return False
    if node.target is operator.getitem or (is_view(node) and not _is_write(node)):
        return True
    return not any(isinstance(item, Tensor) for item in _results(node))


def _is_write(node: Node) -> bool:
    if node.target in WRITES.values():
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _results(node: Node) -> Sequence[object]:
    val = node.meta.get("val")
    return val if isinstance(val, list | tuple) else (val,)


def _of_call(node: Node) -> tuple[int, int, int]:
    """Calls, launches and bytes of one call."""
    read = sum(num_bytes(value(item)) for item in node.all_input_nodes)
    if isinstance(node.target, StructureCall):
        return 0, 1, read  # its key
    written = sum(map(num_bytes, _results(node)))
    if isinstance(node.target, Launch):
        return 0, 1, read + written
    if _is_write(node):
        return 1, 0, 2 * (read - written)  # of the rows that are written, not of all that stand where they go
    if written > _MAPPED_BYTES and node.target not in PRODUCTS.values():
        written *= 2
    return 1, 0, (read + written) * (_SORTING if is_call(node, *_SORTS) else 1)
