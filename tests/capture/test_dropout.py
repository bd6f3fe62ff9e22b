"""Dropout on edges: its statistics, its seed, and the same mask in forward and backward with none stored."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.awkward import random_graph
from tests.capture.compiled import compiled
from tests.check import assert_matches_eager, assert_same_numbers
from tests.models import Case, node_features, row_sum

LIMIT = 5.0  # standard deviations: once in two million for a fair generator, and the seeds here are always the same
GRAPH = random_graph(50, 40_000, 3)
CHANNELS = 4


class EdgeDropout(nn.Module):
    """Messages of which a share p is dropped; they go out too, so that the mask can be seen."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        messages = nn.functional.dropout(x[src], self.p, self.training)
        return row_sum(messages, dst, x.shape[0]), messages


class AttentionDropout(nn.Module):
    """The sum of attention over a row is 1; with dropout it says which edges are left. Nothing per edge goes out."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        kept = nn.functional.dropout(weight, self.p, self.training)
        return row_sum(x[src] * kept.unsqueeze(-1), dst, x.shape[0])


def features() -> Tensor:
    return (torch.rand(GRAPH.num_nodes, CHANNELS, generator=torch.Generator().manual_seed(0)) + 0.5).requires_grad_()


def mask_of(call: nn.Module, x: Tensor) -> Tensor:
    """Which of the messages were kept, bool [E, CHANNELS]."""
    _, messages = call(x, GRAPH.src, GRAPH.dst)
    return messages.detach() != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_share_of_kept_messages(p: float) -> None:
    torch.manual_seed(0)
    kept = mask_of(compiled(EdgeDropout(p)), features()).double()

    deviation = (p * (1 - p)) ** 0.5
    assert abs(float(kept.mean()) - (1 - p)) * kept.numel() ** 0.5 / deviation < LIMIT
    for channel in range(CHANNELS):
        assert abs(float(kept[:, channel].mean()) - (1 - p)) * len(kept) ** 0.5 / deviation < LIMIT


def test_expectation_and_variance_of_the_sum() -> None:
    """A kept message is scaled by 1 / (1 - p): the sum keeps its mean, and its variance is p / (1 - p) of the squares."""
    p, num_runs = 0.4, 200
    x = torch.ones(GRAPH.num_nodes, CHANNELS)
    call = compiled(EdgeDropout(p))
    torch.manual_seed(0)
    sums = torch.stack([call(x, GRAPH.src, GRAPH.dst)[0] for _ in range(num_runs)]).double()

    degree = torch.bincount(GRAPH.dst, minlength=GRAPH.num_nodes).double().unsqueeze(-1)
    scaled = (sums - degree) / (degree * p / (1 - p)).sqrt()
    assert abs(float(scaled.mean())) * scaled.numel() ** 0.5 < LIMIT
    assert abs(float(scaled.var()) - 1) * (scaled.numel() / 2) ** 0.5 < LIMIT


def test_masks_of_steps_and_of_channels_are_unrelated() -> None:
    x, call = features(), compiled(EdgeDropout(0.5))
    torch.manual_seed(0)
    first, second = mask_of(call, x), mask_of(call, x)

    for a, b in ((first, second), (first[:, 0], first[:, 1]), (first[1:], first[:-1])):
        agreement = float((a == b).double().mean())
        assert abs(agreement - 0.5) * 2 * a.numel() ** 0.5 < LIMIT


def test_manual_seed_repeats_the_masks() -> None:
    x, call = features(), compiled(EdgeDropout(0.5))
    torch.manual_seed(7)
    first = [mask_of(call, x) for _ in range(3)]
    torch.manual_seed(7)
    again = [mask_of(call, x) for _ in range(3)]
    torch.manual_seed(8)
    other = mask_of(call, x)

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other)


def test_mask_belongs_to_the_edge_and_not_to_its_place_in_a_row() -> None:
    """Another dst sorts the edges in another way; their masks, in the user's order, stay."""
    x, call = features(), compiled(EdgeDropout(0.5))
    torch.manual_seed(0)
    _, first = call(x, GRAPH.src, GRAPH.dst)
    torch.manual_seed(0)
    _, second = call(x, GRAPH.src, GRAPH.dst.flip(0).contiguous())

    assert torch.equal(first, second)


def test_gradient_is_that_of_the_mask() -> None:
    x, call = features(), compiled(EdgeDropout(0.5))
    out, messages = call(x, GRAPH.src, GRAPH.dst)
    torch.rand(5)
    (grad,) = torch.autograd.grad(out.square().sum(), x)

    factor = torch.where(messages.detach() != 0, 2.0, 0.0)
    same = row_sum(x[GRAPH.src] * factor, GRAPH.dst, GRAPH.num_nodes)
    assert_same_numbers(out, same)
    assert_same_numbers(grad, torch.autograd.grad(same.square().sum(), x)[0])


