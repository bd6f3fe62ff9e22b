"""DGL's side of a benchmark. Run by an interpreter that has DGL, and nothing of plait but the file `protocol.py` beside it.

Inputs and weights come from a file that plait's worker wrote. Every layer says how its weights and gradients are called in the
PyTorch Geometric layer, so that the check against eager is the same for all engines. Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import pathlib
import runpy
import time
from collections.abc import Callable
from typing import Any

MODELS = ("gcn", "gcn_plain", "sage", "gin", "gat", "gat_plain", "gatv2", "gatv2_plain", "gmm", "edgeconv")


class Layer:
    """One layer: a DGL module, how to call it, and its parameters under PyTorch Geometric's names."""

    call: Callable[[Any], Any]
    gradients: Callable[[], dict[str, Any]]

    def __init__(self, name: str, weights: dict[str, Any], graph: Any, extra: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.graph = graph
        self.extra = extra
        self.weights = weights
        self.own: dict[str, Any] = {}
        self.module = getattr(self, f"_{name.removesuffix('_plain')}")()

    def parameter(self, name: str) -> Any:
        """One of the weights as a parameter of our own, for what DGL's layer does not have."""
        self.own[name] = self.torch.nn.Parameter(self.weights[name].clone())
        return self.own[name]

    def fill(self, **pairs: tuple[Any, Any]) -> None:
        with self.torch.no_grad():
            for target, value in pairs.values():
                target.copy_(value)

    def _gcn(self) -> Any:
        import dgl.nn as nn

        weight = self.weights["lin.weight"]
        module = nn.GraphConv(weight.shape[1], weight.shape[0], norm="none", allow_zero_in_degree=True)
        self.fill(weight=(module.weight, weight.t()), bias=(module.bias, self.weights["bias"]))
        self.call = lambda x: module(self.graph, x, edge_weight=self.extra.get("norm"))
        self.gradients = lambda: {"lin.weight": module.weight.grad.t(), "bias": module.bias.grad}
        return module

    def _sage(self) -> Any:
        import dgl.nn as nn

        weight = self.weights["lin_l.weight"]
        module = nn.SAGEConv(weight.shape[1], weight.shape[0], "mean")
        self.fill(
            near=(module.fc_neigh.weight, weight),
            own=(module.fc_self.weight, self.weights["lin_r.weight"]),
            bias=(module.fc_self.bias, self.weights["lin_l.bias"]),
        )
        self.call = lambda x: module(self.graph, x)
        self.gradients = lambda: {
            "lin_l.weight": module.fc_neigh.weight.grad,
            "lin_r.weight": module.fc_self.weight.grad,
            "lin_l.bias": module.fc_self.bias.grad,
        }
        return module

    def _gin(self) -> Any:
        import dgl.nn as nn

        weight = self.weights["nn.weight"]
        linear = self.torch.nn.Linear(weight.shape[1], weight.shape[0])
        self.fill(weight=(linear.weight, weight), bias=(linear.bias, self.weights["nn.bias"]))
        module = nn.GINConv(linear, "sum")
        self.call = lambda x: module(self.graph, x)
        self.gradients = lambda: {"nn.weight": linear.weight.grad, "nn.bias": linear.bias.grad}
        return module

    def _gat(self) -> Any:
        import dgl.nn as nn

        weight, att = self.weights["lin.weight"], self.weights["att_src"]
        module = nn.GATConv(weight.shape[1], att.shape[2], att.shape[1], allow_zero_in_degree=True)
        self.fill(
            weight=(module.fc.weight, weight),
            src=(module.attn_l, att),
            dst=(module.attn_r, self.weights["att_dst"]),
            bias=(module.bias, self.weights["bias"].view_as(module.bias)),
        )
        self.call = lambda x: module(self.graph, x).flatten(1)
        self.gradients = lambda: {
            "lin.weight": module.fc.weight.grad,
            "att_src": module.attn_l.grad,
            "att_dst": module.attn_r.grad,
            "bias": module.bias.grad.flatten(),
        }
        return module

    def _gatv2(self) -> Any:
        import dgl.nn as nn

        weight, att = self.weights["lin_l.weight"], self.weights["att"]
        module = nn.GATv2Conv(weight.shape[1], att.shape[2], att.shape[1], allow_zero_in_degree=True)
        self.fill(
            src=(module.fc_src.weight, weight),
            src_bias=(module.fc_src.bias, self.weights["lin_l.bias"]),
            dst=(module.fc_dst.weight, self.weights["lin_r.weight"]),
            dst_bias=(module.fc_dst.bias, self.weights["lin_r.bias"]),
            att=(module.attn, att),
        )
        bias = self.parameter("bias")
        self.call = lambda x: module(self.graph, x).flatten(1) + bias
        self.gradients = lambda: {
            "lin_l.weight": module.fc_src.weight.grad,
            "lin_l.bias": module.fc_src.bias.grad,
            "lin_r.weight": module.fc_dst.weight.grad,
            "lin_r.bias": module.fc_dst.bias.grad,
            "att": module.attn.grad,
            "bias": bias.grad,
        }
        return module

    def _gmm(self) -> Any:
        import dgl.nn as nn

        g, mu, sigma = (self.weights[name] for name in ("g", "mu", "sigma"))
        module = nn.GMMConv(
            g.shape[0], g.shape[1] // mu.shape[0], mu.shape[1], mu.shape[0], "mean", bias=False, allow_zero_in_degree=True
        )
        self.fill(weight=(module.fc.weight, g.t()), mu=(module.mu, mu), sigma=(module.inv_sigma, 1 / sigma))
        root, bias = self.parameter("root.weight"), self.parameter("bias")
        self.call = lambda x: module(self.graph, x, self.extra["edge_position"]) + x @ root.t() + bias
        self.gradients = lambda: {
            "g": module.fc.weight.grad.t(),
            "mu": module.mu.grad,
            "sigma": -module.inv_sigma.grad / sigma**2,
            "root.weight": root.grad,
            "bias": bias.grad,
        }
        return module

    def _edgeconv(self) -> Any:
        import dgl.nn as nn

        weight = self.weights["nn.weight"]
        width = weight.shape[1] // 2
        module = nn.EdgeConv(width, weight.shape[0], allow_zero_in_degree=True)
        self.fill(
            own=(module.phi.weight, weight[:, :width]),
            near=(module.theta.weight, -weight[:, width:]),  # DGL takes dst - src, PyTorch Geometric src - dst
            bias=(module.phi.bias, self.weights["nn.bias"]),
            no_bias=(module.theta.bias, self.torch.zeros_like(module.theta.bias)),
        )
        self.call = lambda x: module(self.graph, x)
        self.gradients = lambda: {
            "nn.weight": self.torch.cat([module.phi.weight.grad, -module.theta.weight.grad], 1),
            "nn.bias": module.phi.bias.grad,
        }
        return module


class Worker:
    """The commands of `worker.py`, for DGL."""

    def load(self, path: str, model: str, threads: int) -> None:
        """Builds graph and layers from the exported file."""
        import dgl
        import numpy as np
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.x = arrays["x"].requires_grad_(bool(arrays["x_has_gradient"]))
        self.cotangent = arrays["cotangent"]
        (src, dst), num_nodes = arrays["edge_index"], len(self.x)
        extra = {"edge_position": arrays.get("edge_position")}
        if model in ("gcn", "gat", "gatv2"):  # self-loops: one a node, those that are there are replaced
            keep, loops = src != dst, torch.arange(num_nodes)
            src, dst = torch.cat([src[keep], loops]), torch.cat([dst[keep], loops])
        if model == "gcn":
            scale = torch.bincount(dst, minlength=num_nodes).float().rsqrt()
            extra["norm"] = scale[src] * scale[dst]
        graph = dgl.graph((src, dst), num_nodes=num_nodes)
        weights: dict[str, dict[str, Any]] = {}
        for name, tensor in arrays.items():
            if name.startswith("parameter/layers."):
                layer, parameter = name.removeprefix("parameter/layers.").split(".", 1)
                weights.setdefault(layer, {})[parameter] = tensor
        self.layers = [Layer(model, weights[layer], graph, extra) for layer in sorted(weights)]

    def forward(self) -> Any:
        x = self.x
        for layer in self.layers[:-1]:
            x = layer.call(x).relu()
        return self.layers[-1].call(x)

    def train_step(self) -> Any:
        self.x.grad = None
        for layer in self.layers:
            for parameter in (*layer.module.parameters(), *layer.own.values()):
                parameter.grad = None
        out = self.forward()
        out.backward(self.cotangent)
        return out

    def steps(self, kind: str, count: int, skip: int = 0) -> list[float]:
        seconds = []
        for _ in range(skip + count):
            start = time.perf_counter()
            if kind == "train":
                self.train_step()
            else:
                with self.torch.no_grad():
                    self.forward()
            seconds.append(time.perf_counter() - start)
        return seconds[skip:]

    def dump(self, path: str) -> None:
        """Output and gradients under PyTorch Geometric's names."""
        import numpy as np

        found = {"out": self.train_step().detach()}
        if self.x.grad is not None:
            found["x.grad"] = self.x.grad
        for i, layer in enumerate(self.layers):
            found |= {f"layers.{i}.{name}.grad": gradient for name, gradient in layer.gradients().items()}
        np.savez(path, **{name: tensor.numpy() for name, tensor in found.items()})


def main() -> None:
    worker = Worker()
    serve = runpy.run_path(str(pathlib.Path(__file__).with_name("protocol.py")))["serve"]
    commands = {name: getattr(worker, name) for name in ("load", "steps", "dump")}
    serve(commands, lambda error: f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
