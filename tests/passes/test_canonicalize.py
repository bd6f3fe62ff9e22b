"""Every spelling of a gather and of a scatter becomes one of plait's two operators: text in, text out, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.passes.canonicalize import SPELLINGS, broadcast_vector, canonicalize, materialize_fills
from plait.passes.edit import aten
from tests.passes.tracing import E, N, assert_same_law, ends, numbers, targets, text, traced

C = 3
SRC, DST = ends()
X, VALUES = numbers(N, C), numbers(E, C, seed=1)


def zeros(like: Tensor) -> Tensor:
    return torch.zeros(N, *like.shape[1:])


def spread(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand_as(like)


def rewritten(function: Callable[..., Any], *inputs: Any) -> tuple[torch.fx.GraphModule, list[str]]:
    graph_module = traced(function, *inputs)
    materialize_fills(graph_module.graph)
    reasons = [reason for _, reason in canonicalize(graph_module.graph)]
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module, reasons


# --- gathers ---------------------------------------------------------------------------------------------------------

GATHERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "x.index_select(0, idx)": (lambda x, i: x.index_select(0, i), "plait.gather(x, i)"),
    "x.index_select(-2, idx)": (lambda x, i: x.index_select(-2, i), "plait.gather(x, i)"),
    "x[idx]": (lambda x, i: x[i], "plait.gather(x, i, True)"),
    "x.gather(0, expanded)": (lambda x, i: x.gather(0, i.unsqueeze(-1).expand(-1, C)), "plait.gather(x, i)"),
    "x.gather(0, view expanded)": (lambda x, i: x.gather(0, i.view(-1, 1).expand(-1, C)), "plait.gather(x, i)"),
    "x.gather(0, repeated)": (lambda x, i: x.gather(0, i.view(-1, 1).repeat(1, C)), "plait.gather(x, i)"),
    "F.embedding": (lambda x, i: F.embedding(i, x), "plait.gather(x, i)"),
}


@pytest.mark.parametrize("spelling", GATHERS)
def test_gather_has_one_form(spelling: str) -> None:
    function, expected = GATHERS[spelling]

    graph_module, reasons = rewritten(function, X, SRC)

    assert [line for line in text(graph_module.graph).splitlines() if "plait" in line] == [f"gather = {expected}"]
    assert reasons == []
    assert_same_law(graph_module, function, (X, SRC))


def test_text_of_a_gather_with_an_expanded_index() -> None:
    function = GATHERS["x.gather(0, expanded)"][0]
    before = text(traced(function, X, SRC).graph)
    after = text(rewritten(function, X, SRC)[0].graph)

    assert before == (
        "unsqueeze = aten.unsqueeze(i, -1)\nexpand = aten.expand(unsqueeze, [-1, 3])\n"
        "gather = aten.gather(x, 0, expand)\nreturn gather"
    )
    assert after == "gather = plait.gather(x, i)\nreturn gather"


def test_negative_entries_keep_their_meaning() -> None:
    index = SRC - N

    graph_module, _ = rewritten(lambda x, i: x[i], X, index)

    assert_same_law(graph_module, lambda x, i: x[i], (X, index))


# --- scatters --------------------------------------------------------------------------------------------------------

SCATTERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "index_add": (lambda v, i: zeros(v).index_add(0, i, v), "sum, 0.0, False, False"),
    "index_add_": (lambda v, i: zeros(v).index_add_(0, i, v), "sum, 0.0, False, False"),
    "scatter_add": (lambda v, i: zeros(v).scatter_add(0, spread(i, v), v), "sum, 0.0, False, False"),
    "scatter_add_": (lambda v, i: v.new_zeros(N, C).scatter_add_(0, spread(i, v), v), "sum, 0.0, False, False"),
    "scatter_reduce sum": (lambda v, i: zeros(v).scatter_reduce(0, spread(i, v), v, "sum"), "sum, 0.0, False, False"),
    "index_put": (lambda v, i: zeros(v).index_put((i,), v, accumulate=True), "sum, 0.0, False, True"),
    "index_put_": (lambda v, i: zeros(v).index_put_((i,), v, accumulate=True), "sum, 0.0, False, True"),
    "amax": (lambda v, i: zeros(v).scatter_reduce(0, spread(i, v), v, "amax"), "max, 0.0, True"),
    "amax of entries": (
        lambda v, i: zeros(v).scatter_reduce(0, spread(i, v), v, "amax", include_self=False),
        "max, 0.0, False",
    ),
    "amin from one": (lambda v, i: torch.ones(N, C).scatter_reduce(0, spread(i, v), v, "amin"), "min, 1.0, True"),
    "amin from a number": (
        lambda v, i: torch.full((N, C), 0.5).scatter_reduce(0, spread(i, v), v, "amin", include_self=False),
        "min, 0.5, False",
    ),
    "index_reduce": (lambda v, i: zeros(v).index_reduce(0, i, v, "amax"), "max, 0.0, True"),
}


@pytest.mark.filterwarnings("ignore:index_reduce.*beta")
@pytest.mark.parametrize("spelling", SCATTERS)
def test_scatter_has_one_form(spelling: str) -> None:
    function, expected = SCATTERS[spelling]

    graph_module, reasons = rewritten(function, VALUES, DST)

    lines = [line for line in text(graph_module.graph).splitlines() if "plait" in line]
    assert lines == [f"segment_reduce = plait.segment_reduce(v, i, {N}, {expected})"]
    assert reasons == []


@pytest.mark.parametrize("spelling", [name for name in SCATTERS if name != "index_reduce"])
def test_scatter_keeps_its_numbers_and_gradients(spelling: str) -> None:
    """index_reduce is left out: eager PyTorch gives no gradient to all its ties alike."""
    function, _ = SCATTERS[spelling]
    graph_module, _ = rewritten(function, VALUES, DST)

    assert_same_law(graph_module, function, (VALUES, DST))


def test_sum_onto_what_is_not_zero_is_added() -> None:
    def onto(base: Tensor, values: Tensor, index: Tensor) -> Tensor:
        return base.index_add(0, index, values)

    graph_module, reasons = rewritten(onto, X, VALUES, DST)

    assert text(graph_module.graph) == (
        "segment_reduce = plait.segment_reduce(values, index, size, sum, 0.0, False, False)\n"
        "add = aten.add.Tensor(base, segment_reduce)\n"
        "return add"
    )
    assert reasons == []
    assert_same_law(graph_module, onto, (X, VALUES, DST))


MASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "x[mask] = number": lambda x: x.clone().index_put((x > 0,), torch.tensor(2.0)),
    "rows by a mask of rows": lambda x: x.clone().index_put((x[:, 0] > 0,), torch.tensor(2.0)),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_number_put_where_a_mask_is_set_is_a_choice(name: str) -> None:
    graph_module, reasons = rewritten(MASKED[name], X)

    assert "aten.where.self" in targets(graph_module.graph)
    assert "aten.index_put" not in targets(graph_module.graph)
    assert reasons == []
    assert_same_law(graph_module, MASKED[name], (X,))


def test_fills_are_known_in_all_their_spellings() -> None:
    for fill in (
        lambda v: torch.zeros(N, C),
        lambda v: v.new_zeros(N, C),
        lambda v: torch.full((N, C), 0.0),
        lambda v: v.new_full((N, C), 0.0),
        lambda v: torch.zeros_like(v[:N]),
    ):
        graph_module, _ = rewritten(lambda v, i, fill=fill: fill(v).index_add(0, i, v), VALUES, DST)

        assert targets(graph_module.graph) == ["plait.segment_reduce"]


# --- what stays as it is -----------------------------------------------------------------------------------------------

LEFT: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str]] = {
    "two indices": (lambda x, i: x[i, i % C], (X, SRC), "the index is not one int vector over the rows"),
    "a mask": (lambda x, i: x[x[:, 0] > 0], (X, SRC), "the index is not one int vector over the rows"),
    "several indices": (lambda x, i: x[i, i % 2], (X, SRC), "the index is not one int vector over the rows"),
    "an index per column": (
        lambda x, i: x.gather(0, torch.stack([i, i.flip(0), i], 1)),
        (X, SRC),
        "the index differs between columns",
    ),
    # torch spells it with a remainder by the number of rows, as a constant: nothing of ours could be right for other sizes
    "take_along_dim": (
        lambda x, i: torch.take_along_dim(x, i.unsqueeze(-1).expand(-1, C), 0),
        (X, SRC),
        "the index differs between columns",
    ),
    "some columns": (lambda x, i: x.gather(0, i.view(-1, 1).expand(-1, 2)), (X, SRC), "only some of the columns are read"),
    "padding": (
        lambda x, i: F.embedding(i, x, padding_idx=2),
        (X, SRC),
        "padding_idx or scale_grad_by_freq changes its gradient",
    ),
    "overwriting": (lambda v, i: zeros(v).index_put((i,), v), (VALUES, DST), "it overwrites instead of adding"),
    "broadcast values": (
        lambda v, i: zeros(v).index_put((i,), v[:1], accumulate=True),
        (VALUES, DST),
        "the values are broadcast",
    ),
    "alpha": (lambda v, i: zeros(v).index_add(0, i, v, alpha=2.0), (VALUES, DST), "alpha is not 1"),
    "rows overwritten by a mask": (
        lambda v, i: zeros(v).index_put((torch.arange(N) > 2,), v[: N - 3]),
        (VALUES, DST),
        "it overwrites instead of adding",
    ),
    "mean onto values": (
        lambda v, i: (v[:N] * 2).scatter_reduce(0, spread(i, v), v, "mean"),
        (VALUES, DST),
        "a mean onto something else than zeros",
    ),
    "product": (
        lambda v, i: zeros(v).scatter_reduce(0, spread(i, v), v, "prod"),
        (VALUES, DST),
        "scatter_reduce 'prod' with include_self=True is not fused",
    ),
    "max onto values": (
        lambda v, i: (v[:N] * 2).scatter_reduce(0, spread(i, v), v, "amax"),
        (VALUES, DST),
        "the tensor scattered onto is not a constant",
    ),
    "some of the source": (
        lambda v, i: zeros(v).scatter_add(0, i[:4].unsqueeze(-1).expand(-1, C), v),
        (VALUES, DST),
        "the index covers only a part of the source",
    ),
    "max of ints": (
        lambda v, i: torch.zeros(N, dtype=torch.int64).scatter_reduce(0, i, i * 2, "amax"),
        (VALUES, DST),
        "an integer reduction",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_a_gather_or_a_reduction_of_rows_stays_with_its_reason(name: str) -> None:
    function, inputs, reason = LEFT[name]

    graph_module, reasons = rewritten(function, *inputs)

    assert any(reason in line for line in reasons), reasons
    if name != "some of the source":  # torch itself has no gradient there
        assert_same_law(graph_module, function, inputs)


def test_reason_says_where_in_the_model() -> None:
    graph_module = traced(lambda v, i: zeros(v).index_put((i,), v), VALUES, DST)
    for node in graph_module.graph.nodes:
        node.meta["stack_trace"] = '  File "model.py", line 42, in forward\n    out[index] = values\n'

    ((name, line),) = canonicalize(graph_module.graph)

    assert name == "index_put"
    assert line == "aten.index_put.default: it overwrites instead of adding (at model.py:42: out[index] = values)"


@pytest.mark.parametrize("include_self", [True, False])
def test_mean_is_a_sum_over_a_count(include_self: bool) -> None:
    def function(values: Tensor, index: Tensor) -> Tensor:
        return zeros(values).scatter_reduce(0, spread(index, values), values, "mean", include_self=include_self)

    graph_module, reasons = rewritten(function, VALUES, DST)

    assert not reasons
    assert "scatter_reduce" not in str(graph_module.graph)
    assert_same_law(graph_module, function, (VALUES, DST))


def test_sum_that_leaves_its_start_out_is_not_a_sum() -> None:
    def function(values: Tensor, index: Tensor) -> Tensor:
        return torch.ones(N, C).scatter_reduce(0, spread(index, values), values, "sum", include_self=False)

    graph_module, reasons = rewritten(function, VALUES, DST)

    assert any("not a constant that can be added to" in line for line in reasons)
    assert_same_law(graph_module, function, (VALUES, DST))


# --- the idioms ------------------------------------------------------------------------------------------------------


def test_index_that_only_looks_repeated_is_seen_through() -> None:
    """A vector viewed as [1, E] and expanded along the first axis differs between columns."""

    def function(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(0, index[:C].view(1, -1).expand(E, -1))

    graph_module, reasons = rewritten(function, X, SRC)

    assert len(reasons) == 1
    assert_same_law(graph_module, function, (X, SRC))


def test_one_edge_index_expanded_over_one_column() -> None:
    def function(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(0, index.unsqueeze(-1))

    graph_module, reasons = rewritten(function, numbers(N, 1), SRC)

    assert targets(graph_module.graph) == ["plait.gather"]
    assert reasons == []


def test_broadcast_vector_is_the_vector_itself() -> None:
    graph_module = traced(lambda i: i + 1, SRC)
    (add,) = [node for node in graph_module.graph.nodes if node.op == "call_function" and node.target is aten.add.Tensor]

    assert broadcast_vector(add) is add


def test_fill_reads_no_data() -> None:
    """zeros_like(x) does not read x: a graph that only takes its size must not keep it."""
    graph_module = traced(lambda x, v, i: torch.zeros_like(x).index_add(0, i, v), X, VALUES, DST)
    materialize_fills(graph_module.graph)

    x = next(node for node in graph_module.graph.nodes if node.op == "placeholder")
    assert [user.target for user in x.users] == [aten.sym_size.int]


def test_canonical_graph_is_left_alone() -> None:
    graph_module, _ = rewritten(lambda x, s, d: torch.zeros(N, C).index_add(0, d, x[s]), X, SRC, DST)
    before = text(graph_module.graph)

    assert canonicalize(graph_module.graph) == []
    assert text(graph_module.graph) == before


def test_slice_of_everything_is_no_slice() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, 0] + 1, x[1:, 1] + 1, x[::2, 1] + 1

    graph_module, _ = rewritten(function, X)

    slices = [line for line in text(graph_module.graph).splitlines() if "slice" in line.split(" = ")[-1].split("(")[0]]
    assert slices == [
        "slice_2 = aten.slice.Tensor(x, 0, 1, 9223372036854775807)",
        "slice_3 = aten.slice.Tensor(x, 0, 0, 9223372036854775807, 2)",
    ]
    assert_same_law(graph_module, function, (X,))


def test_every_spelling_is_tested() -> None:
    seen = set()
    for table in (GATHERS, SCATTERS):
        for function, _ in table.values():
            first = X if table is GATHERS else VALUES
            seen |= {node.target for node in traced(function, first, SRC if table is GATHERS else DST).graph.nodes}

    unsafe = {aten._unsafe_index.Tensor, aten._unsafe_index_put.default}  # what decompositions of these leave behind
    assert set(SPELLINGS) - unsafe <= seen
