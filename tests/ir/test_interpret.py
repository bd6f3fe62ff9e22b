"""The interpreter, against formulas written by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.utils import softmax

from plait.errors import ShapeError
from plait.ir import interpret as module
from plait.ir.interpret import EVALUATE, interpret
from plait.ir.ops import POINTWISE, Op, Uniform
from plait.ir.program import Program, Space
from plait.ir.text import parse
from tests.awkward import AWKWARD, RandomGraph, random_graph
from tests.check import assert_same_numbers
from tests.strategies import Run, graphs, ordering_for, programs, random_run, random_tensors, runs

ATTENTION = """
program attention ordered maps(src)
  input h : at(src)[2, 3] float32
  input score : edge[2] float32
  %0 : edge[2] float32 = load_edge score
  %1 : row[2] float32 = segment_reduce(reduce=max, init=0.0) %0
  %2 : edge[2] float32 = sub %0, %1
  %3 : edge[2] float32 = exp %2
  %4 : row[2] float32 = segment_reduce(reduce=sum, init=0.0) %3
  %5 : edge[2] float32 = div %3, %4
  %6 : edge[2, 1] float32 = reshape %5
  %7 : edge[2, 3] float32 = expand %6
  %8 : edge[2, 3] float32 = load_at h
  %9 : edge[2, 3] float32 = mul %7, %8
  %10 : row[2, 3] float32 = segment_reduce(reduce=sum, init=0.0) %9
  output alpha = %5
  output out = %10
