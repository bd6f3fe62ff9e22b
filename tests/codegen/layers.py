"""Programs of real layers, as lowering a model gives them."""

from __future__ import annotations

import torch

from plait.ir.ops import Reduce
from plait.ir.program import Program
from tests.codegen.build import Draft


def neighbour_sum(width: int) -> Program:
    d = Draft(f"neighbour_sum_{width}")
    d.out(d.load("at", width, name="x").segment(), "out")
    return d.program()


def gat_forward(heads: int, channels: int) -> Program:
    d = Draft(f"gat_forward_{heads}x{channels}")
    x, a_src = d.load("at", heads, channels, name="x"), d.load("at", heads, name="a_src")
    a_dst = d.load("row", heads, name="a_dst")
    z = (a_src + a_dst).leaky()
    top = z.max()
    e = (z - top).exp()
    total = e.segment() + 1e-16
    alpha = e / total
    d.out((x * alpha.view(heads, 1)).segment(), "out")
    d.out(top, "row_max")
    d.out(total, "row_sum")
    return d.program()


def gat_backward_dst(heads: int, channels: int) -> Program:
    d = Draft(f"gat_backward_dst_{heads}x{channels}")
    x, a_src = d.load("at", heads, channels, name="x"), d.load("at", heads, name="a_src")
    a_dst, top, total = (d.load("row", heads, name=name) for name in ("a_dst", "row_max", "row_sum"))
    grad = d.load("row", heads, channels, name="grad")
    z = a_src + a_dst
    alpha = (z.leaky() - top).exp() / total
    dot = (x * grad).inner(1)
    delta = (alpha * dot).segment()
    slope = (z > 0.0).where(d.const(1.0), d.const(0.2))
    d.out((alpha * (dot - delta) * slope).segment(), "grad_a_dst")
    d.out(delta, "delta")
    return d.program()


def gat_backward_src(heads: int, channels: int) -> Program:
    d = Draft(f"gat_backward_src_{heads}x{channels}", maps=("dst",))
    grad = d.load("at", heads, channels, name="grad")
    a_dst, top, total, delta = (d.load("at", heads, name=name) for name in ("a_dst", "row_max", "row_sum", "delta"))
    x, a_src = d.load("row", heads, channels, name="x"), d.load("row", heads, name="a_src")
    z = a_src + a_dst
    alpha = (z.leaky() - top).exp() / total
    dot = (x * grad).inner(1)
    slope = (z > 0.0).where(d.const(1.0), d.const(0.2))
    d.out((grad * alpha.view(heads, 1)).segment(), "grad_x")
    d.out((alpha * (dot - delta) * slope).segment(), "grad_a_src")
    return d.program()


def gatv2_forward(heads: int, channels: int) -> Program:
    d = Draft(f"gatv2_forward_{heads}x{channels}")
    left, right = d.load("at", heads, channels, name="left"), d.load("row", heads, channels, name="right")
    att = d.load("dense", heads, channels, name="att")
    z = ((left + right).leaky() * att).inner(1)
    top = z.max()
    e = (z - top).exp()
    total = e.segment() + 1e-16
    d.out((left * (e / total).view(heads, 1)).segment(), "out")
    d.out(top, "row_max")
    d.out(total, "row_sum")
    return d.program()


def edge_conv_forward(width: int) -> Program:
    d = Draft(f"edge_conv_forward_{width}")
    d.out((d.load("at", width, name="b") + d.load("row", width, name="a")).relu().max(), "out")
    return d.program()


def edge_conv_counts(width: int) -> Program:
    d = Draft(f"edge_conv_counts_{width}")
    value = (d.load("at", width, name="b") + d.load("row", width, name="a")).relu()
    d.out(value.eq(d.load("row", width, name="top")).to(torch.float32).segment(), "count")
    return d.program()


def edge_conv_backward_src(width: int) -> Program:
    d = Draft(f"edge_conv_backward_src_{width}", maps=("dst",))
    a, top, grad = (d.load("at", width, name=name) for name in ("a", "top", "grad"))
    total = d.load("row", width, name="b") + a
    tie = total.relu().eq(top).to(torch.float32)
    d.out((total > 0.0).where(tie * grad, 0.0).segment(), "grad_b")
    return d.program()


def edge_conv_backward_dst(width: int) -> Program:
    d = Draft(f"edge_conv_backward_dst_{width}")
    total = d.load("at", width, name="b") + d.load("row", width, name="a")
    tie = total.relu().eq(d.load("row", width, name="top")).to(torch.float32)
    share = tie / tie.segment()
    d.out((share * (total > 0.0).to(torch.float32) * d.load("row", width, name="grad")).segment(), "grad_a")
    return d.program()


def gmm_forward(kernels: int, width: int) -> Program:
    d = Draft(f"gmm_forward_{kernels}x{width}")
    x, pseudo = d.load("at", kernels, width, name="x"), d.load("edge", 2, name="pseudo")
    mu, sigma = d.load("dense", kernels, 2, name="mu"), d.load("dense", kernels, 2, name="sigma")
    off = pseudo.view(1, 2) - mu
    gauss = (off * off * -0.5 / (sigma * sigma + 1e-15)).inner(1).exp()
    d.out((x * gauss.view(kernels, 1)).inner(0).segment(), "out")
    return d.program()


def edge_dropout(width: int) -> Program:
    d = Draft(f"edge_dropout_{width}")
    seed = d.load("dense", dtype=torch.int64, name="seed")
    keep = (d.uniform(seed, width) > 0.5).to(torch.float32)
    d.out((d.load("at", width, name="x") * keep).segment(), "out")
    d.out(keep, "keep")
    return d.program()


def pna(width: int) -> Program:
    d = Draft(f"pna_{width}")
    x = d.load("at", width, name="x")
    count = d.call("maximum", d.length(), 1.0)
    mean = x.segment() / count
    d.out(d.cat(0, mean, x.max(), x.segment(Reduce.MIN), (x * x).segment() / count - mean * mean), "out")
    return d.program()
