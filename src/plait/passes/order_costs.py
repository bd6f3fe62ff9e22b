"""What a product before or behind a propagation costs, forward and backward; the table in `plait.passes.order` says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from plait import operators
from plait.costs import Costs
from plait.passes.edit import hint, is_call, most, value
from plait.passes.propagation import Propagation

_TYPICAL_DEGREE = 16.0  # where a capture does not know the number of edges


@dataclass(frozen=True)
class Setting:
    """What a choice depends on besides the graph. wants_grad: whether a value's gradient will be computed.

    find_costs is called where there is a choice: it may have to measure them. is_movable: which nodes may get another order,
    in a joint graph those of the backward. keeps_sums: whether a step keeps what was propagated for the gradient of a weight
    behind it; under a memory budget it may have to propagate once more.
    """

    find_costs: Callable[[], Costs]
    is_training: bool
    wants_grad: Callable[[Node], bool]
    is_movable: Callable[[Node], bool] = lambda node: True
    order: str = "auto"  # as `plait.config.Options.order`
    keeps_sums: bool = True

    @property
    def costs(self) -> Costs:
        return self.find_costs()


@dataclass(frozen=True)
class Sizes:
    """Hints of the numbers of rows, the degree, and widths as in the legend."""

    num_sources: float
    num_rows: float
    degree: float
    x: int
    y: int
    heads: int

    @staticmethod
    def of(found: Propagation, x: int, y: int, heads: int) -> Sizes:
        num_sources = hint(value(found.source).shape[0]) or 10_000.0
        num_rows = hint(value(found.reduce).shape[0]) or num_sources
        num_edges = most(value(found.gather).shape[0])
        degree = num_edges / max(num_rows, 1.0) if num_edges is not None else _TYPICAL_DEGREE
        return Sizes(num_sources, num_rows, degree, x, y, heads)


def _gather_s(width: int, num_rows: float, sizes: Sizes, setting: Setting) -> float:
    """Seconds of one propagation of rows of so many floats."""
    return setting.costs.gather(4.0 * width, num_rows) * sizes.degree * sizes.num_rows


def _rows_s(num_columns: int, num_rows: float, setting: Setting) -> float:
    """Seconds to write rows and to read them again."""
    return setting.costs.stream(2 * 4.0 * num_columns * num_rows)


def _surplus_s(rows: float, others: float, x: Node, sizes: Sizes, setting: Setting) -> float:
    """Seconds of the products of one order whose rows the other order does not multiply: where edges lead from many rows to
    few, the few are better. The products of the rows that both multiply cost the same."""
    num_products = 2 + setting.wants_grad(x) if setting.is_training else 1
    return num_products * setting.costs.product(max(rows - others, 0.0), sizes.x, sizes.heads * sizes.y)


def seconds_first(found: Propagation, x: Node, sizes: Sizes, setting: Setting) -> float:
    """x W, then the propagation: of the forward, and of the backward where there will be one."""
    wide = sizes.heads * sizes.y
    total = _surplus_s(sizes.num_sources, sizes.num_rows, x, sizes, setting)
    total += _gather_s(wide, sizes.num_sources, sizes, setting) + _rows_s(wide, sizes.num_sources, setting)
    if setting.is_training:
        total += _gather_s(sizes.y, sizes.num_rows, sizes, setting) + _rows_s(wide, sizes.num_sources, setting)
        if _needs_own_kernel(found, setting):
            total += _gather_s(wide, sizes.num_sources, sizes, setting)
    return total


def seconds_behind(found: Propagation, x: Node, sizes: Sizes, setting: Setting) -> float:
    """The propagation of x, then the product."""
    wide = sizes.heads * sizes.x
    total = _surplus_s(sizes.num_rows, sizes.num_sources, x, sizes, setting)
    total += _gather_s(sizes.x, sizes.num_sources, sizes, setting) + _rows_s(wide, sizes.num_rows, setting)
    # the product's result: what follows is no part of the propagation's kernel
    total += _rows_s(sizes.y, sizes.num_rows, setting)
    if not setting.is_training:
        return total
    if not setting.keeps_sums:
        total += _gather_s(sizes.x, sizes.num_sources, sizes, setting) + _rows_s(wide, sizes.num_rows, setting)
    factor_s = 0.0
    if _factor_wants_grad(found, setting) and (_needs_own_kernel(found, setting) or not setting.wants_grad(x)):
        factor_s = _gather_s(sizes.x, sizes.num_sources, sizes, setting)
    if setting.wants_grad(x):
        straight = _gather_s(wide, sizes.num_rows, sizes, setting)
        turned = _gather_s(sizes.y, sizes.num_rows, sizes, setting)
        is_shared = _factor_wants_grad(found, setting) and not factor_s
        total += (straight if is_shared else min(straight, turned)) + _rows_s(wide, sizes.num_rows, setting)
    return total + factor_s


def _factor_wants_grad(found: Propagation, setting: Setting) -> bool:
    return any(isinstance(factor.by, Node) and setting.wants_grad(factor.by) for factor in found.factors)


def _needs_own_kernel(found: Propagation, setting: Setting) -> bool:
    """Whether the gradient of a factor goes through a sum over each row's edges: that has no place among the turned edges."""
    return any(
        isinstance(factor.by, Node) and setting.wants_grad(factor.by) and _reads_reduction(factor.by)
        for factor in found.factors
    )


def _reads_reduction(node: Node) -> bool:
    seen: set[Node] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        if is_call(item, operators.segment_reduce) and item.meta["val"].dtype.is_floating_point:
            return True
        stack.extend(item.all_input_nodes)
    return False