"""


def run(text: str, graph: RandomGraph, *tensors: Tensor) -> list[Tensor]:
    program = parse(text)
    return interpret(program, tensors, ordering_for(program, graph))


def test_every_operator_has_a_row() -> None:
    assert set(EVALUATE) == set(Op.__args__)


@pytest.mark.parametrize("name", POINTWISE)
def test_function_is_torchs_function_of_that_name(name: str) -> None:
    assert callable(getattr(torch, name))


@pytest.mark.parametrize("graph", AWKWARD.values(), ids=AWKWARD.keys())
def test_attention_is_softmax_over_the_incoming_edges(graph: RandomGraph) -> None:
    h, score = random_tensors(parse(ATTENTION), graph, 0)

    alpha, out = run(ATTENTION, graph, h, score)

    want = softmax(score, graph.dst, num_nodes=graph.num_nodes)
    assert_same_numbers(alpha, want)
    messages = want.unsqueeze(-1) * h[graph.src]
    assert_same_numbers(out, torch.zeros(graph.num_nodes, 2, 3).index_add(0, graph.dst, messages))


def test_edges_are_read_and_written_in_the_users_order() -> None:
    graph = random_graph(6, 30, 0)
    x = torch.arange(30.0)

    (doubled,) = run(
        """
        program double ordered maps()
          input x : edge[] float32
          %0 : edge[] float32 = load_edge x
          %1 : edge[] float32 = add %0, %0
          output doubled = %1
        """,
        graph,
        x,
    )

    assert doubled.tolist() == (2 * x).tolist()


def test_row_value_is_read_by_every_edge_of_the_row() -> None:
    graph = random_graph(6, 30, 0)
    x, row = torch.randn(6, 2), torch.randn(6, 2)

    (difference,) = run(
        """
        program difference ordered maps(src)
          input x : at(src)[2] float32
          input row : row[2] float32
          %0 : edge[2] float32 = load_at x
          %1 : row[2] float32 = load_row row
          %2 : edge[2] float32 = sub %0, %1
          output difference = %2
        """,
        graph,
        x,
        row,
    )

    assert torch.equal(difference, x[graph.src] - row[graph.dst])


@pytest.mark.parametrize(
    ("reduction", "want"),
    [
        ("reduce=sum, init=0.0", [3.0, 0.0, -5.0]),
        ("reduce=sum, init=10.0", [13.0, 10.0, 5.0]),
        ("reduce=prod, init=1.0", [2.0, 1.0, -5.0]),
        ("reduce=max, init=7.0", [2.0, 7.0, -5.0]),
        ("reduce=max, init=0.0, include_init=True", [2.0, 0.0, 0.0]),
        ("reduce=min, init=0.0", [1.0, 0.0, -5.0]),
        ("reduce=min, init=0.0, include_init=True", [0.0, 0.0, -5.0]),
    ],
)
def test_row_without_entries_gives_init(reduction: str, want: list[float]) -> None:
    graph = RandomGraph(3, torch.tensor([0, 0, 0]), torch.tensor([2, 0, 0]))

    (reduced,) = run(
        f"""
        program reduction ordered maps()
          input x : edge[] float32
          %0 : edge[] float32 = load_edge x
          %1 : row[] float32 = segment_reduce({reduction}) %0
          output reduced = %1
        """,
        graph,
        torch.tensor([-5.0, 1.0, 2.0]),
    )

    assert reduced.tolist() == want


def test_nan_wins_in_max() -> None:
    graph = RandomGraph(1, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))

    (reduced,) = run(
        """
        program worst ordered maps()
          input x : edge[] float32
          %0 : edge[] float32 = load_edge x
          %1 : row[] float32 = segment_reduce(reduce=max, init=0.0) %0
          output reduced = %1
        """,
        graph,
        torch.tensor([1.0, torch.nan, 2.0]),
    )

    assert reduced.isnan().all()


def test_moves_and_inner_reductions_are_torchs() -> None:
    graph = random_graph(5, 12, 0)
    x = torch.randn(12, 3, 4)

    flipped, odd, joined, largest, product = run(
        """
        program moves ordered maps()
          input x : edge[3, 4] float32
          %0 : edge[3, 4] float32 = load_edge x
          %1 : edge[4, 3] float32 = permute(axes=[1, 0]) %0
          %2 : edge[3, 2] float32 = slice(axis=1, start=1, step=2) %0
          %3 : edge[3, 6] float32 = cat(axis=1) %2, %0
          %4 : edge[3] float32 = inner_reduce(reduce=max, axes=[1]) %0
          %5 : edge[] float32 = inner_reduce(reduce=prod, axes=[0, 1]) %0
          output flipped = %1
          output odd = %2
          output joined = %3
          output largest = %4
          output product = %5
        """,
        graph,
        x,
    )

    assert torch.equal(flipped, x.transpose(1, 2))
    assert torch.equal(odd, x[:, :, 1::2])
    assert torch.equal(joined, torch.cat([x[:, :, 1::2], x], -1))
    assert torch.equal(largest, x.amax(-1))
    assert_same_numbers(product, x.flatten(1).prod(-1))


def test_row_length_counts_entries_and_total_adds_them() -> None:
    graph = AWKWARD["repeated_edges"]

    length, total = run(
        """
        program lengths ordered maps()
          %0 : row[] float32 = row_length
          %1 : dense[] float32 = total_reduce %0
          output length = %0
          output total = %1
        """,
        graph,
    )

    assert length.tolist() == [2.0, 4.0, 0.0]
    assert total.item() == 6.0


def test_program_without_ordering_runs_in_the_users_order() -> None:
    graph = random_graph(4, 9, 0)
    x = torch.randn(4)

    (gathered, total) = run(
        """
        program natural unordered maps(src)
          input x : at(src)[] float32
          %0 : edge[] float32 = load_at x
          %1 : dense[] float32 = total_reduce %0
          output gathered = %0
          output total = %1
        """,
        graph,
        x,
    )

    assert torch.equal(gathered, x[graph.src])
    assert_same_numbers(total, x[graph.src].sum())


def test_product_reads_a_row_value_at_every_edge() -> None:
    graph = random_graph(7, 40, 0)
    x, row, weight = torch.randn(7, 3), torch.randn(7, 3), torch.randn(3, 2)
    of_edges, of_rows, total = run(
        """
        program products ordered maps(src)
          input x : at(src)[3] float32
          input row : row[3] float32
          input weight : dense[3, 2] float32
          %0 : edge[3] float32 = load_at x
          %1 : dense[3, 2] float32 = load_dense weight
          %2 : edge[2] float32 = product %0, %1
          %3 : row[3] float32 = load_row row
          %4 : edge[2] float32 = product %3, %1
          %5 : dense[3, 2] float32 = total_product %3, %2
          output of_edges = %2
          output of_rows = %4
          output total = %5
        """,
        graph,
        x,
        row,
        weight,
    )

    assert_same_numbers(of_edges, x[graph.src] @ weight)
    assert_same_numbers(of_rows, row[graph.dst] @ weight)
    assert_same_numbers(total, row[graph.dst].t() @ (x[graph.src] @ weight))


DROPOUT = """
program draw {order} maps()
  input seed : dense[] int64
  %0 : dense[] int64 = load_dense seed
  %1 : edge[3] float32 = uniform %0
  output draw = %1
