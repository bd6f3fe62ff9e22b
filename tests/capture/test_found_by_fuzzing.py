"""What `tests.fuzz` has found, each as the smallest layer that showed it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.fuzz import Case, mismatch
from tests.random_models import ARGUMENTS, TEMPLATE

FOUND: dict[str, tuple[str, str, Case]] = {
    # a pass over a row as one stream read what an earlier pass had kept in blocks: C++ that did not compile
    "stream_reads_blocks": (
        "self.lin0 = nn.Linear(6, 4)\nself.lin1 = nn.Linear(4, 16, bias=False)",
        """
n0 = self.lin0(x)
e0 = n0[src]
e1 = e0 / (torch.cat([e0, e0, e0], -1)[:, :4].square() + 0.5)
n1 = scatter(e1, dst, 0, num_nodes, 'max')
n2 = torch.addcmul(n1, torch.tanh(n1), torch.tanh(n0))
n3 = torch.tanh(n1) * torch.hstack([n2, n2, n2])[:, :4]
e2 = softmax(3.0 * torch.tanh(self.lin1(n3[dst])), dst, num_nodes=num_nodes)
return e2[:, :4] * e0
""",
        Case("", ("reversed",)),
    ),
    # a linear layer behind the sum of its rows: the mask that scaled them was summed as a bool, to "any"
    "mask_of_a_linear_layer": (
        "self.lin0 = nn.Linear(6, 3)",
        """
e0 = self.lin0(torch.tanh(x[src] * x[dst])) * (src < dst).view(-1, 1)
return e0.new_zeros(num_nodes, 3).index_add(0, src, e0)
""",
        Case("", ("random", "repeated_edges")),
    ),
    # a minimum that PyTorch computes, compared with entries that a kernel computed again: no ties were found, 0 / 0
    "minimum_into_given_rows": (
        "",
        """
n0 = x.square().sum(-1, keepdim=True).add(0.2).sqrt()
e0 = n0[src]
e1 = torch.cat([e0, e0 - e0, e0], -1)
e2 = torch.softmax(torch.addcmul(e1, torch.tanh(e1), torch.tanh(n0[dst])), dim=-1)
return (e2.new_zeros(num_nodes, 3) + 0.25).scatter_reduce(0, dst.view(-1, 1).expand_as(e2), e2, 'amin', include_self=True)
""",
        Case("", ("random",)),
    ),
    # a region made a row value for itself, others read it as its output, and it waited for one of them
    "regions_wait_for_each_other": (
        "self.shift0 = nn.Parameter(0.5 * torch.randn(24))",
        """
e0 = x.index_select(0, dst)
e1 = x.index_select(0, src)
e2 = torch.cat([e0, e1, e1], -1)
e3 = x[dst]
e4 = torch.stack([e3, e3], dim=1)
e5 = x[src, ...]
e6 = x[src]
e8 = torch.cat([e5, e6 - e5, e4.flatten(1)], -1)
e9 = (e8 + self.shift0).masked_fill((e8 + self.shift0) < -0.5, 0.125)
e10 = torch.tanh(e9[:, :18]) * e2[:, :18]
n11 = e10.new_zeros(num_nodes, 18).index_add(0, dst, e10)
e13 = torch.tanh(e2) * n11.index_select(0, src)
n14 = e13.new_zeros(num_nodes, 18).index_add(0, src, e13)
e17 = 1.0 / (1.5 + torch.cos(e3 - e5))
n19 = e17.new_zeros(num_nodes, 6).index_add(0, dst, e17)
return n19[:, :6] * torch.sigmoid(n14[:, :6])
""",
        Case("", ("huge_in_degree",), index_dtype=torch.int32),
    ),
    # one edge: the forward's product was a kernel's, the backward's PyTorch's, and the maximum found no entry equal to it
    "maximum_of_one_product": (
        "self.lin10 = nn.Linear(6, 17)",
        """
e9 = torch.tanh(x[src, ...]) * x[src]
e10 = self.lin10(e9)
n11 = e10.new_zeros(num_nodes, 17).scatter_reduce(0, dst.view(-1, 1).expand_as(e10), e10, 'amax', include_self=False)
return n11
""",
        Case("", ("one_node_self_loop",)),
    ),
    # a value of rows, wanted per edge and by a maximum: PyTorch made it, without a kernel, and the maximum's kernel did again
    "value_of_rows_wanted_per_edge": (
        "self.lin2 = nn.Linear(6, 5)\nself.vector3 = nn.Parameter(0.5 * torch.randn(5))",
        """
