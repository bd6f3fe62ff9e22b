"""Law: interpreting a program before and after `factor` gives the same numbers."""

from __future__ import annotations

import pytest
import torch

from plait.codegen.factor import factor
from plait.codegen.simplify import rebuild
from plait.ir.interpret import interpret
from plait.ir.ops import SegmentReduce
from plait.ir.program import Program, level
from tests.codegen import layers
from tests.codegen.build import Draft
from tests.codegen.cases import CASES, inputs


def quotient() -> Program:
    d = Draft("quotient")
    x, scale = d.load("at", 2, 3), d.load("row", 2)
    share = (x.inner(1) / scale) / d.load("edge", 2)
    d.out((share.view(2, 1) * x).view(6).segment())
    return d.program()


PROGRAMS = [
    quotient(),
    layers.gat_forward(3, 7),
    layers.gatv2_forward(2, 5),
    layers.edge_conv_backward_dst(7),
    layers.gat_backward_dst(3, 7),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_factor_keeps_the_numbers(program: Program) -> None:
    changed = factor(rebuild(program))
    for case in CASES:
        tensors, ordering = inputs(program, case), case.ordering(program)
        if program.name.startswith("edge_conv"):
            tensors[0].fill_(1), tensors[1].fill_(1), tensors[2].fill_(2)  # every edge is the maximum
        for a, b in zip(interpret(program, tensors, ordering), interpret(changed, tensors, ordering), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def num_passes(program: Program) -> int:
    levels: dict = {}
    return max(level(node, levels) for node in program.nodes() if isinstance(node.op, SegmentReduce))


def test_softmax_takes_two_passes_instead_of_three() -> None:
    program = layers.gat_forward(4, 32)

    assert (num_passes(program), num_passes(factor(program))) == (3, 2)


def test_gradient_shared_by_ties_takes_one_pass_instead_of_two() -> None:
    program = layers.edge_conv_backward_dst(8)

    assert (num_passes(program), num_passes(factor(program))) == (2, 1)


def test_sum_without_a_row_factor_stays_as_it_is() -> None:
    program = layers.neighbour_sum(8)

    assert len(list(factor(program).nodes())) == len(list(program.nodes()))