def test_gradient_of_edge_weights_is_that_of_the_mask() -> None:
    """out is linear in the weights: <gradient, weights> = <out, upstream> only if both saw one mask; a dropped edge gets 0."""
    x, call = features(), compiled(AttentionDropout(0.6))
    weight = (torch.rand(GRAPH.num_edges, generator=torch.Generator().manual_seed(2)) + 0.5).requires_grad_()
    upstream = torch.rand(GRAPH.num_nodes, CHANNELS, generator=torch.Generator().manual_seed(1)) + 0.5
    out = call(x, weight, GRAPH.src, GRAPH.dst)
    (grad,) = torch.autograd.grad(out, weight, upstream)

    assert_same_numbers((grad * weight.detach()).sum(), (out.detach() * upstream).sum())
    dropped = float((grad == 0).double().mean())
    assert abs(dropped - 0.6) * grad.numel() ** 0.5 / 0.24**0.5 < LIMIT


def test_no_mask_is_kept_for_the_backward() -> None:
    kept: list[Tensor] = []
    call = compiled(AttentionDropout(0.5))
    weight = torch.rand(GRAPH.num_edges)
    x = features()
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        call(x, weight, GRAPH.src, GRAPH.dst)

    given = {item.untyped_storage().data_ptr() for item in (x, weight, GRAPH.src, GRAPH.dst)}
    new = [item for item in kept if item.untyped_storage().data_ptr() not in given and item.shape[:1] == (GRAPH.num_edges,)]
    assert all(item.dtype == torch.int64 for item in new)  # the structure's own copy of a map is no mask


def test_attention_dropout_of_gat_repeats_and_differs() -> None:
    model = Case(lambda: pyg.GATConv(12, 8, heads=2, dropout=0.5), node_features).model()
    inputs = node_features(random_graph(30, 200, 3), 0)
    call = compiled(model)
    torch.manual_seed(3)
    first, second = call(*inputs), call(*inputs)
    torch.manual_seed(3)
    again = call(*inputs)

    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    mean = torch.stack([call(*inputs).detach() for _ in range(400)]).mean(0)
    assert (mean - model.eval()(*inputs)).abs().max() < 0.3


@pytest.mark.parametrize("width", [1, 3, 8, 12, 33])
def test_messages_of_any_width_are_dropped(width: int) -> None:
    """The kernel's draws are those of its interpreter; here: forward and backward agree, and the share is right."""
    small = random_graph(20, 300, 0)
    x = torch.ones(20, width, requires_grad=True)
    out, messages = compiled(EdgeDropout(0.5))(x, small.src, small.dst)
    (grad,) = torch.autograd.grad(out.sum(), x)

    assert_same_numbers(out, row_sum(messages, small.dst, 20))
    assert_same_numbers(grad, row_sum(messages.detach(), small.src, 20))
    assert abs(float((messages != 0).float().mean()) - 0.5) * 2 * messages.numel() ** 0.5 < LIMIT


@pytest.mark.parametrize("mode", ["eval", "p = 0"])
def test_no_dropout_is_exact(mode: str) -> None:
    x = features()
    model = EdgeDropout(0.5).eval() if mode == "eval" else EdgeDropout(0.0)

    assert_matches_eager(model, x, GRAPH.src, GRAPH.dst, compile=compiled)


class NodeDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = pyg.GCNConv(12, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = nn.functional.dropout(x, 0.5, self.training)
        return nn.functional.dropout(self.layer(hidden, edge_index), 0.3, self.training)


def test_dropout_on_nodes_is_torchs_own() -> None:
    """The very masks of the un-compiled model: the same generator, drawn in the same order."""
    model = Case(NodeDropout, node_features).model()

    assert_matches_eager(model, *node_features(random_graph(30, 200, 3), 0), compile=compiled)


class PooledResidual(nn.Module):
    """Nodes that are rows of a sum and entries of another, with dropout on what is added beside the first."""

    def forward(self, x: Tensor, src: Tensor, dst: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        found = row_sum(x[src], dst, x.shape[0]) + nn.functional.dropout(2 * x, 0.5, self.training)
        return row_sum(found, graph, 3), found


def test_mask_of_rows_beside_a_sum_is_the_same_in_the_backward() -> None:
    x = features()
    torch.manual_seed(0)
    _, found = compiled(PooledResidual())(x, GRAPH.src, GRAPH.dst, torch.arange(GRAPH.num_nodes) % 3)
    ratio = (found - row_sum(x[GRAPH.src], GRAPH.dst, GRAPH.num_nodes)).detach() / (2 * x.detach())
    kept = 2.0 * (ratio > 1)
    torch.testing.assert_close(ratio, kept, rtol=1e-3, atol=1e-3)
    assert 0.3 < float(kept.mean()) / 2 < 0.7

    (gradient,) = torch.autograd.grad(found.sum(), x)
    degree = torch.bincount(GRAPH.src, minlength=GRAPH.num_nodes)
    torch.testing.assert_close(gradient, degree[:, None] + 2 * kept)


class ShortFloats(nn.Module):
    """Edge dropout in a dtype that holds fewer than 24 bits."""

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return row_sum(nn.functional.dropout(x[src], 0.5), dst, x.shape[0])


@pytest.mark.filterwarnings("ignore:plait")  # which says that float16 is not compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_dropped_in_the_same_share(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")
    small = random_graph(20, 100, 0)
    out = compiled(ShortFloats())(torch.ones(20, 64, dtype=dtype), small.src, small.dst)

    kept = float(out.float().sum()) / 2 / (small.num_edges * 64)
    assert abs(kept - 0.5) * 2 * (small.num_edges * 64) ** 0.5 < LIMIT
