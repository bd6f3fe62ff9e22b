"""Compiling in tests: the backend by name, and what the last captures did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from plait import graph
from plait.capture import record
from plait.capture.record import Record
from plait.ir.program import Program
from tests.models import Inputs


def compiled(model: Callable[..., Any]) -> Callable[..., Any]:
    """Rows are symbolic from the first capture on, so that graphs of all sizes share it (0 and 1 excepted)."""
    return torch.compile(model, backend="plait", dynamic=True)


@contextmanager
def captures() -> Iterator[list[Record]]:
    """The records of all captures made inside; those that Dynamo's analysis started again are left out at the end."""
    found: list[Record] = []

    class Recording(list[Record]):
        def append(self, item: Record) -> None:
            found.append(item)
            super().append(item)

    kept = record.RECORDS
    record.RECORDS = Recording(kept)
    try:
        yield found
    finally:
        kept[:] = record.RECORDS
        record.RECORDS = kept
        found[:] = [item for item in found if item.launches or item.fallbacks]


def kept_bytes(call: Callable[..., Tensor], model: nn.Module, inputs: Inputs) -> int:
    """Bytes that a step keeps for its backward, counted: without inputs, parameters, the output and structure."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in graph._FROZEN:  # structure is held once per graph, not by the step
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call(*inputs)
    for item in (*inputs, *model.parameters(), out):
        kept.pop(item.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def saved_tensors(call: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Every tensor that a forward saves for its backward."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call(*inputs)
    return saved


def wide_per_edge(tensors: list[Tensor], inputs: Inputs, num_edges: int) -> list[tuple[int, ...]]:
    """The shapes of floats with a row of several numbers per edge; what the user gave is the user's own memory."""
    given = {item.untyped_storage().data_ptr() for item in inputs if isinstance(item, Tensor)}
    return [
        tuple(item.shape)
        for item in tensors
        if item.dim() > 0
        and item.shape[0] >= num_edges
        and item.numel() >= 2 * len(item)
        and item.is_floating_point()
        and item.untyped_storage().data_ptr() not in given
    ]


def num_programs(records: list[Record], direction: str) -> int:
    return sum(len(item.programs.get(direction, [])) for item in records)


def edge_programs(record: Record, direction: str) -> list[Program]:
    """Programs that stream edges: ordered by a map, or reading through one."""
    return [program for program in record.programs.get(direction, []) if program.ordered or program.maps]


def in_double(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The model and its float inputs in float64."""
    return model.double(), floats_as(torch.float64, inputs)


def floats_as(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    """The inputs' floats in another dtype, each a leaf that wants a gradient if it did."""

    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

    result: Inputs = pytree.tree_map_only(Tensor, converted, inputs)
    return result
