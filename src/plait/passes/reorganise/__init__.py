"""The laws that move work from edges to nodes; each file says its law, and when it is applied."""

from plait.passes.reorganise.behind import move_behind_sums
from plait.passes.reorganise.ends import move_narrow_work
from plait.passes.reorganise.outer import move_outer_products
from plait.passes.reorganise.products import move_products
from plait.passes.reorganise.slices import move_slices
from plait.passes.reorganise.types import move_typed_products

__all__ = [
    "move_behind_sums",
    "move_narrow_work",
    "move_outer_products",
    "move_products",
    "move_slices",
    "move_typed_products",
]
