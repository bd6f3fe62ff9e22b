"""What `plait.explain` counts, against numbers worked out by hand.

Legend: N nodes, E edges, F and C features.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import GATConv, GCNConv

import plait
from plait.capture.record import Record
from plait.ir import ops
from plait.ir.program import Builder, Input, Output, Program, Space, Type
from plait.tools import explain as explain_module
from plait.tools.explain_count import Recorder
from plait.tools.explain_programs import launch_work
from plait.tools.explain_text import compared
from plait.tools.explain_work import Run, Sizes, Step, Tally

N, E, F, C = 7, 23, 3, 5
FLOAT, INT32, INT64 = 4, 4, 8


def small_graph(*, requires_grad: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(N, (2, E), generator=generator)
    edge_index[1] = (edge_index[0] + 1) % N  # no self-loops
    return torch.randn(N, F, generator=generator).requires_grad_(requires_grad), edge_index


def sum_of_neighbours(x: Tensor, edge_index: Tensor) -> Tensor:
    src, dst = edge_index
    return torch.zeros_like(x).index_add(0, dst, x.index_select(0, src))


class EdgeScore(nn.Module):
    """A score of both ends, edge by edge, and its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.att = nn.Parameter(torch.ones(2 * F, 1))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        score = torch.cat([x[dst], x[src]], -1) @ self.att
        return x.new_zeros(N, 1).index_add(0, dst, score)


def tallies(explanation: plait.Explanation) -> tuple[Tally, Tally]:
    assert explanation.before is not None
    assert explanation.after is not None
    return explanation.before.tally, explanation.after.tally


def steps_of(run: Run | None) -> dict[str, Step]:
    assert run is not None
    return {step.name: step for step in run.steps}


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_sum_of_neighbours() -> None:
    found = plait.explain(sum_of_neighbours, *small_graph())
    before, after = steps_of(found.before), steps_of(found.after)

    gathered, nodes, index = E * F * FLOAT, N * F * FLOAT, E * INT64
    assert {name: (step.rows, step.read_bytes, step.written_bytes) for name, step in before.items()} == {
        "zeros_like": ("nodes", 0, nodes),
        "index_select": ("edges", gathered + index, gathered),
        "index_add": ("edges", nodes + index + gathered, nodes),
    }
    assert [(step.name, step.read_bytes, step.written_bytes) for step in after.values()] == [
        ("inference_0", gathered + (N + 1) * INT64 + E * INT32, nodes)
    ]
    old, new = tallies(found)
    assert (old.edge_flops, new.edge_flops) == (E * F, E * F)  # one addition for every entry
    assert (old.edge_operators, old.node_operators, old.kernels) == (2, 1, 3)
    assert (new.edge_operators, new.node_operators, new.kernels, new.programs, new.fused_operators) == (1, 0, 1, 1, 2)


def test_linear_layer() -> None:
    found = plait.explain(nn.Linear(F, C), torch.ones(N, F))
    before, after = tallies(found)

    assert found.before is not None
    forward = next(step for step in found.before.steps if step.direction == "forward")
    assert forward.read_bytes == (N * F + F * C + C) * FLOAT
    assert forward.written_bytes == N * C * FLOAT
    assert before.node_product_flops == after.node_product_flops == 2 * (2 * N * F * C)  # forward, and the weight's gradient
    assert before.edge_operators == before.kept_bytes == after.kept_bytes == 0  # it saves the input and the weight only


def test_memory_that_is_saved_twice_counts_once() -> None:
    model = nn.Sequential(nn.Linear(F, C), nn.ReLU(), nn.Linear(C, C))
    before, _ = tallies(plait.explain(model, torch.ones(N, F)))

    assert before.kept_bytes == N * C * FLOAT  # the ReLU's result: for its own gradient, and for the weight's behind it


def test_products_on_edges_are_counted_and_seen_to_go() -> None:
    before, after = tallies(plait.explain(EdgeScore(), *small_graph(requires_grad=True)))

    assert before.edge_product_flops == 3 * (2 * E * 2 * F)  # forward, gradient of the score's input, gradient of att
    assert after.edge_product_flops == 0
    assert after.node_product_flops > 0


