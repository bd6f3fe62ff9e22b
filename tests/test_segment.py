"""The reference operators against PyG, and the statistics of the counter-based draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.utils import scatter

from plait.segment import counter_bits, counter_uniform, gather, segment_reduce
from tests.awkward import AWKWARD, RandomGraph
from tests.check import assert_same_numbers
from tests.strategies import graphs

PYG_NAMES = {"sum": "sum", "prod": "mul", "max": "max", "min": "min"}
STARTS = {"sum": 0.0, "prod": 1.0, "max": 0.0, "min": 0.0}


@pytest.mark.parametrize("graph", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("reduce", PYG_NAMES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_segment_reduce_is_pyg_scatter(
    graph: RandomGraph, reduce: str, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    values = torch.rand(graph.num_edges, *shape, generator=generator) + 0.5
    if graph.num_edges > 1000 and reduce == "prod":
        values = 1 + (values - 1) * 1e-3  # thousands of factors

    reduced = segment_reduce(values, graph.dst, graph.num_nodes, reduce=reduce, init=STARTS[reduce])

    assert_same_numbers(reduced, scatter(values, graph.dst, 0, graph.num_nodes, PYG_NAMES[reduce]))


@pytest.mark.parametrize("reduce", PYG_NAMES)
def test_segment_reduce_has_pygs_gradient(reduce: str, generator: torch.Generator) -> None:
    graph = AWKWARD["random"]
    ours = (torch.randint(1, 5, (graph.num_edges, 3), generator=generator) / 4).requires_grad_()  # many ties
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(graph.num_nodes, 3, generator=generator)

    segment_reduce(ours, graph.dst, graph.num_nodes, reduce=reduce, init=STARTS[reduce]).backward(weight)
    scatter(theirs, graph.dst, 0, graph.num_nodes, PYG_NAMES[reduce]).backward(weight)

    assert ours.grad is not None
    assert theirs.grad is not None
    assert_same_numbers(ours.grad, theirs.grad)


@pytest.mark.parametrize("reduce", PYG_NAMES)
def test_row_without_entries_gives_init(reduce: str) -> None:
    reduced = segment_reduce(torch.ones(1, 2), torch.tensor([1]), 3, reduce=reduce, init=2.5)

    assert reduced[[0, 2]].tolist() == [[2.5, 2.5], [2.5, 2.5]]


def test_max_sees_init_only_if_asked() -> None:
    values, index = torch.tensor([-3.0, -1.0]), torch.tensor([0, 0])

    assert segment_reduce(values, index, 1, reduce="max").tolist() == [-1.0]
    assert segment_reduce(values, index, 1, reduce="max", include_init=True).tolist() == [0.0]


@pytest.mark.parametrize("reduce", ["max", "min", "sum", "prod"])
def test_nan_wins(reduce: str) -> None:
    values = torch.tensor([1.0, torch.nan, 5.0, 2.0])

    reduced = segment_reduce(values, torch.tensor([0, 0, 0, 1]), 2, reduce=reduce, init=1.0)

    assert reduced.isnan().tolist() == [True, False]


@given(graphs(), st.integers(0, 100))
def test_gather_then_sum_is_the_degree_times_the_row(graph: RandomGraph, seed: int) -> None:
    """segment_sum(gather(x, dst), dst) = degree * x"""
    x = torch.randint(-8, 8, (graph.num_nodes, 2), generator=torch.Generator().manual_seed(seed)).to(torch.float32)

    summed = segment_reduce(gather(x, graph.dst), graph.dst, graph.num_nodes, reduce="sum")

    degree = torch.bincount(graph.dst, minlength=graph.num_nodes)
    assert torch.equal(summed, degree.unsqueeze(1) * x)


@pytest.mark.parametrize("entry", [3, -1])
@pytest.mark.parametrize("reduce", ["gather", "sum", "max", "prod"])
def test_an_entry_out_of_bounds_is_named(reduce: str, entry: int) -> None:
    index, message = (
        torch.tensor([0, 2, entry, 1]),
        f"the index holds {entry} at position 2, out of bounds: it points into 3 rows",
    )

    def run() -> Tensor:
        return gather(torch.ones(3, 2), index) if reduce == "gather" else segment_reduce(torch.ones(4), index, 3, reduce=reduce)

    for kind in (IndexError, RuntimeError):  # torch's own, of a gather and of a scatter
        with pytest.raises(kind, match=message):
            run()


def test_gather_takes_32_bit_indices() -> None:
    x = torch.randn(4, 2)

    assert torch.equal(gather(x, torch.tensor([3, 0, 3], dtype=torch.int32)), x[[3, 0, 3]])


# --- random draws ----------------------------------------------------------------------------------------------------

NUM_POSITIONS, NUM_CHANNELS = 50_000, 8
SEEDS = [0, 1, -1, 123456789, 2**40 + 5]
LIMIT = 5.0  # standard deviations: once in two million for a fair generator, and these draws are always the same


def draws(seed: int, start: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """[NUM_POSITIONS, NUM_CHANNELS] draws from position `start` on."""
    position = torch.arange(start, start + NUM_POSITIONS)
    return counter_uniform(torch.tensor(seed), position, (NUM_CHANNELS,), dtype)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations of what independent draws would give."""
    a, b = a.flatten() - 0.5, b.flatten() - 0.5
    return float((a * b).mean() * 12 * a.numel() ** 0.5)


