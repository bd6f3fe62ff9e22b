"""Generated kernels give the interpreter's numbers. Every test shares one shared object per module, to compile once."""

from __future__ import annotations

import functools

import pytest
import torch

from plait import graph
from plait.codegen import Kernel, compile_programs
from plait.codegen.target import Target
from plait.errors import ShapeError, UnsupportedError
from plait.ir.interpret import interpret
from plait.ir.ops import POINTWISE, Reduce
from plait.ir.program import Program
from plait.segment import counter_uniform
from tests.codegen import layers
from tests.codegen.build import Draft, Value
from tests.codegen.cases import CASES, LARGE, Case, assert_matches, inputs

F32, F64, BF16, I64, I32, BOOL = torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool
EXACT = {"maximum", "minimum", "where", "neg", "abs", "floor", "ceil", "round", "trunc", "sign"}
WIDTHS = (1, 3, 7, 33, 100, 500)
HEADS = (1, 3, 8)


def reductions(width: int, dtype: torch.dtype = torch.float32) -> Program:
    d = Draft(f"reductions_{width}_{dtype}".replace("torch.", ""))
    x, row = d.load("at", width, dtype=dtype), d.load("row", width, dtype=dtype)
    value = x + row
    for reduce in Reduce:
        d.out(value.segment(reduce, 1.0 if reduce is Reduce.PROD else 0.0))
    d.out(value.segment(Reduce.MAX, 0.5, include_init=True))
    d.out(value.segment(Reduce.SUM, 2.0))
    d.out(value.segment(Reduce.MIN, 3.0))
    d.out(value.total())
    d.out((row * row).total())
    d.out(value)
    return d.program()


def pointwise(dtype: torch.dtype, width: int) -> Program:
    """Every function, on the same three inputs and their signs."""
    d = Draft(f"pointwise_{width}_{dtype}".replace("torch.", ""), ordered=False)
    values = [d.load("edge", width, dtype=dtype) for _ in range(3)]
    signs = [value > 0.0 for value in values]
    for fn, function in POINTWISE.items():
        arguments = signs if fn.startswith("logical") else [signs[0], *values[1:]] if fn == "where" else values
        d.out(d.call(fn, *arguments[: function.arity]), fn)
    return d.program()


def views(width: int) -> Program:
    d = Draft(f"views_{width}")
    x, y = d.load("at", 4, width), d.load("row", width, 4)
    a = x.permute(1, 0) * y
    b = d.cat(0, a, a.slice(0, 0, 1))
    c = b.view((width + 1) * 4).slice(0, 1, (width + 1) * 2, 2)
    d.out(c.segment())
    d.out(d.cat(1, x, y.permute(1, 0)).inner(0).segment(Reduce.MAX))
    d.out(b.inner(1, reduce=Reduce.MAX))
    d.out(x.inner(0, 1).segment())
    d.out(y.inner(1))
    d.out(y.permute(1, 0))
    return d.program()


def types() -> Program:
    d = Draft("types")
    kind, flag = d.load("edge", dtype=I64), d.load("edge", 5, dtype=BOOL)
    x, weight = d.load("at", 5), d.load("dense", 4, dtype=F64)
    selected = kind.eq(2).view(1).expand(5)
    d.out(d.call("logical_and", flag, selected).where(x, 0.0).segment())
    d.out(flag.to(I64).segment())
    d.out(kind.to(I32).segment(Reduce.MAX))
    d.out((x.to(F64) * weight.slice(0, 1, 1)).segment())
    d.out(d.call("logical_not", flag))
    d.out(kind * 3)
    d.out(x.to(F64).exp().inner(0).segment())
    return d.program()


def short(width: int) -> Program:
    """bfloat16 in tensors of every kind, float32 in between."""
    d = Draft(f"short_{width}")
    at, edge, row, dense = (d.load(kind, width, dtype=BF16).to(F32) for kind in ("at", "edge", "row", "dense"))
    value = (at * dense + row).to(BF16)
    d.out(value)
    d.out(value.to(F32).segment().to(BF16))
    d.out((at * edge).segment())
    d.out(value.to(F32).segment(Reduce.MAX).to(BF16))
    d.out((at * row).inner(0).to(BF16))
    d.out((row * 3.0).to(BF16).to(F32).total())
    d.out(d.length(I64).to(BF16))
    d.out(at.to(F64).to(BF16))
    return d.program()