def test_kept_bytes_of_gat_are_exact() -> None:
    heads = 2
    found = plait.explain(GATConv(F, C, heads=heads, add_self_loops=False), *small_graph())
    _, after = tallies(found)

    # projected rows; the score of either end; maximum and sum of the softmax
    assert after.kept_bytes == N * heads * C * FLOAT + 4 * N * heads * FLOAT
    assert after.kept_bytes == found.captures[0].cached_bytes


def test_eager_keeps_edge_tensors_of_gat() -> None:
    found = plait.explain(GATConv(F, C, add_self_loops=False, bias=False), *small_graph())

    assert found.before is not None
    kept = [flow for flow in found.before.flows if flow.kept and flow.rows == "edges"]
    assert any(flow.shape == (E, 1, C) for flow in kept)  # the gathered rows, for the gradient of the attention


def test_products_are_as_many_as_torch_counts() -> None:
    model, inputs = GCNConv(F, C), small_graph(requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(*inputs).sum().backward()
    before, _ = tallies(plait.explain(model, *inputs))

    assert before.edge_product_flops + before.node_product_flops == counter.get_total_flops()


def test_bytes_of_executed_programs_are_those_of_the_report() -> None:
    found = plait.explain(GATConv(F, C, heads=2), *small_graph())
    executed = {name: step for name, step in steps_of(found.after).items() if step.kind == "program"}
    reported = {program.name: program for part in found.captures[0].directions for program in part.programs}

    assert executed.keys() == reported.keys()
    assert {name: (step.read_bytes, step.written_bytes) for name, step in executed.items()} == {
        name: (program.read_bytes, program.written_bytes) for name, program in reported.items()
    }


# --- rules of the count ----------------------------------------------------------------------------------------------


def recorded(run: object, **held: Tensor) -> Run:
    recorder = Recorder(held)
    with recorder:
        run()  # type: ignore[operator]
    return recorder.run(recorder.sizes())


def test_views_and_fresh_memory_are_free() -> None:
    x = torch.ones(4, 6)

    assert recorded(lambda: torch.empty_like(x.t().reshape(6, 4)[1:].unsqueeze(0))).steps == ()


def test_an_expanded_axis_is_read_once() -> None:
    (step,) = recorded(lambda: torch.ones(5, 1, dtype=torch.float64).expand(5, 8).clone()).steps[1:]

    assert (step.read_bytes, step.written_bytes) == (5 * 8, 5 * 8 * 8)


def test_writing_does_not_read_what_was_there() -> None:
    x = torch.ones(10)
    steps = recorded(lambda: (x.zero_(), x.copy_(torch.arange(10.0)), x.add_(1.0))).steps

    assert [(step.name, step.read_bytes) for step in steps] == [("zero", 0), ("arange", 0), ("copy", 40), ("add", 40)]


def test_a_result_written_into_given_memory_does_not_read_it() -> None:
    a, out = torch.ones(4, 4), torch.empty(4, 4)
    (step,) = recorded(lambda: torch.mm(a, a, out=out)).steps

    assert (step.read_bytes, step.written_bytes) == (2 * 64, 64)


def test_integers_are_no_arithmetic() -> None:
    (step,) = recorded(lambda: torch.arange(5) + 1).steps[1:]

    assert step.edge_flops == step.node_flops == 0


def test_memory_used_again_is_another_tensor() -> None:
    recorder = Recorder()
    x = torch.ones(8)
    with recorder:
        x.mul_(2.0)
    recorder.hold({"gradient": x})
    with recorder:
        x.add(1.0)
    run = recorder.run(Sizes())

    assert [run.flows[number].made_by for number in run.steps[1].reads] == [None]


def test_rows_by_the_maps_that_were_met() -> None:
    x, index, edges = torch.ones(N, F), torch.zeros(E, dtype=torch.int64), torch.ones(E, F)
    run = recorded(lambda: (x[index], edges * 2, x * 2, torch.ones(F) * 2))

    assert [step.rows for step in run.steps] == ["edges", "edges", "nodes", "other", "other"]


def test_nodes_that_are_entries_of_a_batch_vector_stay_nodes() -> None:
    x, index, batch = torch.ones(N, F), torch.zeros(E, dtype=torch.int64), torch.zeros(N, dtype=torch.int64)
    run = recorded(lambda: (x[index], torch.zeros(2, F).index_add_(0, batch, x), x * 2))

    assert run.steps[-1].rows == "nodes"


def test_a_product_written_out_in_a_program_counts_as_one() -> None:
    """Every edge's row times a weight, summed: what a kernel would do if a product on edges were fused as it is."""
    builder = Builder()
    rows = builder.node(ops.LoadAt(0, 0), (), Type(Space.EDGE, (F,), torch.float32))
    weight = builder.node(ops.LoadDense(1), (), Type(Space.DENSE, (F,), torch.float32))
    scaled = builder.node(ops.Pointwise("mul"), (rows, weight), Type(Space.EDGE, (F,), torch.float32))
    score = builder.node(ops.InnerReduce(ops.Reduce.SUM, (0,)), (scaled,), Type(Space.EDGE, (), torch.float32))
    total = builder.node(ops.SegmentReduce(ops.Reduce.SUM, 0.0, False), (score,), Type(Space.ROW, (), torch.float32))
    inputs = (Input("x", (F,), torch.float32, "at", 0), Input("w", (F,), torch.float32, "dense"))
    step = launch_work(Program("scores", True, ("src",), inputs, (Output("y", total),)), (E, N, (N,)), Sizes())

    assert (step.edge_product_flops, step.edge_flops) == (2 * E * F, E)
    assert step.read_bytes == E * F * FLOAT + F * FLOAT + E * INT32 + (N + 1) * INT64


# --- what surrounds the count ----------------------------------------------------------------------------------------


def test_counting_leaves_the_kernels_in_their_place() -> None:
    model, inputs = GATConv(F, C), small_graph()
    expected = model(*inputs)
    found = plait.explain(model, *inputs, measure=True)

    from plait.capture.record import RECORDS
    from plait.codegen.kernel import Kernel

    launches = [launch for parts in RECORDS[-1].launches.values() for launch in parts]
    assert launches
    assert all(isinstance(launch.kernel, Kernel) for launch in launches)
    assert all(program.measured_s for part in found.captures[0].directions for program in part.programs)
    assert all(found.step_s)
    torch.testing.assert_close(model(*inputs), expected)


def test_without_a_compiler_programs_are_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.capture import assemble
    from plait.errors import CompilerError

    def no_compiler(programs: object) -> None:
        raise CompilerError("no C++ compiler was found")

    inputs = small_graph()
    compiled = tallies(plait.explain(sum_of_neighbours, *inputs))
    monkeypatch.setattr(assemble, "compile_programs", no_compiler)

    assert tallies(plait.explain(sum_of_neighbours, *inputs)) == compiled


def test_eager_is_left_out_on_request() -> None:
    found = plait.explain(sum_of_neighbours, *small_graph(), eager=False)

    assert found.before is None
    assert found.after is not None
    assert found.uncounted == ()
    assert [line.before for line in compared(found)] == ["-"] * len(compared(found))


def test_eager_is_left_out_where_its_memory_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "_available_bytes", lambda: 100)
    found = plait.explain(GATConv(F, C), *small_graph())

    assert found.before is None
    assert "eager was not run: it may need" in found.uncounted[0]
    assert found.uncounted[0] in str(found)


def test_what_inductor_runs_is_said_to_be_in_no_count() -> None:
    found = plait.explain(sum_of_neighbours, *small_graph(), options={"rest": "inductor"})

    assert "what Inductor runs is in no count" in found.uncounted


def test_a_law_is_shown_with_the_line_of_the_model() -> None:
    record = Record()
    record.note_moved(["mm: product of edge rows moved"], {"mm": "model.py:3: return x[src] @ w"})
    record.note_moved(["mm_1: product moved"], {})

    from plait.tools.explain_capture import Seconds, describe_capture

    moved = describe_capture(record, (), Seconds({}, {})).moved
    assert moved == (
        ("mm: product of edge rows moved", "model.py:3: return x[src] @ w"),
        ("mm_1: product moved", ""),
    )


def test_the_text_begins_with_before_and_after() -> None:
    lines = str(plait.explain(sum_of_neighbours, *small_graph())).splitlines()

    assert lines[2].split() == ["one", "step", "before", "after", "less"]
    assert lines[3].split()[-3:] == ["2", "1", "2x"]
