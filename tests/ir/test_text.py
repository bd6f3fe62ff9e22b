"""Programs in, text out, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from plait.errors import ProgramError
from plait.ir import ops
from plait.ir.program import Input, Node, Output, Program, Space, Type
from plait.ir.text import OPS, parse, to_text
from tests.strategies import programs, random_program

EVERYTHING = """\
program everything ordered maps(src, "edge type")
  input x : at(src)[4, 32] float32
  input r : at("edge type")[] float64
  input e : edge[4] int64
  input d : row[4] bool
  input seed : dense[] int64
  input weight : dense[4, 6] float32
  %0 : row[4] bool = load_row d
  %1 : edge[4, 32] float32 = load_at x
  %2 : edge[4] int64 = load_edge e
  %3 : edge[4] float32 = cast %2
  %4 : edge[4, 1] float32 = reshape %3
  %5 : edge[4, 32] float32 = expand %4
  %6 : edge[4, 32] float32 = mul %1, %5
  %7 : edge[32, 4] float32 = permute(axes=[1, 0]) %6
  %8 : edge[16, 4] float32 = slice(axis=0, start=1, step=2) %7
  %9 : edge[48, 4] float32 = cat(axis=0) %8, %7
  %10 : edge[4] float32 = inner_reduce(reduce=sum, axes=[0]) %9
  %11 : dense[] float32 = const -0.5
  %12 : dense[1] float32 = reshape %11
  %13 : dense[4] float32 = expand %12
  %14 : edge[4] float32 = where %0, %10, %13
  %15 : dense[] int64 = load_dense seed
  %16 : edge[4] float32 = uniform %15
  %17 : edge[4] float32 = add %14, %16
  %18 : row[4] float32 = segment_reduce(reduce=max, init=-inf, include_init=True) %17
  %19 : row[] float32 = row_length
  %20 : row[4] float32 = segment_reduce(reduce=sum, init=0.0) %17
  %21 : dense[4] float32 = total_reduce %20
  %22 : dense[4, 6] float32 = load_dense weight
  %23 : edge[6] float32 = product %17, %22
  %24 : dense[4, 6] float32 = total_product %17, %23
  output "a max" = %18
  output length = %19
  output total = %21
  output gradient = %24
"""


def test_program_in_program_out() -> None:
    assert to_text(parse(EVERYTHING)) == EVERYTHING


def test_every_operator_is_named() -> None:
    assert set(OPS.values()) | {ops.Pointwise} == set(ops.Op.__args__)


@given(programs())
def test_printing_and_parsing_gives_the_same_text(program: Program) -> None:
    text = to_text(program)

    assert to_text(parse(text)) == text


def test_same_seed_gives_the_same_text() -> None:
    assert to_text(random_program(5)) == to_text(random_program(5))


@pytest.mark.parametrize("value", [1, 1.0, -2.5, True, False, float("inf"), 1e-30, 1e17])
def test_constant_keeps_its_kind(value: float) -> None:
    node = Node(ops.Const(value), (), Type(Space.DENSE, (), torch.float32))
    total = Node(ops.TotalReduce(), (node,), Type(Space.DENSE, (), torch.float32))

    found = parse(to_text(Program("p", False, (), (), (Output("out", total),)))).outputs[0].value.inputs[0].op

    assert repr(found) == repr(ops.Const(value))


def test_equal_values_that_are_two_nodes_stay_two() -> None:
    text = """\
program twice unordered maps()
  input x : edge[] float32
  %0 : edge[] float32 = load_edge x
  %1 : edge[] float32 = load_edge x
  %2 : edge[] float32 = add %0, %1
  output y = %2
"""

    assert to_text(parse(text)) == text


def test_broken_program_can_be_printed() -> None:
    load = Node(ops.LoadAt(3, 1), (), Type(Space.EDGE, (), torch.float32))
    program = Program("broken", False, ("src",), (Input("x", (), torch.float32, "edge"),), (Output("y", load),))

    text = to_text(program)

    assert "load_at #3 at(#1)" in text
    assert to_text(parse(text)) == text


HEAD = "program p unordered maps()\ninput x : edge[] float32\n%0 : edge[] float32 = load_edge x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected program <name>"),
        ("graph p", "expected program <name>"),
        (HEAD + "%1 : edge[] float32 = sine %0", "no operator is called 'sine'"),
        (HEAD + "%1 : edge[] float33 = sin %0", "no dtype is called 'float33'"),
        (HEAD + "%1 : node[] float32 = sin %0", "expected edge, row or dense, got 'node'"),
        (HEAD + "%1 : edge[] float32 = sin %7", "%7 is read before it is defined"),
        (HEAD + "%1 : edge[] float32 = sin x", "expected %<number>, %<number>"),
        (HEAD + "%1 : edge[] float32 = load_edge z", "expected one of x, got z"),
        (HEAD + "%1 : edge[] float32 = load_at x", "the input has no index map"),
        (HEAD + "%1 : dense[] float32 = const one", "expected a number, got 'one'"),
        (HEAD + "%1 : edge[] float32 = cast(to=int) %0", "cast has no attribute to"),
        (HEAD + "%1 : row[] float32 = segment_reduce(reduce=mean, init=0.0) %0", "segment_reduce: reduce: 'mean'"),
        (HEAD + "%1 : row[] float32 = segment_reduce(reduce=sum) %0", "segment_reduce needs init"),
        (HEAD + "output y = %3", "%3 is read before it is defined"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        parse(text)
