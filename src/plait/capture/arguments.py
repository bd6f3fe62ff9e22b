"""What a compiled model is called with: looked at once a call, for what Dynamo does not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, str})
_DENSE = frozenset({torch.strided, torch._mkldnn})  # type: ignore[attr-defined]


class Arguments:
    """leaves: every value in the arguments. edge_indices: PyG's `EdgeIndex` among them. sparse: a layout, if one is sparse."""

    __slots__ = ("args", "edge_indices", "kwargs", "leaves", "sparse")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.leaves: list[Any] = [*args, *kwargs.values()]
        self.edge_indices: list[Any] = []
        # most calls have tensors alone, for which pytree takes ten times as long
        if not _PLAIN.issuperset(map(type, self.leaves)):
            self.leaves = tree_leaves(self.leaves)
            self.edge_indices = [item for item in self.leaves if _is_edge_index(item)]
        layouts = (item.layout for item in self.leaves if isinstance(item, Tensor))
        self.sparse: torch.layout | None = next((layout for layout in layouts if layout not in _DENSE), None)

    def have_two_sizes(self) -> bool:
        """Whether an `EdgeIndex` knows sizes that are not the same: layers take from it how many rows their output has."""
        sizes = [item.sparse_size() for item in self.edge_indices]
        return any(num_rows != num_columns for num_rows, num_columns in sizes)

    def plain(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every `EdgeIndex` as the tensor it is: Dynamo trips over its caches."""
        plain: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(
            lambda item: item.as_tensor() if _is_edge_index(item) else item, (self.args, self.kwargs)
        )
        return plain


def _is_edge_index(item: Any) -> bool:
    return type(item).__name__ == "EdgeIndex" and hasattr(item, "as_tensor")