def rounding(width: int) -> Program:
    d = Draft(f"rounding_{width}", ordered=False, maps=())
    d.out(d.load("edge", width).to(BF16))
    return d.program()


def matvec(size: int) -> Program:
    d = Draft(f"matvec_{size}")
    x, weight = d.load("at", size), d.load("edge", size, size)
    d.out((x.view(size, 1) * weight).inner(0).segment())
    d.out((x.view(1, size) * weight).inner(1).segment())
    return d.program()


def empty() -> Program:
    d = Draft("empty_axes")
    x = d.load("at", 3, 0)
    d.out(x.segment())
    d.out(x.inner(1).segment())
    d.out((d.load("at", 3) + x.inner(1)).segment())
    return d.program()


def unordered(width: int) -> Program:
    d = Draft(f"unordered_{width}", ordered=False, maps=("src", "dst"))
    x, y = d.load("at", width), d.load("at", width, map=1)
    score = (x * y).inner(0)
    d.out(d.call("sigmoid", score), "probability")
    d.out(score.total(), "total")
    d.out((x * score.view(1)).total(), "weighted")
    d.out(x - y, "difference")
    return d.program()


def two_forms() -> Program:
    """The same inner reductions in narrow form (their inputs are small) and, as elements of something large, in wide form."""
    d = Draft("two_forms")
    for size in (2, 3, 5, 7, 8):
        x, y = d.load("at", size), d.load("row", size)
        d.out((x * y).inner(0))
        twice = d.cat(0, *[(x * y).view(1, size)] * 9)
        d.out(twice.inner(1))
    return d.program()


def functions(fn: str) -> Program:
    """A function in narrow and in wide form."""
    d = Draft(f"forms_of_{fn}")
    x = d.load("edge", 1)
    d.out(d.call(fn, x))
    d.out(d.call(fn, x.expand(33)))
    return d.program()


def constant_outputs() -> Program:
    d = Draft("constant_outputs")
    row, dense = d.load("row", 3), d.load("dense", 2, 2)
    d.out(row)
    d.out(d.length(I64))
    d.out(row * (dense * dense).inner(0, 1))
    d.out(d.load("at", 20))
    d.out((row.exp() / 2.0).total())
    return d.program()


FORMS = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "erf")
GAT = [f(h, c) for h in HEADS for c in WIDTHS for f in (layers.gat_forward,)]
LAYERS = [
    *(f(h, c) for h, c in ((1, 1), (3, 7), (4, 32), (8, 100)) for f in (layers.gat_backward_dst, layers.gat_backward_src)),
    *(layers.gatv2_forward(h, c) for h, c in ((1, 1), (3, 7), (4, 32), (8, 100), (1, 500), (16, 16))),
    *(f(w) for w in (5, 33, 500) for f in (layers.edge_conv_forward, layers.edge_conv_counts, layers.edge_conv_backward_src)),
    *(layers.edge_conv_backward_dst(w) for w in (7, 128)),
    *(layers.gmm_forward(3, w) for w in (1, 7, 128)),
    *(layers.pna(w) for w in (3, 75, 300)),
]
OTHERS = [
    *(layers.neighbour_sum(w) for w in (*WIDTHS, 16, 1000)),
    *(reductions(w, dtype) for w in (1, 7, 33, 300) for dtype in (torch.float32, F64)),
    reductions(5, I64),
    reductions(5, I32),
    *(views(w) for w in (1, 3, 40)),
    *(matvec(n) for n in (2, 9, 40)),
    *(unordered(w) for w in (1, 3, 64)),
    *(layers.edge_dropout(w) for w in (1, 5, 33, 500)),
    *(short(w) for w in (1, 3, 33, 300)),
    types(),
    empty(),
    constant_outputs(),
]
ROUNDINGS = [rounding(1), rounding(37)]
BITS = [two_forms(), *(functions(fn) for fn in FORMS)]
POINTS = [pointwise(torch.float32, 17), pointwise(F64, 5)]
ALL = [*GAT, *LAYERS, *OTHERS, *BITS, *POINTS, *ROUNDINGS]
SHORT = [
    layers.gat_forward(3, 7),
    layers.gatv2_forward(4, 32),
    reductions(33),
    layers.edge_dropout(5),
    views(3),
    two_forms(),
    short(33),
]


