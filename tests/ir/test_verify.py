"""Valid programs pass; each rule has the smallest text that breaks it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from plait.errors import ProgramError
from plait.ir import ops
from plait.ir.program import Program, Space, Type
from plait.ir.text import parse
from plait.ir.verify import INFER, infer_type, verify
from tests.strategies import programs, random_program

INPUTS = """
  input e : edge[4] float32
  input f : edge[4] float64
  input w : dense[4] float32
  input x : at(src)[4, 2] float32
  input r : row[4] float32
  input b : edge[4] bool
  input i : edge[4] int64
  input s : dense[] int64
  input m : dense[3, 2] float32
  input v : dense[4, 2] float32
  %e : edge[4] float32 = load_edge e
  %f : edge[4] float64 = load_edge f
  %w : dense[4] float32 = load_dense w
  %x : edge[4, 2] float32 = load_at x
  %r : row[4] float32 = load_row r
  %b : edge[4] bool = load_edge b
  %i : edge[4] int64 = load_edge i
  %s : dense[] int64 = load_dense s
  %m : dense[3, 2] float32 = load_dense m
  %v : dense[4, 2] float32 = load_dense v
"""
NUMBERS = {name: str(90 + place) for place, name in enumerate("efwxrbismv")}


def program_with(line: str, order: str = "ordered") -> Program:
    """A program whose value `%1` is `line`, which may read a load of every kind as %e, %f, %w and so on."""
    body = INPUTS + line
    for name, number in NUMBERS.items():
        body = body.replace(f"%{name}", f"%{number}")
    return parse(f"program case {order} maps(src, dst)\n{body}\noutput out = %1")


def test_every_operator_has_a_row() -> None:
    assert set(INFER) == set(ops.Op.__args__)


@given(programs())
def test_random_programs_are_valid(program: Program) -> None:
    verify(program)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [True, False])
def test_random_programs_can_be_asked_for(dtype: torch.dtype, ordered: bool) -> None:
    program = random_program(1, dtype=dtype, ordered=ordered)

    verify(program)
    assert program.ordered == ordered


@pytest.mark.parametrize(
    "line",
    [
        "%1 : edge[4] float32 = add %e, %w",
        "%1 : edge[4] float32 = add %e, %r",
        "%1 : row[4] float32 = add %r, %w",
        "%1 : edge[4] float32 = where %b, %e, %r",
        "%1 : edge[4] bool = logical_or %b, %b",
        "%1 : edge[4] float32 = cast %b",
        "%1 : edge[2, 4] float32 = permute(axes=[1, 0]) %x",
        "%1 : edge[2, 2] float32 = slice(axis=0, start=1, step=2) %x",
        "%1 : edge[0, 2] float32 = slice(axis=0, start=4, step=1) %x",
        "%1 : edge[8] float32 = cat(axis=0) %e, %r",
        "%1 : edge[] float32 = inner_reduce(reduce=max, axes=[1, 0]) %x",
        "%1 : edge[3, 5] float32 = uniform %s",
        "%1 : edge[2] float32 = product %e, %v",
        "%1 : edge[2] float32 = product %r, %v",
        "%1 : dense[4, 4] float32 = total_product %e, %r",
        "%1 : row[4, 2] float32 = segment_reduce(reduce=max, init=0.0) %x",
        "%1 : dense[4] float32 = total_reduce %r",
        "%1 : row[] int64 = row_length",
    ],
)
def test_valid_value(line: str) -> None:
    verify(program_with(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # spaces
        ("%1 : row[4] float32 = add %e, %r", r"expected type edge\[4\] float32, got row\[4\] float32"),
        ("%1 : row[4] float32 = segment_reduce(reduce=sum, init=0.0) %r", r"expected an edge value, got row\[4\]"),
        ("%1 : dense[4] float32 = total_reduce %w", r"expected an edge or a row value, got dense\[4\]"),
        ("%2 : dense[4] float32 = total_reduce %e\n%1 : edge[4] float32 = add %e, %2", "complete only after the last row"),
        # shapes
        ("%1 : edge[4] float32 = add %e, %x", r"one inner shape and dtype, got edge\[4\] float32 and edge\[4, 2\] float32"),
        ("%1 : edge[3] float32 = neg %e", r"expected type edge\[4\] float32, got edge\[3\] float32"),
        ("%1 : edge[3] float32 = reshape %e", r"expected 4 elements as in edge\[4\] float32, got edge\[3\]"),
        ("%1 : edge[8] float32 = expand %e", r"expected \[4\] with axes of size 1 repeated, got \[8\]"),
        ("%1 : edge[1, 4] float32 = expand %e", r"expected \[4\] with axes of size 1 repeated, got \[1, 4\]"),
        ("%1 : edge[2, 4] float32 = permute(axes=[1, 1]) %x", r"expected each of the 2 axes once, got \[1, 1\]"),
        ("%1 : edge[3, 2] float32 = slice(axis=0, start=2, step=1) %x", "expected entries below 4 of axis 0, got entry 4"),
        ("%1 : edge[3, 2] float32 = slice(axis=2, start=0, step=1) %x", "expected an axis from 0 to 1, got 2"),
        ("%1 : edge[3, 2] float32 = slice(axis=0, start=0, step=0) %x", "step >= 1, got start 0, step 0"),
        ("%1 : edge[2] float32 = slice(axis=0, start=0, step=1) %x", r"expected 2 axes, got \[2\]"),
        ("%1 : edge[8] float32 = cat(axis=0) %e, %x", "expected inputs that differ in axis 0 only"),
        ("%1 : edge[8] float32 = cat(axis=0)", "expected at least one input"),
        ("%1 : edge[4, 2] float32 = inner_reduce(reduce=sum, axes=[]) %x", "expected one or more distinct axes"),
        ("%1 : edge[4] float32 = inner_reduce(reduce=sum, axes=[1, 1]) %x", "expected one or more distinct axes"),
        (
            "%2 : edge[0, 2] float32 = slice(axis=0, start=0, step=1) %x\n"
            "%1 : edge[2] float32 = inner_reduce(reduce=max, axes=[0]) %2",
            "expected axes with entries for max",
        ),
        # dtypes
        ("%1 : edge[4] float32 = add %e, %f", "expected inputs of one inner shape and dtype"),
        ("%1 : edge[4] float64 = neg %e", "expected type edge.* float32, got edge.* float64"),
        ("%1 : edge[4] float32 = gt %e, %w", "expected type edge.* bool, got"),
        ("%1 : edge[4] int64 = exp %i", "expected floating inputs"),
        ("%1 : edge[4] bool = add %b, %b", "expected numbers, got .*: cast first"),
        ("%1 : edge[4] float32 = where %e, %e, %e", "expected a bool condition"),
        ("%1 : edge[4] float32 = where %b, %e, %f", "expected inputs of one inner shape and dtype"),
        ("%1 : row[4] bool = segment_reduce(reduce=max, init=0.0) %b", "expected numbers to reduce"),
        ("%1 : edge[4] float32 = uniform %w", r"expected a seed dense\[\] int64, got dense\[4\] float32"),
        ("%1 : edge[4] float16 = uniform %s", "expected float32 or float64 .* got float16"),
        ("%1 : dense[] int64 = const 0.5", "expected a floating dtype for 0.5, got int64"),
        # products
        ("%1 : edge[2] float32 = product %e, %m", r"expected a weight dense\[4, ...\], got dense\[3, 2\] float32"),
        ("%1 : edge[2] float32 = product %w, %m", "expected an edge or a row value with one axis, got dense"),
        ("%1 : edge[2] float64 = product %f, %v", "expected factors of one floating dtype"),
        ("%1 : edge[4, 2] float32 = product %x, %v", r"one axis, got edge\[4, 2\]"),
        ("%1 : row[2] float32 = product %r, %v", r"expected type edge\[2\] float32, got row"),
        ("%1 : dense[4, 4] float32 = total_product %e, %w", "expected edge or row values with one axis, got .*dense"),
        ("%1 : dense[4, 4] float32 = total_product %e, %f", "expected factors of one floating dtype"),
        ("%2 : dense[4, 4] float32 = total_product %e, %e\n%1 : dense[4, 4] float32 = neg %2", "a total is complete only"),
        # numbers of inputs
        ("%1 : edge[4] float32 = add %e", "expected 2 inputs, got 1"),
        ("%1 : edge[4] float32 = neg %e, %e", "expected 1 inputs, got 2"),
        # loads
        ("%1 : edge[4] float32 = load_edge #10", "expected an input from 0 to 9, got slot 10"),
        ("%1 : edge[4] float32 = load_edge w", "expected an input with access 'edge', got w with 'dense'"),
        ("%1 : edge[4, 2] float32 = load_at x at(dst)", "expected index map 0 of input x, got 1"),
        ("%1 : edge[5] float32 = load_edge e", r"expected type edge\[4\] float32, got edge\[5\] float32"),
        # outputs
        ("%1 : dense[4] float32 = neg %w", "expected an edge value, a row value or a total, got dense.* of Pointwise"),
    ],
)
def test_broken_value(line: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        verify(program_with(line))


def test_message_shows_the_value() -> None:
    with pytest.raises(ProgramError, match=r"case: %2 : edge\[4\] float32 = add %0, %1\n  expected inputs of one"):
        verify(program_with("%1 : edge[4] float32 = add %e, %f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "program p unordered maps()\ninput r : row[] float32\n%0 : row[] float32 = load_row r\noutput y = %0",
            "input r: expected an ordered program for access 'row'",
        ),
        (
            "program p unordered maps()\n%0 : row[] float32 = row_length\noutput y = %0",
            "expected an ordered program for a row value",
        ),
        (
            "program p ordered maps(a, a)\n%0 : row[] float32 = row_length\noutput y = %0",
            "expected distinct names of index maps, got 'a' twice",
        ),
        (
            "program p ordered maps()\ninput y : row[] float32\n%0 : row[] float32 = load_row y\noutput y = %0",
            "expected distinct names of inputs and outputs, got 'y' twice",
        ),
        (
            "program p ordered maps()\ninput r : node[] float32\n%0 : row[] float32 = row_length\noutput y = %0",
            "expected access edge, row, at, dense, got 'node'",
        ),
        (
            "program p ordered maps()\ninput r : at(#0)[] float32\n%0 : row[] float32 = row_length\noutput y = %0",
            "input r: expected an index map from 0 to -1, got 0",
        ),
        (
            "program p ordered maps(m)\ninput r : at[] float32\n%0 : row[] float32 = row_length\noutput y = %0",
            "input r: expected an index map from 0 to 0, got None",
        ),
        (
            "program p ordered maps(m)\ninput r : row(m)[] float32\n%0 : row[] float32 = row_length\noutput y = %0",
            "input r: expected no index map for access 'row', got 0",
        ),
        ("program p ordered maps()", "expected at least one output, got none"),
    ],
)
def test_broken_program(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        verify(parse(text))


def test_unknown_function_is_named() -> None:
    with pytest.raises(ProgramError, match="expected a function of POINTWISE, got 'cosh'"):
        infer_type(ops.Pointwise("cosh"), [Type(Space.EDGE, (), torch.float32)])


def test_free_part_of_a_type_has_to_be_given() -> None:
    with pytest.raises(ProgramError, match="expected a dtype: the inputs don't fix it"):
        infer_type(ops.Cast(), [Type(Space.EDGE, (), torch.float32)])
    with pytest.raises(ProgramError, match="expected a shape: the inputs don't fix it"):
        infer_type(ops.Reshape(), [Type(Space.EDGE, (), torch.float32)])