"""


def test_random_draws_do_not_depend_on_the_ordering() -> None:
    graph, seed = random_graph(5, 40, 0), torch.tensor(7)

    (ordered,) = run(DROPOUT.format(order="ordered"), graph, seed)
    (natural,) = run(DROPOUT.format(order="unordered"), graph, seed)

    assert torch.equal(ordered, natural)


@given(runs(), st.randoms(use_true_random=False))
def test_another_order_of_the_edges_permutes_edge_outputs_only(case: Run, rng: Callable[..., float]) -> None:
    program, graph = case.program, case.graph
    assume(not any(isinstance(node.op, Uniform) for node in program.nodes()))
    places = list(range(graph.num_edges))
    rng.shuffle(places)  # type: ignore[attr-defined]
    order = torch.tensor(places, dtype=torch.int64)
    shuffled = RandomGraph(graph.num_nodes, graph.src[order], graph.dst[order])
    pairs = zip(case.tensors, program.inputs, strict=True)
    tensors = [tensor[order] if source.access == "edge" else tensor for tensor, source in pairs]

    got = interpret(program, tensors, ordering_for(program, shuffled))

    want = interpret(program, case.tensors, case.structure)
    for output, found, wanted in zip(program.outputs, got, want, strict=True):
        is_edge = output.value.type.space is Space.EDGE
        assert_same_numbers(found, wanted[order] if is_edge else wanted, name=output.name)


@given(programs(), graphs(), st.integers(0, 100))
def test_outputs_have_the_types_of_their_values(program: Program, graph: RandomGraph, seed: int) -> None:
    case = random_run(program, graph, seed)

    results = interpret(program, case.tensors, case.structure)

    leading = {Space.EDGE: (graph.num_edges,), Space.ROW: (graph.num_nodes,), Space.DENSE: ()}
    for output, result in zip(program.outputs, results, strict=True):
        type_ = output.value.type
        assert (tuple(result.shape), result.dtype) == (leading[type_.space] + type_.shape, type_.dtype)
        assert result.is_contiguous()
        assert result.isfinite().all()


@given(runs(dtype=torch.float32))
def test_inputs_are_left_as_they_were(case: Run) -> None:
    before = [tensor.clone() for tensor in case.tensors]

    results = interpret(case.program, case.tensors, case.structure)
    for result in results:
        result.zero_()

    assert all(torch.equal(tensor, kept) for tensor, kept in zip(case.tensors, before, strict=True))


def test_same_value_as_two_outputs_gives_two_tensors() -> None:
    graph = random_graph(3, 5, 0)
    first, second = run(
        """
        program twice ordered maps()
          input x : row[2] float32
          %0 : row[2] float32 = load_row x
          output first = %0
          output second = %0
        """,
        graph,
        torch.ones(3, 2),
    )

    first.zero_()

    assert second.sum() == 6


def test_values_are_dropped_after_their_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(f"%{i} : edge[8] float32 = neg %{i - 1}" for i in range(1, 20))
    text = (
        f"program chain ordered maps()\ninput x : edge[8] float32\n%0 : edge[8] float32 = load_edge x\n{lines}\noutput y = %19"
    )
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(evaluate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            nonlocal most
            result = evaluate(*arguments)
            alive.append(weakref.ref(result))
            most = max(most, sum(reference() is not None for reference in alive))
            return result

        return call

    for op_type, evaluate in EVALUATE.items():
        monkeypatch.setitem(module.EVALUATE, op_type, watched(evaluate))
    run(text, random_graph(4, 10, 0), torch.ones(10, 8))

    assert most == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_run(dtype: torch.dtype) -> None:
    graph = random_graph(5, 30, 0)
    text = ATTENTION.replace("float32", str(dtype).removeprefix("torch."))
    h, score = random_tensors(parse(text), graph, 0)

    alpha, _ = run(text, graph, h, score)

    want = softmax(score.double(), graph.dst, num_nodes=5)
    assert_same_numbers(alpha, want.to(dtype))


def test_missing_tensor_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"attention: expected 2 tensors \(h, score\), got 1"):
        run(ATTENTION, random_graph(3, 4, 0), torch.zeros(3, 2, 3))


def test_missing_index_map_is_an_error() -> None:
    program = parse(ATTENTION)
    other = parse(DROPOUT.format(order="ordered"))
    with pytest.raises(ShapeError, match=r"attention: expected 1 index maps \(src\), got 0"):
        interpret(program, [torch.zeros(3, 2, 3), torch.zeros(4, 2)], ordering_for(other, random_graph(3, 4, 0)))


def test_ordered_program_without_indptr_is_an_error() -> None:
    program = parse(DROPOUT.format(order="ordered"))
    natural = ordering_for(parse(DROPOUT.format(order="unordered")), random_graph(3, 4, 0))
    with pytest.raises(ShapeError, match="has no indptr"):
        interpret(program, [torch.tensor(1)], natural)
