"""The sampler: native and reference form agree, picks have the right distribution, every rule is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from plait.errors import IndexMapError, OptionError, ShapeError
from plait.sampling import native
from plait.sampling.random import key_of
from plait.sampling.reference import ReferenceSampler
from plait.sampling.request import Request, Rules, Sampled
from plait.sampling.topology import Topology, build_relation
from tests.sampling import graphs

# 0.999 quantiles of chi-square by degrees of freedom, from tables. Seeds are fixed: what passes once passes always.
CHI_SQUARE_999 = {5: 20.52, 7: 24.32, 9: 27.88, 11: 31.26, 14: 36.12}


def native_sampler(topology: Topology, rules: Rules) -> native.NativeSampler:
    library = native.load()
    assert library is not None
    return native.NativeSampler(library, topology, rules)


def assert_same(left: Sampled, right: Sampled) -> None:
    for one, other in zip(_tensors(left), _tensors(right), strict=True):
        assert torch.equal(one, other)
    assert left.nodes_per_hop == right.nodes_per_hop
    assert left.edges_per_hop == right.edges_per_hop


def _tensors(sampled: Sampled) -> list[torch.Tensor]:
    return [*sampled.nodes, *(sampled.trees or ()), *sampled.edges, *sampled.edge_ids]


OPTIONS = [
    dict(zip(("replace", "disjoint", "last", "induced", "timed", "weighted", "typed"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=7)
    if flags[4] or not flags[2]  # the last neighbours: only with time
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(key for key, on in options.items() if on) or "plain")
def test_native_picks_are_the_reference_picks(options: dict[str, bool], generator: torch.Generator) -> None:
    timed, weighted = options["timed"], options["weighted"]
    if options["typed"]:
        topology = graphs.two_types(generator, timed=timed, weighted=weighted)
    else:
        topology = graphs.one_type(50, 400, generator, timed=timed, weighted=weighted)
    for fanouts in ([3, 2], [1, -1, 2], [70, 5]):  # 70: more than the small set of picks holds
        rules = graphs.rules(
            topology,
            fanouts,
            replace=options["replace"],
            disjoint=options["disjoint"] or timed,
            last=options["last"],
            induced=options["induced"],
        )
        request = graphs.request(topology, 5, key=2**63 + 5, timed=timed)

        assert_same(native_sampler(topology, rules).sample(request), ReferenceSampler(topology, rules).sample(request))


def test_a_sampler_forgets_the_batch_before(generator: torch.Generator) -> None:
    topology = graphs.one_type(50, 400, generator)
    used = native_sampler(topology, graphs.rules(topology, [3, 2]))
    used.sample(graphs.request(topology, 5, key=1))
    second = graphs.request(topology, 5, key=2)

    assert_same(used.sample(second), native_sampler(topology, graphs.rules(topology, [3, 2])).sample(second))


def star(num_neighbors: int, weight: torch.Tensor | None = None) -> Topology:
    """Everybody points to the last node."""
    edge_index = torch.stack([torch.arange(num_neighbors), torch.full((num_neighbors,), num_neighbors)])
    size = num_neighbors + 1
    return Topology((size,), (build_relation(edge_index, (0, size), (0, size), weight=weight),))


def picks_of(topology: Topology, fanout: int, num_picks: int, *, replace: bool = False) -> list[list[int]]:
    """The neighbours of the last node, picked so many times: in two batches, in each of which it is a seed again and again."""
    sampler = native_sampler(topology, graphs.rules(topology, [fanout], replace=replace))
    centre = np.full(num_picks // 2, topology.num_nodes[0] - 1)
    found = [sampler.sample(Request(key_of(7, 0, batch), (centre,), (None,))).edge_ids[0] for batch in range(2)]
    return torch.cat(found).view(num_picks, -1).tolist()


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("replace", [False, True])
def test_every_neighbour_is_picked_equally_often(replace: bool) -> None:
    batches, fanout, n = 20_000, 3, 10
    picks = picks_of(star(n), fanout, batches, replace=replace)
    counts = np.bincount(np.concatenate(picks), minlength=n)
    # without replacement, counts of one batch exclude each other, and the statistic is smaller by (n - 1) / (n - fanout)
    scale = 1.0 if replace else (n - 1) / (n - fanout)

    assert chi_square(counts, np.full(n, batches * fanout / n)) * scale < CHI_SQUARE_999[n - 1]


def test_every_set_of_neighbours_is_picked_equally_often() -> None:
    batches = 20_000
    picks = [tuple(sorted(pick)) for pick in picks_of(star(6), 2, batches)]
    sets = list(itertools.combinations(range(6), 2))
    counts = np.array([picks.count(each) for each in sets])

    assert chi_square(counts, np.full(len(sets), batches / len(sets))) < CHI_SQUARE_999[len(sets) - 1]


def test_with_fanout_one_the_last_neighbour_is_picked_too() -> None:
    picks = picks_of(star(8), 1, 8000)
    counts = np.bincount(np.concatenate(picks), minlength=8)

    assert chi_square(counts, np.full(8, 1000.0)) < CHI_SQUARE_999[7]


def test_weighted_picks_follow_the_weights() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 1.0])
    batches = 20_000
    counts = np.bincount(np.concatenate(picks_of(star(6, weight), 1, batches)), minlength=6)

    assert chi_square(counts, batches * weight.numpy() / 16.0) < CHI_SQUARE_999[5]


def test_weighted_pairs_are_drawn_one_after_the_other() -> None:
    weight = [5.0, 1.0, 2.0, 4.0]
    batches = 20_000
    ordered = [tuple(pick) for pick in picks_of(star(4, torch.tensor(weight)), 2, batches)]
    pairs = list(itertools.permutations(range(4), 2))
    expected = [weight[a] / 12 * weight[b] / (12 - weight[a]) * batches for a, b in pairs]
    counts = np.array([ordered.count(pair) for pair in pairs])

    assert chi_square(counts, np.array(expected)) < CHI_SQUARE_999[len(pairs) - 1]


def test_weights_too_small_to_be_seen_beside_a_huge_one_are_still_drawn() -> None:
    weight = torch.tensor([1e-30, 1e30, 3e-30])
    seconds = [pick[1] for pick in picks_of(star(3, weight), 2, 4000)]

    assert chi_square(np.array([seconds.count(0), seconds.count(2)]), np.array([1000.0, 3000.0])) < 10.83  # one degree


def test_edges_of_weight_zero_are_never_taken() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 1.0])

    assert all(sorted(pick) == [1, 3] for pick in picks_of(star(4, weight), 3, 50))


def test_a_large_fanout_takes_no_neighbour_twice() -> None:
    picks = picks_of(star(5000), 900, 2)

    assert [len(set(pick)) for pick in picks] == [900, 900]


def test_no_edge_is_later_than_its_seed_in_any_hop(generator: torch.Generator) -> None:
    edge_index = graphs.edges_between(60, 60, 900, generator)
    time = torch.randint(20, (900,), generator=generator)
    topology = Topology((60,), (build_relation(edge_index, (0, 60), (0, 60), edge_time=time),))
    sampler = native_sampler(topology, graphs.rules(topology, [4, 4, 4], disjoint=True))
    request = graphs.request(topology, 20, timed=True)

    found = sampler.sample(request)

    seed_time = torch.from_numpy(request.times[0])
    assert found.trees is not None
    assert found.edge_ids[0].numel() > 100
    assert bool((time[found.edge_ids[0]] <= seed_time[found.trees[0][found.edges[0][1]]]).all())


def test_the_last_neighbours_are_the_latest_that_are_allowed() -> None:
    edge_index = torch.tensor([[0, 1, 2, 3, 4], [5, 5, 5, 5, 5]])
    time = torch.tensor([5, 3, 1, 4, 2])
    topology = Topology((6,), (build_relation(edge_index, (0, 6), (0, 6), edge_time=time),))
    sampler = native_sampler(topology, graphs.rules(topology, [2], disjoint=True, last=True))

    found = sampler.sample(Request(1, (np.array([5]),), (np.array([4]),)))

    assert time[found.edge_ids[0]].tolist() == [3, 4]


def test_disjoint_trees_share_no_node(generator: torch.Generator) -> None:
    topology = graphs.one_type(20, 200, generator)
    found = native_sampler(topology, graphs.rules(topology, [5, 5], disjoint=True)).sample(graphs.request(topology, 6))
    assert found.trees is not None
    trees, (src, dst) = found.trees[0], found.edges[0]

    pairs = set(zip(trees.tolist(), found.nodes[0].tolist(), strict=True))
    assert bool((trees[src] == trees[dst]).all())
    assert len(pairs) == len(trees)


def test_edges_ascend_by_dst_and_join_the_right_nodes(generator: torch.Generator) -> None:
    edge_index = graphs.edges_between(50, 50, 400, generator)
    topology = Topology((50,), (build_relation(edge_index, (0, 50), (0, 50)),))
    found = native_sampler(topology, graphs.rules(topology, [5, 5])).sample(Request(3, (np.array([4, 9, 30]),), (None,)))
    nodes, edges, ids = found.nodes[0], found.edges[0], found.edge_ids[0]

    assert bool((edges[1].diff() >= 0).all())
    assert torch.equal(nodes[edges], edge_index[:, ids])
    assert len(set(nodes.tolist())) == len(nodes)


def test_induced_batches_have_all_edges_between_their_nodes(generator: torch.Generator) -> None:
    edge_index = graphs.edges_between(40, 40, 300, generator)
    topology = Topology((40,), (build_relation(edge_index, (0, 40), (0, 40)),))
    found = native_sampler(topology, graphs.rules(topology, [3], induced=True)).sample(Request(3, (np.array([7, 8]),), (None,)))
    inside = torch.isin(edge_index, found.nodes[0]).all(dim=0)

    assert sorted(found.edge_ids[0].tolist()) == inside.nonzero().flatten().tolist()


def test_no_seeds_give_an_empty_batch(generator: torch.Generator) -> None:
    topology = graphs.one_type(5, 10, generator)
    found = native_sampler(topology, graphs.rules(topology, [2, 2])).sample(Request(1, (np.zeros(0, np.int64),), (None,)))

    assert found.edges[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.tensor([1.0, -1.0])}, OptionError, r"got -1.0 at edge 1"),
        ({"weight": torch.tensor([1.0, float("nan")])}, OptionError, r"got nan at edge 1"),
        ({"weight": torch.ones(3)}, ShapeError, r"one weight an edge, 2, got shape \[3\]"),
        ({"edge_time": torch.tensor([0.5, 1.0])}, OptionError, r"whole numbers, got float32"),
        ({"edge_time": torch.tensor([1])}, ShapeError, r"one time an edge, 2"),
    ],
)
def test_what_a_relation_cannot_be_built_from(arguments: dict[str, torch.Tensor], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build_relation(torch.tensor([[0, 1], [1, 0]]), (0, 2), (0, 2), **arguments)


def test_a_node_out_of_range_is_named() -> None:
    with pytest.raises(IndexMapError, match="holds 2 at position 1"):
        build_relation(torch.tensor([[0, 2], [1, 0]]), (0, 2), (0, 2))
