"""What a run did, step by step, and its sums: the words in which `plait.explain` compares eager with compiled.

A *step* is one operator that PyTorch ran, or one fused program. Rows are "edges" where an operand or a result has as many rows
as an index map has entries, "nodes" where one has as many as a map points into, else "other" (weights, scalars, index tables).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

ROWS = ("edges", "nodes", "other")


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A tensor between two steps. made_by: number of the step, None for what was there before (inputs, parameters, structure).
    kept: the forward keeps its memory for the backward."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    rows: str
    made_by: int | None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator or one program, as it ran. direction: forward or backward. capture: position of the captured graph that a
    program belongs to.

    reads, writes: numbers of `Run.flows`. fused: how many operators a program is made of. The FLOPs of a program are told apart
    value by value: it computes some edge by edge and others row by row.
    """

    name: str
    kind: str  # "operator" or "program"
    capture: int | None
    direction: str
    rows: str
    fused: int
    edge_product_flops: int
    node_product_flops: int
    edge_flops: int
    node_flops: int
    read_bytes: int
    written_bytes: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over a run. "edge": on edges; "node": everything else. FLOPs of matrix products and of the rest stand apart.

    edge_operators, node_operators: a program counts as one; fused_operators: those that programs are made of.

    kept_bytes: what the forward keeps for the backward, each piece of memory once, without parameters, buffers, inputs and the
    structure of the graph. kernels: programs and operators launched; programs: how many of them are fused.
    """

    edge_operators: int
    node_operators: int
    fused_operators: int
    edge_product_flops: int
    node_product_flops: int
    edge_flops: int
    node_flops: int
    read_bytes: int
    written_bytes: int
    kept_bytes: int
    kernels: int
    programs: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, kw_only=True)
class Run:
    """One counted step of training or inference."""

    steps: tuple[Step, ...]
    flows: tuple[Flow, ...]
    tally: Tally


def tally(steps: Sequence[Step], kept_bytes: int) -> Tally:
    """The sums of some steps."""
    return Tally(
        edge_operators=sum(step.rows == "edges" for step in steps),
        node_operators=sum(step.rows != "edges" for step in steps),
        fused_operators=sum(step.fused for step in steps),
        edge_product_flops=sum(step.edge_product_flops for step in steps),
        node_product_flops=sum(step.node_product_flops for step in steps),
        edge_flops=sum(step.edge_flops for step in steps),
        node_flops=sum(step.node_flops for step in steps),
        read_bytes=sum(step.read_bytes for step in steps),
        written_bytes=sum(step.written_bytes for step in steps),
        kept_bytes=kept_bytes,
        kernels=len(steps),
        programs=sum(step.kind == "program" for step in steps),
    )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of rows by which a run's operators are told apart: entries of the index maps, and rows they point into.

    Sizes are all that is left of a map when an operator runs. A graph with as many edges as nodes cannot be told apart by them:
    its operators count as "nodes". So do rows that are both (nodes that a batch vector maps to graphs).
    """

    entries: frozenset[int] = frozenset()
    targets: frozenset[int] = frozenset()

    def joined(self, other: Sizes) -> Sizes:
        return Sizes(entries=self.entries | other.entries, targets=self.targets | other.targets)

    def rows_of(self, counts: Collection[int]) -> str:
        """
        >>> sizes = Sizes(entries=frozenset({40, 7}), targets=frozenset({7}))
        >>> sizes.rows_of([7, 40]), sizes.rows_of([7]), sizes.rows_of([3])
        ('edges', 'nodes', 'other')
        """
        if any(count in self.entries and count not in self.targets for count in counts):
            return "edges"
        return "nodes" if any(count in self.targets for count in counts) else "other"


def times_fewer(before: int, after: int) -> float | None:
    """How many times less; None where nothing is left, or nothing was there."""
    return before / after if before and after else None


def share_removed(before: int, after: int) -> float | None:
    """The share of `before` that `after` does without; None where there was nothing."""
    return 1 - after / before if before else None


def total(counts: Iterable[int | None]) -> int:
    return sum(count or 0 for count in counts)