@functools.cache
def kernels() -> dict[str, Kernel]:
    parts = [compile_programs(part) for part in (ALL[::2], ALL[1::2])]  # two compilers at a time
    return {kernel.program.name: kernel for part in parts for kernel in part}


@functools.cache
def short_kernels(length: int) -> list[Kernel]:
    return compile_programs(SHORT, target=Target(length, 16))


def names(programs: list[Program]) -> list[str]:
    return [program.name for program in programs]


@pytest.mark.parametrize("name", names([*GAT, *LAYERS, *OTHERS, *BITS]))
def test_kernel_gives_the_interpreters_numbers(name: str) -> None:
    for case in CASES:
        assert_matches(kernels()[name], case)


@pytest.mark.parametrize("name", names(POINTS))
def test_pointwise_functions_give_torchs_numbers(name: str) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-8, -1e-8, 88.5, 89.5, -87.0, -110.0, 1e30, 3e-39]
    special += [float("inf"), float("-inf"), float("nan"), 0.3, -0.3, 0.7, 9.0, -9.0, 17.0, 1e-3]
    kernel, count = kernels()[name], len(special) ** 2
    case = Case("special", torch.zeros(count, dtype=I64), torch.zeros(count, dtype=I64), 1, 1)
    (item, *_), values = kernel.program.inputs, torch.tensor(special)
    grid = [values.repeat_interleave(len(special)), values.repeat(len(special)), values.flip(0).repeat(len(special))]
    tensors = [column.to(item.dtype).view(-1, 1).expand(-1, *item.shape).contiguous() for column in grid]
    ordering = case.ordering(kernel.program)
    got, expected = kernel(tensors, ordering, 0, count), interpret(kernel.program, tensors, ordering)

    for output, a, b in zip(kernel.program.outputs, got, expected, strict=True):
        exact = a.dtype is BOOL or output.name in EXACT
        rtol = 0.0 if exact else 1e-14 if a.dtype is F64 else 4e-7
        atol = 0.0 if exact else 1.2e-38  # results below the normal range may be 0
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{output.name}: {text}")  # noqa: B023


@pytest.mark.parametrize("name", names(ROUNDINGS))
def test_bfloat16_is_rounded_as_torch_rounds(name: str) -> None:
    """Halfway cases and their neighbours, infinities, numbers below the normal range, what becomes infinite, NaN."""
    upper = torch.tensor([0x0000, 0x0001, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7FC0, 0x4049]) << 16
    bits = (upper[:, None] + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).flatten()
    bits = torch.cat([bits, bits | 1 << 31, torch.randint(1 << 32, (1000,))])
    kernel, count = kernels()[name], len(bits)
    x = bits.to(I32).view(F32).view(-1, 1).expand(-1, *kernel.program.inputs[0].shape).contiguous()
    (got,) = kernel([x], graph.natural(count, []), 0, count)

    want = x.to(BF16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()])


def test_arithmetic_in_bfloat16_is_refused() -> None:
    d = Draft("sum_of_short", ordered=False, maps=())
    x = d.load("edge", 3, dtype=BF16)
    d.out(x + x)
    with pytest.raises(
        UnsupportedError, match=r"sum_of_short: .*add.* in bfloat16 is not compiled: kernels compute in float32"
    ):
        compile_programs([d.program()])


@pytest.mark.parametrize("length", [16, 32])
def test_shorter_vectors_give_the_same_numbers(length: int) -> None:
    for kernel in short_kernels(length):
        for case in CASES:
            assert_matches(kernel, case)


@pytest.mark.parametrize(
    "program",
    [layers.gat_forward(3, 7), layers.gat_backward_dst(8, 100), reductions(33), reductions(1)],
    ids=lambda program: program.name,
)
def test_number_of_threads_does_not_change_a_bit(program: Program) -> None:
    kernel = kernels()[program.name]
    tensors, ordering = inputs(program, LARGE), LARGE.ordering(program)
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append(kernel(tensors, ordering, LARGE.num_rows, LARGE.num_edges))
    finally:
        torch.set_num_threads(before)

    assert_matches(kernel, LARGE)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_inner_reduction_has_the_same_bits_in_narrow_and_wide_form() -> None:
    case = CASES[-2]
    kernel = kernels()["two_forms"]
    outputs = kernel(inputs(kernel.program, case), case.ordering(kernel.program), case.num_rows, case.num_edges)

    for narrow, wide in zip(outputs[::2], outputs[1::2], strict=True):
        assert torch.equal(narrow.view(-1, 1).expand_as(wide), wide)


