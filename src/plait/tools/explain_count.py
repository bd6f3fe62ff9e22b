"""Counts what PyTorch executes, operator by operator, forward and backward: a dispatch mode, so it sees what really runs.

The rules, the same for an eager run and for what a compiled run leaves outside of its kernels:

- an operator reads its inputs and writes its outputs in full; an axis that is only expanded counts once; views are free;
- a gather reads as many rows as it returns, each as often as it is returned;
- a fresh tensor is free until something is written to it;
- a matrix product of [m, k] and [k, n] is 2 m k n FLOPs; every other arithmetic operator is one per element it returns, or, if
  it reduces, one per element it reads; copies and index computations are none.

Programs are counted by `plait.tools.explain_programs`, from their text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from plait import graph, operators
from plait.tools.explain_work import Flow, Run, Sizes, Step, tally

_aten = torch.ops.aten

# name -> positions of the data, the axis (None: 0) and the index
_GATHERS: dict[str, tuple[int, int | None, int]] = {
    "aten::index_select": (0, 1, 2),
    "aten::gather": (0, 1, 2),
    "aten::embedding": (0, None, 1),
    "plait::gather": (0, None, 1),
}
_SCATTERS: dict[str, tuple[int, int | None, int]] = {
    "aten::scatter_add": (0, 1, 2),
    "aten::scatter": (0, 1, 2),
    "aten::scatter_reduce": (0, 1, 2),
    "aten::index_add": (0, 1, 2),
    "aten::index_reduce": (0, 1, 2),
    "aten::index_copy": (0, 1, 2),
}
MADE_BEFORE = "made before"  # what the step finds, and is no input or parameter: the structure of the graph, constants
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "empty_permuted", "new_empty_strided", "detach", "alias")
_DRAWS = ("random", "uniform", "normal", "bernoulli", "exponential", "geometric", "log_normal", "cauchy")
# these write to their first argument, or look at its shape alone
_NOT_READ = frozenset(
    {"zero_", "fill_", "copy_", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
    | {"rand_like", "randn_like", "randint_like"}
    | {f"{name}_" for name in _DRAWS}
)
_MOVES = frozenset(
    {"clone", "copy", "_to_copy", "fill", "zero", "zeros", "ones", "full", "arange", "scalar_tensor", "lift_fresh"}
    | {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "rand_like", "randn_like", "randint_like"}
    | {"rand", "randn", "randint", "randperm", "cat", "stack", "index_select", "index", "_unsafe_index", "gather", "embedding"}
    | {"scatter", "index_copy", "select_backward", "slice_backward", "select_scatter", "slice_scatter", "constant_pad_nd"}
    | {"repeat", "repeat_interleave", "flip", "roll", "masked_select", "masked_scatter", "nonzero", "tril", "triu"}
    | {
        "sort",
        "argsort",
        "topk",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
        "diagonal_scatter",
        "expand_copy",
        "view_copy",
    }
    | set(_DRAWS)
)
_REDUCTIONS = frozenset(
    {"sum", "mean", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "cumsum", "logsumexp", "var", "std", "var_mean"}
    | {"norm", "linalg_vector_norm", "all", "any", "scatter_add", "scatter_reduce", "index_add", "index_reduce"}
    | {"embedding_dense_backward", "segment_reduce"}
)


def _vector_flops(*args: Any) -> int:
    """mv, dot, addmv: twice the elements of the largest operand."""
    return 2 * max(item.numel() for item in args if isinstance(item, Tensor))


def _grouped_flops(x: Tensor, rows: Tensor | None, other: Tensor, *rest: Any) -> int:
    """grouped_mm and grouped_total: twice the pairs times the numbers of a matrix."""
    num_pairs = (x if rows is None else rows).shape[0]
    return 2 * num_pairs * x.shape[1] * other.shape[-1]


_PRODUCTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot, _aten.addmv), _vector_flops),
    **dict.fromkeys((operators.grouped_mm.overloadpacket, operators.grouped_total.overloadpacket), _grouped_flops),
}


@dataclass
class _Draft:
    """A step while it is recorded: what its rows are is known when the run is over and every index map was seen."""

    name: str
    kind: str
    direction: str
    counts: frozenset[int]  # sizes that say whose rows it works on
    product_flops: int
    flops: int
    read_bytes: int
    written_bytes: int
    reads: list[int]
    writes: list[int]
    work: Callable[[Sizes], Step] | None = None  # a program says for itself what it does


class Recorder(TorchDispatchMode):
    """Records every operator while it is active; programs are told to it by `program`.

    held: tensors by name that exist whether or not there is a backward; their memory is not counted as kept.
    """

    def __init__(self, held: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.direction = "forward"
        self._held: dict[int, str] = {}  # memory -> name
        self._drafts: list[_Draft] = []
        self._flows: list[Flow] = []
        self._leading: list[int | None] = []
        self._at: dict[int, int] = {}  # memory -> number of the tensor that was last written there
        self._kept: dict[int, int] = {}
        self._entries: set[int] = set()
        self._targets: set[int] = set()
        self.hold(held or {})

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """These are there anyway, too."""
        for name, item in tensors.items():
            self._held[place_of(item)] = name
            self._at.pop(place_of(item), None)  # its memory may have been another tensor's before

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else torch.compile steps aside and the compiled model is not what runs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._operator(func, args, kwargs, out)
        return out

    def saving(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which what autograd saves is counted."""

        def pack(item: Tensor) -> Tensor:
            place = place_of(item)
            if place not in self._held and item.numel() and not _is_structure(item):
                self._kept[place] = item.untyped_storage().nbytes()
                number = self._number(item)
                self._flows[number] = replace(self._flows[number], kept=True)
            return item.detach()  # an output that is saved must not hold its own function

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda item: item)

    def program(
        self, name: str, tensors: Sequence[Tensor], outputs: Mapping[str, Tensor], work: Callable[[Sizes], Step]
    ) -> None:
        """A fused program ran; `work` says what it did."""
        reads = list(dict.fromkeys(self._number(item) for item in tensors))
        writes = [self._written(item, title) for title, item in outputs.items()]
        self._drafts.append(_Draft(name, "program", self.direction, frozenset(), 0, 0, 0, 0, reads, writes, work))

    @property
    def num_programs(self) -> int:
        return sum(draft.kind == "program" for draft in self._drafts)

    def sizes(self) -> Sizes:
        """The index maps that were seen."""
        return Sizes(entries=frozenset(self._entries), targets=frozenset(self._targets))

    def run(self, sizes: Sizes) -> Run:
        """What was recorded, told apart by these sizes."""
        steps = tuple(_finished(draft, sizes) for draft in self._drafts)
        flows = tuple(
            replace(item, rows=sizes.rows_of([] if leading is None else [leading]))
            for item, leading in zip(self._flows, self._leading, strict=True)
        )
        return Run(steps=steps, flows=flows, tally=tally(steps, sum(self._kept.values())))

    # --- one operator ------------------------------------------------------------------------------------------------

    def _operator(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        name = func._schema.name.partition("::")[2]
        outputs = list(_tensors(out))
        if name in _EMPTY or not outputs:
            return
        if not func._schema.is_mutable and _is_view(outputs, _tensors((args, kwargs))):
            return
        self._see_map(func, args)
        inputs = list(_tensors((args, {key: item for key, item in kwargs.items() if key != "out"})))
        read_bytes = [distinct_bytes(item) for item in inputs]
        base = name.rstrip("_")
        if inputs and name in _NOT_READ:
            inputs, read_bytes = inputs[1:], read_bytes[1:]
        elif base in ("index", "_unsafe_index") or func._schema.name in _GATHERS:
            read_bytes[0] = outputs[0].numel() * outputs[0].itemsize  # a row counts as often as it is read
        product = _product_flops(func, args, kwargs, outputs)
        sizes = [item.shape for item in (*inputs, *outputs)]
        counts = (size for shape in sizes for size in (shape if product else shape[:1]))
        reads = list(dict.fromkeys(self._number(item) for item in inputs))
        writes = [self._written(item, base) for item in outputs]
        self._drafts.append(
            _Draft(
                base,
                "operator",
                self.direction,
                frozenset(counts),
                product,
                0 if product else _flops(func, base, inputs, outputs),
                sum(read_bytes),
                sum(item.numel() * item.itemsize for item in outputs),
                reads,
                writes,
            )
        )

    def _see_map(self, func: Any, args: Sequence[Any]) -> None:
        """Takes down the sizes of an index map: its entries, and the rows it points into."""
        name = func._schema.name.rstrip("_")
        if name in ("aten::index", "aten::index_put", "aten::_index_put_impl"):
            first = args[1][0] if args[1] else None
            if isinstance(first, Tensor) and first.dim() == 1 and first.dtype in (torch.int32, torch.int64):
                self._map(first, args[0].shape[0])
        elif name in _GATHERS or name in _SCATTERS:
            data, axis, index = (_GATHERS | _SCATTERS)[name]
            if args[data].dim() and args[index].dim() and (axis is None or args[axis] % args[data].dim() == 0):
                self._map(args[index], args[data].shape[0])
        elif name in ("plait::segment_reduce", "aten::embedding_dense_backward"):
            self._map(args[1], args[2])

    def _map(self, index: Tensor, num_targets: int) -> None:
        self._entries.add(index.shape[0])
        self._targets.add(num_targets)

    def _number(self, item: Tensor) -> int:
        """The number of the tensor that lives where `item` does."""
        place = place_of(item)
        if place not in self._at:
            self._at[place] = self._new(item, self._held.get(place, MADE_BEFORE), None)
        return self._at[place]

    def _written(self, item: Tensor, name: str) -> int:
        place = place_of(item)
        number = self._new(item, name, len(self._drafts))
        self._at[place] = number
        return number

    def _new(self, item: Tensor, name: str, made_by: int | None) -> int:
        shape, size = tuple(item.shape), item.numel() * item.itemsize
        kind = str(item.dtype).removeprefix("torch.")
        self._flows.append(Flow(name=name, shape=shape, dtype=kind, bytes=size, rows="other", made_by=made_by))
        self._leading.append(shape[0] if shape else None)
        return len(self._flows) - 1


def _finished(draft: _Draft, sizes: Sizes) -> Step:
    if draft.work is not None:
        return replace(draft.work(sizes), direction=draft.direction, reads=tuple(draft.reads), writes=tuple(draft.writes))
    rows = sizes.rows_of(draft.counts)
    on_edges = rows == "edges"
    return Step(
        name=draft.name,
        kind=draft.kind,
        capture=None,
        direction=draft.direction,
        rows=rows,
        fused=0,
        edge_product_flops=draft.product_flops if on_edges else 0,
        node_product_flops=0 if on_edges else draft.product_flops,
        edge_flops=draft.flops if on_edges else 0,
        node_flops=0 if on_edges else draft.flops,
        read_bytes=draft.read_bytes,
        written_bytes=draft.written_bytes,
        reads=tuple(draft.reads),
        writes=tuple(draft.writes),
    )


def place_of(item: Tensor) -> int:
    """The memory under a tensor."""
    return item.untyped_storage().data_ptr()


def distinct_bytes(item: Tensor) -> int:
    """
    >>> distinct_bytes(torch.zeros(5, 1).expand(5, 8)), distinct_bytes(torch.zeros(5, 8).t())
    (20, 160)
    """
    sizes = [size for size, stride in zip(item.shape, item.stride(), strict=True) if stride != 0 or size == 0]
    return math.prod(sizes) * item.itemsize


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (item for item in pytree.tree_leaves(tree) if isinstance(item, Tensor))


def _is_view(outputs: Collection[Tensor], inputs: Iterable[Tensor]) -> bool:
    places = {place_of(item) for item in inputs if item.numel()}
    return all(not item.numel() or place_of(item) in places for item in outputs) and bool(places)


def _is_structure(item: Tensor) -> bool:
    base = item if item._base is None else item._base
    return graph.is_frozen(base) or graph.is_frozen(item)


def _product_flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Sequence[Tensor]) -> int:
    packet = func._overloadpacket
    if packet in _PRODUCTS:
        return _PRODUCTS[packet](*args)
    formula = flop_registry.get(packet)
    if formula is None:
        return 0
    rest = {key: item for key, item in kwargs.items() if key != "out"}
    return int(formula(*args, **rest, out_val=outputs[0] if len(outputs) == 1 else tuple(outputs)))


def _flops(func: Any, base: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """One per element, for arithmetic with floats."""
    if base in _MOVES or not any(item.dtype.is_floating_point for item in (*inputs, *outputs)):
        return 0
    if base == "index_put":  # only adding is arithmetic; what is added stands last
        return inputs[-1].numel()
    largest_input = max((item.numel() for item in inputs), default=0)
    largest_output = max(item.numel() for item in outputs)
    if base in _REDUCTIONS:
        return largest_input
    if torch.Tag.pointwise in func.tags:
        return largest_output
    return max(largest_input, largest_output)
