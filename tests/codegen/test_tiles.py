"""Programs with products give the interpreter's numbers, in every width, and the same bits for any number of threads."""

from __future__ import annotations

import functools

import pytest
import torch

from plait.codegen import Kernel, compile_programs
from plait.codegen.target import Target
from plait.ir.ops import Reduce
from plait.ir.program import Program
from tests.codegen.build import Draft, Value
from tests.codegen.cases import CASES, LARGE, assert_matches, inputs

F32, F64 = torch.float32, torch.float64
WIDTHS = (1, 3, 7, 33, 100, 128)


def one_product(width: int, out: int, dtype: torch.dtype = F32) -> Program:
    d = Draft(f"one_product_{width}_{out}_{dtype}".replace("torch.", ""))
    x, weight = d.load("at", width, dtype=dtype), d.load("dense", width, out, dtype=dtype)
    d.out(x.product(weight).segment())
    return d.program()


def mlp(width: int, hidden: int, out: int, reduce: Reduce = Reduce.MAX) -> Program:
    """Two layers on what both ends and the edge hold."""
    d = Draft(f"mlp_{width}_{hidden}_{out}_{reduce.value}")
    x, row, attr = d.load("at", width), d.load("row", width), d.load("edge", 2)
    first, second = d.load("dense", 2 * width + 2, hidden), d.load("dense", hidden, out)
    bias, other = d.load("dense", hidden), d.load("dense", out)
    z = d.cat(0, row, x - row, attr).product(first) + bias
    d.out((silu(d, z).product(second) + other).segment(reduce))
    return d.program()


def silu(d: Draft, z: Value) -> Value:
    return z * d.call("sigmoid", z)


def mlp_backward(width: int, hidden: int, out: int, dtype: torch.dtype = F32) -> Program:
    """What one end's rows get, and the weights: by tile, with the values computed again."""
    d = Draft(f"mlp_backward_{width}_{hidden}_{out}_{dtype}".replace("torch.", ""))
    x, grad, row = (d.load(kind, size, dtype=dtype) for kind, size in (("at", width), ("at", out), ("row", width)))
    first, second = d.load("dense", width, hidden, dtype=dtype), d.load("dense", hidden, out, dtype=dtype)
    message = x * row
    z = message.product(first)
    s = d.call("sigmoid", z)
    h = z * s
    grad_h = grad.product(second.permute(1, 0))
    grad_z = grad_h * s * (z * (d.const(1.0, dtype) - s) + 1.0)
    grad_message = grad_z.product(first.permute(1, 0))
    d.out((grad_message * x).segment())
    d.out(h.total_product(grad))
    d.out(message.total_product(grad_z))
    d.out(grad_z.total())
    d.out(grad.total())
    return d.program()


def softmax(heads: int, channels: int) -> Program:
    """A product below three chained reductions, kept for the later passes."""
    d = Draft(f"softmax_{heads}x{channels}")
    x, row = d.load("at", heads, channels), d.load("row", heads, channels)
    attr, weight = d.load("edge", 3), d.load("dense", 3, heads * channels)
    key = x + attr.product(weight).view(heads, channels)
    score = (key * row).inner(1)
    e = (score - score.max()).exp()
    alpha = e / (e.segment() + 1e-16)
    d.out((alpha.view(heads, 1) * key).segment())
    d.out((key * key).view(heads * channels).total_product(alpha))
    d.out((row.inner(1) * d.length().view(1).expand(heads)).total())
    return d.program()


def awkward_parts() -> Program:
    """Row operands, views of weights, several reductions of one value, outputs per edge, draws."""
    d = Draft("awkward_parts")
    x, row, seed = d.load("at", 5), d.load("row", 5), d.load("dense", dtype=torch.int64, name="seed")
    weight = d.load("dense", 9, 6)
    part = (weight.slice(0, 2, 5) * 2.0).permute(1, 0)
    y = (x + row.product(part.permute(1, 0)).slice(0, 0, 5)).product(weight.slice(0, 4, 5))
    kept = (d.uniform(seed, 6) > 0.5).where(y, 0.0)
    for reduce in Reduce:
        d.out(kept.segment(reduce, 1.0 if reduce is Reduce.PROD else 0.0))
    d.out(y.segment(Reduce.MIN, 3.0, include_init=True))
    d.out(kept)
    d.out(y > 0.0)
    d.out(row.total_product(y))
    d.out(y.segment() / d.length().view(1).expand(6) + 1.0)
    d.out(y.segment().total())
    return d.program()