@pytest.mark.parametrize("fn", FORMS)
def test_function_has_the_same_bits_in_narrow_and_wide_form(fn: str) -> None:
    count = 1001
    case = Case("line", torch.arange(count) % 7, torch.zeros(count, dtype=I64), 7, 1)
    kernel = kernels()[f"forms_of_{fn}"]
    x = torch.linspace(-20, 20, count).view(-1, 1)
    narrow, wide = kernel([x], case.ordering(kernel.program), 7, count)

    assert torch.equal(narrow.nan_to_num(7).expand(-1, 33), wide.nan_to_num(7))


@pytest.mark.parametrize("width", [1, 5, 33, 500])
def test_dropout_bits_are_the_references(width: int) -> None:
    case, kernel = CASES[-2], kernels()[f"edge_dropout_{width}"]
    x, seed = torch.ones(case.num_cols, width), torch.tensor(-(2**61) + 12345)
    named = {"x": x, "seed": seed}
    tensors = [named[item.name] for item in kernel.program.inputs]
    _, keep = kernel(tensors, case.ordering(kernel.program), case.num_rows, case.num_edges)

    drawn = counter_uniform(seed, torch.arange(case.num_edges), (width,), torch.float32)
    assert torch.equal(keep, (drawn > 0.5).float())


def test_nan_wins_in_max_and_spreads_in_sum() -> None:
    case, kernel = CASES[-2], kernels()["reductions_33_float32"]
    tensors = inputs(kernel.program, case)
    tensors[0][3, 5] = float("nan")
    tensors[0][4, 6] = float("inf")

    assert_matches(kernel, case, tensors=tensors)


def test_ties_share_the_gradient() -> None:
    case, kernel = CASES[3], kernels()["edge_conv_backward_dst_7"]
    b, a, grad = torch.ones(4, 7), torch.ones(4, 7), torch.ones(4, 7)
    named = {"b": b, "a": a, "top": torch.full((4, 7), 2.0), "grad": grad}
    (got,) = kernel([named[item.name] for item in kernel.program.inputs], case.ordering(kernel.program), 4, 5)

    assert got[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_64_bit_indices_give_the_same_bits() -> None:
    case, (kernel,) = CASES[-1], compile_programs([layers.gat_forward(3, 7)])
    program = kernel.program
    narrow = case.ordering(program)
    wide = graph.Ordering(
        narrow.num_edges,
        narrow.num_rows,
        narrow.indptr,
        None,
        tuple(index.long() for index in narrow.indices),
        narrow.is_identity,
    )
    tensors = inputs(program, case)
    first = kernel(tensors, narrow, case.num_rows, case.num_edges)
    second = kernel(tensors, wide, case.num_rows, case.num_edges)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tensors_that_are_not_contiguous_are_read_right() -> None:
    case, kernel = CASES[-2], kernels()["neighbour_sum_33"]

    assert_matches(kernel, case, tensors=[torch.randn(33, case.num_cols).t()])


def test_wrong_shape_is_named() -> None:
    case, kernel = CASES[-2], kernels()["neighbour_sum_33"]
    ordering = case.ordering(kernel.program)

    with pytest.raises(ShapeError, match=r"input x expected \[any, 33\] torch.float32, got \[23, 32\]"):
        kernel([torch.randn(23, 32)], ordering, case.num_rows, case.num_edges)


def test_what_is_not_compiled_is_said() -> None:
    d = Draft("half")
    d.out(d.load("at", 4, dtype=torch.float16).segment())

    with pytest.raises(UnsupportedError, match="float16 values are not compiled"):
        compile_programs([d.program()])


def test_long_chain_is_compiled_or_refused() -> None:
    d = Draft("chain")
    value: Value = d.load("at", 4)
    for _ in range(3000):
        value = value + 1.0
    d.out(value.segment())

    with pytest.raises(UnsupportedError, match="too long"):
        compile_programs([d.program()])