def chi_square(cells: Tensor, num_cells: int) -> float:
    """Deviation from equal counts, in standard deviations of the chi-square distribution."""
    counts = torch.bincount(cells.flatten(), minlength=num_cells).double()
    expected = cells.numel() / num_cells
    freedom = num_cells - 1
    return (float(((counts - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_mean_and_variance_are_those_of_uniform_draws(seed: int) -> None:
    u = draws(seed)

    root = u.numel() ** 0.5
    assert abs(float(u.mean()) - 1 / 2) * root / (1 / 12) ** 0.5 < LIMIT
    assert abs(float(u.var()) - 1 / 12) * root / (1 / 180) ** 0.5 < LIMIT


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_bins", [2, 10, 256, 4096])
def test_bins_are_filled_evenly(seed: int, num_bins: int) -> None:
    cells = (draws(seed) * num_bins).long()

    assert abs(chi_square(cells, num_bins)) < LIMIT


@pytest.mark.parametrize("bit", range(24))
def test_every_bit_is_fair(bit: int) -> None:
    bits = (draws(3) * 2**24).long() >> bit & 1

    assert abs(float(bits.double().mean()) - 0.5) * 2 * bits.numel() ** 0.5 < LIMIT


def neighbours(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Two sets of draws whose keys differ a little in one part."""
    u = draws(seed)
    return {
        "channel": lambda: (u[:, :-1], u[:, 1:]),
        "position": lambda: (u[:-1], u[1:]),
        "position_and_channel": lambda: (u[:-1, 1:], u[1:, :-1]),
        "far_position": lambda: (u, draws(seed, 2**32)),
        "one_bit_of_position": lambda: (u[: NUM_POSITIONS // 2], u[NUM_POSITIONS // 2 :]),
        "seed": lambda: (u, draws(seed + 1)),
        "one_bit_of_seed": lambda: (u, draws(seed ^ (1 << 20))),
        "high_half_of_seed": lambda: (u, draws(seed + 2**32)),
    }[kind]()


KINDS = (
    "channel",
    "position",
    "position_and_channel",
    "far_position",
    "one_bit_of_position",
    "seed",
    "one_bit_of_seed",
    "high_half_of_seed",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_neighbours_are_independent(kind: str, seed: int) -> None:
    a, b = neighbours(kind, seed)

    assert abs(correlation(a, b)) < LIMIT
    assert abs(chi_square((a * 16).long() * 16 + (b * 16).long(), 256)) < LIMIT


@pytest.mark.parametrize("distance", [1, 2, 1024])
def test_seeds_do_not_permute_each_other(distance: int) -> None:
    """Two seeds with equal high halves share no words, at the same position or at any other."""
    position = torch.arange(2048)
    first = counter_bits(torch.tensor(12), position, 4)
    second = counter_bits(torch.tensor(12 ^ distance), position, 4)

    assert int(torch.isin(first, second).sum()) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_keys_give_different_bits(kind: str) -> None:
    """Equal draws are as rare as 24 bits allow: one pair in 16 million."""
    a, b = neighbours(kind, 11)

    assert int((a == b).sum()) <= 3


def test_draws_lie_in_the_half_open_interval() -> None:
    u = draws(0, dtype=torch.float32)

    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert torch.equal(u.double(), draws(0))


def test_draw_belongs_to_its_position() -> None:
    position = torch.randperm(100, generator=torch.Generator().manual_seed(0))

    whole = counter_uniform(torch.tensor(5), torch.arange(100), (2, 3), torch.float32)

    assert torch.equal(counter_uniform(torch.tensor(5), position, (2, 3), torch.float32), whole[position])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_draws_need_a_float_that_holds_24_bits(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="expected float32 or float64, got torch"):
        counter_uniform(torch.tensor(0), torch.arange(3), (), dtype)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_no_positions_give_no_draws(shape: tuple[int, ...]) -> None:
    assert counter_uniform(torch.tensor(5), torch.arange(0), shape, torch.float32).shape == (0, *shape)


def test_bits_never_change() -> None:
    """A dropout mask of an old checkpoint can be drawn again: these words are part of the format."""
    bits = counter_bits(torch.tensor(42), torch.tensor([0, 1, 2**33 + 1]), 2)

    assert bits.tolist() == [[3775335865, 3930452579], [3602126398, 2687578519], [1516791747, 628387833]]