e2 = self.lin2(x[dst])
e3 = (e2 * self.vector3).sum(-1)
n9 = scatter(e2[..., 3:], dst, 0, num_nodes, 'mean')
e12 = torch.maximum(n9[src], e3.unsqueeze(-1))
r13 = e12.new_zeros(3, 2).scatter_reduce(0, relation.view(-1, 1).expand_as(e12), e12, 'amax', include_self=False)
return r13, scatter(torch.tanh(e12), dst, 0, num_nodes, 'mean')
""",
        Case("", ("self_loops",), options=(("edge_scalars", "cached"),)),
    ),
    # as many edges as nodes: constants of both were one constant, and their rows were taken for the same
    "a_constant_in_common": (
        "self.weight11 = nn.Parameter(0.7 * torch.randn(2, 1))",
        """
n0 = torch.tanh(x)
e3 = torch.gather(n0, 0, src.unsqueeze(-1).expand(-1, 6))
e7 = n0[edge_index[1]]
e8 = torch.addcdiv(e7[:, :3], torch.tanh(e7[:, :3]), edge_attr[:, :3].square() + 0.5)
n9 = scatter(e8, dst, 0, num_nodes, 'mean')
n13 = F.silu(F.linear(n9[:, :2], self.weight11.t()))
e15 = torch.maximum(torch.gather(n13, 0, src.unsqueeze(-1).expand(-1, 1)), e3)
n34 = e15.new_zeros(num_nodes, 6).scatter_add(0, src.view(-1, 1).expand_as(e15), e15)
n39 = (scatter(edge_attr, dst, 0, num_nodes, 'sum') - n13).square().add(0.1).sqrt()
return torch.addcdiv(n34[:, :3], torch.tanh(n34[:, :3]), n39[:, :3].square() + 0.5)
""",
        Case("", ("reversed",)),
    ),
    # the same, where the constant stood between the columns of a slice's gradient and a maximum's
    "a_constant_in_common_with_a_slice": (
        "",
        """
e3 = torch.softmax(x.chunk(2, -1)[1][src], dim=-1)
n4 = e3.new_zeros(num_nodes, 3).scatter_reduce(0, src.view(-1, 1).expand_as(e3), e3, 'amax', include_self=False)
return torch.take_along_dim(n4, src[:, None], 0)
""",
        Case("", ("as_many_edges_as_nodes",), options=(("rest", "inductor"),)),
    ),
    # the backward's copy of a constant bore the forward's tag, and torch's partition took what was before it for the forward's
    "a_constant_of_both_halves": (
        "self.shift0 = nn.Parameter(0.5 * torch.randn(3, 2))",
        """
n0 = x.view(-1, 3, 2)
r1 = (n0.new_zeros(3, 3, 2) + 0.25).scatter_reduce(0, relation.view(-1, 1, 1).expand_as(n0), n0, 'amin', include_self=True)
return torch.maximum(n0 + self.shift0, torch.full_like(n0, 0.3)), r1
""",
        Case("", ("reversed",)),
    ),
    # no edges: their mean, NaN, went to the nodes, which met it with a gradient of zero
    "mean_of_no_edges": (
        "",
        """
e0 = x[src, ...]
return e0 / (e0.mean(0) + 0.5)
""",
        Case("", ("one_node_no_edges",)),
    ),
}


def source_of(members: str, body: str) -> str:
    """The module with these lines in `__init__` and `forward`."""
    *lines, last = body.strip().splitlines()
    begin = ["src, dst = edge_index", "num_nodes = x.size(0)"]
    return TEMPLATE.format(
        arguments=ARGUMENTS,
        members="\n".join(f"        {line}" for line in members.splitlines()),
        body="\n".join(f"        {line}" for line in (*begin, *lines)),
        result=last.removeprefix("return "),
    )


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_right(name: str) -> None:
    members, body, case = FOUND[name]

    assert mismatch(replace(case, source=source_of(members, body))) == ""