def unordered(width: int) -> Program:
    d = Draft(f"decoder_{width}", ordered=False, maps=("src", "dst"))
    x, y = d.load("at", width), d.load("at", width, map=1)
    z = (x * y).product(d.load("dense", width, 3))
    d.out(d.call("sigmoid", z))
    d.out(x.total_product(z))
    return d.program()


def empty() -> Program:
    d = Draft("empty_products")
    x, y = d.load("at", 0), d.load("at", 4)
    d.out(x.product(d.load("dense", 0, 4)).segment())
    d.out(y.product(d.load("dense", 4, 0)).segment())
    d.out(y.total_product(x))
    return d.program()


PROGRAMS = [
    *(one_product(w, 20) for w in WIDTHS),
    *(one_product(20, w) for w in WIDTHS),
    one_product(500, 500),
    one_product(33, 7, F64),
    *(mlp(w, 24, 16) for w in (1, 7, 33)),
    *(mlp(5, w, w, Reduce.SUM) for w in (1, 33, 100)),
    *(mlp_backward(a, b, c) for a, b, c in ((1, 1, 1), (3, 7, 5), (33, 20, 64), (100, 128, 3))),
    mlp_backward(9, 33, 7, F64),
    softmax(1, 1),
    softmax(3, 7),
    softmax(4, 32),
    awkward_parts(),
    unordered(1),
    unordered(33),
    empty(),
]
SHORT = [mlp(7, 24, 16), mlp_backward(9, 33, 7, F64), softmax(3, 7), one_product(20, 100)]


@functools.cache
def kernels() -> dict[str, Kernel]:
    parts = [compile_programs(part) for part in (PROGRAMS[::2], PROGRAMS[1::2])]  # two compilers at a time
    return {kernel.program.name: kernel for part in parts for kernel in part}


@functools.cache
def short_kernels(length: int) -> list[Kernel]:
    return compile_programs(SHORT, target=Target(length, 16))


@pytest.mark.parametrize("name", [program.name for program in PROGRAMS])
def test_kernel_gives_the_interpreters_numbers(name: str) -> None:
    for case in CASES:
        assert_matches(kernels()[name], case)


@pytest.mark.parametrize("name", ["mlp_backward_33_20_64_float32", "softmax_4x32", "mlp_7_24_16_max", "awkward_parts"])
def test_many_tiles_and_chunks_give_the_interpreters_numbers(name: str) -> None:
    assert_matches(kernels()[name], LARGE)


@pytest.mark.parametrize("length", [16, 32])
def test_shorter_vectors_give_the_same_numbers(length: int) -> None:
    for kernel in short_kernels(length):
        for case in CASES:
            assert_matches(kernel, case)


@pytest.mark.parametrize("name", ["mlp_backward_33_20_64_float32", "softmax_4x32", "awkward_parts"])
def test_number_of_threads_does_not_change_a_bit(name: str) -> None:
    kernel = kernels()[name]
    tensors, ordering = inputs(kernel.program, LARGE), LARGE.ordering(kernel.program)
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append(kernel(tensors, ordering, LARGE.num_rows, LARGE.num_edges))
    finally:
        torch.set_num_threads(before)

    for other in found[1:]:
        assert all(torch.equal(a, b) or (a != a).any() for a, b in zip(found[0], other, strict=True))


def test_product_has_the_same_bits_in_every_program() -> None:
    """A backward program compares what it computes again with what the forward reduced."""
    d, e = Draft("forward"), Draft("backward", maps=("dst",))
    for draft, ends in ((d, ("at", "row")), (e, ("row", "at"))):
        x, y = (draft.load(end, 33) for end in ends)
        value = (x + y).product(draft.load("dense", 33, 50))
        if draft is e:
            (value * 2.0).segment()
        draft.out(value)
    case = CASES[-2]
    forward, backward = compile_programs([d.program(), e.program()])
    x, y, weight = inputs(forward.program, case)
    (a,) = forward([x, y, weight], case.ordering(forward.program), case.num_rows, case.num_edges)
    turned = type(case)("turned", case.cols, case.rows, case.num_cols, case.num_rows)
    (b,) = backward([x, y, weight], turned.ordering(backward.program), case.num_cols, case.num_edges)

    assert torch.equal(a, b)


def test_nan_and_infinity_go_through_a_product() -> None:
    kernel, case = kernels()["one_product_33_20_float32"], CASES[-2]
    tensors = inputs(kernel.program, case)
    tensors[0][3, 5], tensors[0][4, 6], tensors[1][7, 2] = float("nan"), float("inf"), float("-inf")

    assert_matches(kernel, case, tensors=tensors)
