"""Graphs to measure on: generated with a power law, or real ones from a directory of .npz files.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import DataError
from plait.tools import generate
from plait.tools.npz import NpzFile, read_edges, read_features

REAL_FILES: Mapping[str, str] = {
    "cora": "planetoid/cora.npz",
    "pubmed": "planetoid/pubmed.npz",
    "coauthor_physics": "nodeclass/coauthor_physics.npz",
    "ego_twitter": "snap/ego_twitter_undirected.npz",
    "web_notredame": "snap/web_notredame.npz",
}
SMALL, LARGE = "powerlaw:20k/1M", "powerlaw:400k/4M"
CORA_SIZED = "cora-sized"
DEFAULT_WIDTH = 128
TWO_LAYER_WIDTH, TWO_LAYER_CLASSES = 64, 8  # 8 can be shared by 4 heads

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class BenchGraph:
    """A graph and the widths of the model that is run on it.

    Features that stand for a hidden layer's output get a gradient; a data set's own features do not, as in training.
    """

    name: str
    x: Tensor  # float32 [N, F]
    edge_index: Tensor  # int64 [2, E]
    widths: tuple[int, ...]  # F, hidden ..., out

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]


def load_graph(name: str, data_dir: str | None, width: int = DEFAULT_WIDTH) -> BenchGraph:
    """The graph of that name: generated, one of REAL_FILES, or the path of a .npz file; `@F` projects features to F columns.

    One layer, width to width, where features are generated; two layers where the data set has its own, and on `cora-sized`.

    >>> load_graph("powerlaw:50/200", None, 16).widths
    (16, 16)
    """
    plain, _, projected = name.partition("@")
    if plain == CORA_SIZED:
        x = generate.features(2708, 1433, seed=1)
        edges = generate.powerlaw_edges(2708, 10556, seed=0)
        return BenchGraph(name=name, x=x, edge_index=edges, widths=(1433, TWO_LAYER_WIDTH, TWO_LAYER_CLASSES))
    kind, _, size = plain.partition(":")
    if kind in generate.EDGE_GENERATORS:
        num_nodes, num_edges = _parse_size(name, size)
        x = generate.features(num_nodes, width, seed=1).requires_grad_()
        return BenchGraph(
            name=name, x=x, edge_index=generate.EDGE_GENERATORS[kind](num_nodes, num_edges, 0), widths=(width, width)
        )
    return _real(name, _find_file(plain, data_dir), width, projected)


def _real(name: str, path: pathlib.Path, width: int, projected: str) -> BenchGraph:
    file = NpzFile(path)
    edge_index, num_nodes = read_edges(file)
    x = read_features(file, num_nodes)
    if x is None:
        x = generate.features(num_nodes, width, seed=1).requires_grad_()
        return BenchGraph(name=name, x=x, edge_index=edge_index, widths=(width, width))
    if projected:
        if not projected.isdigit() or int(projected) < 1:
            raise DataError(f"graph {name!r}: expected a number of columns after '@', got {projected!r}")
        x = x @ generate.features(x.shape[1], int(projected), seed=1) / x.shape[1] ** 0.5
    return BenchGraph(name=name, x=x, edge_index=edge_index, widths=(x.shape[1], TWO_LAYER_WIDTH, TWO_LAYER_CLASSES))


def tiny_graph(like: BenchGraph, num_nodes: int, num_edges: int) -> BenchGraph:
    """A graph of the same widths that is nothing to compute on: what compiles kernels without seeing the real graph."""
    x = generate.features(num_nodes, like.widths[0], seed=2).requires_grad_(like.x.requires_grad)
    edge_index = generate.powerlaw_edges(num_nodes, num_edges, seed=2)
    return BenchGraph(name="tiny", x=x, edge_index=edge_index, widths=like.widths)


def check_name(name: str, data_dir: str | None) -> None:
    """Raises DataError for a name that `load_graph` would not take, without loading anything."""
    plain = name.partition("@")[0]
    kind, _, size = plain.partition(":")
    if kind in generate.EDGE_GENERATORS:
        _parse_size(name, size)
    elif plain != CORA_SIZED and not (path := _find_file(plain, data_dir)).is_file():
        raise DataError(f"graph {name!r}: {path}: no such file")


def _find_file(name: str, data_dir: str | None) -> pathlib.Path:
    if name.endswith(".npz"):
        return pathlib.Path(name)
    if name not in REAL_FILES:
        raise DataError(
            f"graph {name!r}: no such graph; valid: powerlaw:20k/1M, rmat:20k/1M and other sizes, {CORA_SIZED}, "
            f"{', '.join(REAL_FILES)}, or a path that ends in .npz"
        )
    if data_dir is None:
        raise DataError(f"graph {name!r}: name the directory that holds {REAL_FILES[name]} with --data or PLAIT_DATA")
    return pathlib.Path(data_dir) / REAL_FILES[name]


def _parse_size(name: str, text: str) -> tuple[int, int]:
    parts = [_SIZE.fullmatch(part) for part in text.split("/")]
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        raise DataError(f"graph {name!r}: expected NODES/EDGES as in powerlaw:20k/1M, got {text!r}")
    num_nodes, num_edges = (round(float(part[1]) * _UNITS[part[2]]) for part in parts if part)
    if num_nodes < 1:
        raise DataError(f"graph {name!r}: expected at least one node, got {num_nodes}")
    return num_nodes, num_edges


def cotangent(graph: BenchGraph) -> Tensor:
    """A fixed gradient of the output, what a loss would send back: float32 [N, out]."""
    return torch.randn(graph.num_nodes, graph.widths[-1], generator=torch.Generator().manual_seed(3))
