"""Where graphs with labels come from: an embedded set, .npz files, PyG's collection and generators.

A source is a string:

    digits                                  scikit-learn's handwritten digits as a k-nearest-neighbour graph; works offline
    path/to/file.npz                        one graph in the format that README.md describes
    pyg:Cora, or Cora                       a data set of PyTorch Geometric, downloaded once
    rmat:nodes=20000,edges=1000000          generated; also features=, classes=, seed=
    powerlaw:nodes=20000,edges=1000000      generated; degrees follow a power law

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import DataError
from plait.tools import generate
from plait.tools.npz import NpzFile, read_edges, read_features

DEFAULT_FEATURES = 128
TRAIN_PER_CLASS, VAL_PER_CLASS = 20, 30


@dataclass(frozen=True, kw_only=True)
class GraphData:
    """One graph to classify the nodes of. `notes` say what was made up on loading."""

    name: str
    x: Tensor  # float32 [N, F]
    edge_index: Tensor  # int64 [2, E], row 0 src, row 1 dst
    y: Tensor  # int64 [N]
    train_idx: Tensor  # int64
    val_idx: Tensor
    test_idx: Tensor
    num_classes: int
    notes: tuple[str, ...] = ()

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    def __str__(self) -> str:
        split = f"{len(self.train_idx)} / {len(self.val_idx)} / {len(self.test_idx)} to train, validate, test"
        size = f"{self.num_nodes} nodes, {self.num_edges} edges, {self.x.shape[1]} features, {self.num_classes} classes"
        return f"{self.name}: {size}, {split}"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to load: which of several published splits, whether to draw one where there is none, where downloads go."""

    split: int = 0
    random_split: bool = False
    seed: int = 0
    download_dir: str = "data"


def load(source: str, options: SourceOptions | None = None) -> GraphData:
    """The graph a source string names.

    >>> graph = load("rmat:nodes=100,edges=500,features=8,classes=3")
    >>> graph.x.shape, graph.edge_index.shape, len(graph.train_idx)
    (torch.Size([100, 8]), torch.Size([2, 500]), 60)
    """
    options = options or SourceOptions()
    if source == "digits":
        return _digits(options)
    kind, _, rest = source.partition(":")
    if kind in generate.EDGE_GENERATORS:
        return _generated(source, kind, rest)
    if source.endswith(".npz"):
        return load_npz(pathlib.Path(source), options)
    name = rest if kind == "pyg" else source
    if name in PYG_SETS:
        return _from_pyg(name, options)
    generated = ", ".join(f"{kind}:nodes=N,edges=E" for kind in generate.EDGE_GENERATORS)
    raise DataError(
        f"data {source!r}: no such source\n"
        f"  Known: digits, a path that ends in .npz, {generated}, or a PyTorch Geometric set: {', '.join(PYG_SETS)}"
    )


# digits


def _digits(options: SourceOptions) -> GraphData:
    """1797 images of 8 x 8 pixels; each is joined to its 8 nearest, in both directions; 50 / 30 / 20 % split."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    images = load_digits()
    x = torch.from_numpy(images.data / 16.0).float()
    near = kneighbors_graph(images.data, n_neighbors=8, mode="connectivity")
    src, dst = near.maximum(near.T).nonzero()
    edge_index = torch.from_numpy(np.stack([src, dst]).astype(np.int64))
    train, val, test = generate.random_split(len(x), (0.5, 0.3), options.seed)
    y = torch.from_numpy(images.target).long()
    return GraphData(
        name="digits", x=x, edge_index=edge_index, y=y, train_idx=train, val_idx=val, test_idx=test, num_classes=10
    )


# .npz


def load_npz(path: pathlib.Path, options: SourceOptions) -> GraphData:
    """A node classification graph from a file in the format that README.md describes."""
    file = NpzFile(path)
    edge_index, num_nodes = read_edges(file)
    if "y" not in file:
        raise DataError(f"{path}: key 'y' is missing: this file has no labels, so there is nothing to train on")
    y = torch.from_numpy(file.array("y", f"int [{num_nodes}], one class a node", ndim=1, kinds="iu").astype(np.int64))
    if len(y) != num_nodes:
        raise file.broken("y", f"int [{num_nodes}], one class a node", f"[{len(y)}]")
    features = read_features(file, num_nodes)
    notes: list[str] = []
    if features is None:
        features = generate.features(num_nodes, DEFAULT_FEATURES, seed=0)
        notes.append(f"no features in the file: {DEFAULT_FEATURES} were drawn with seed 0")
    train, val, test, note = _read_split(file, y, options)
    if note:
        notes.append(note)
    used = torch.cat([train, val, test])
    if used.numel() and int(y[used].min()) < 0:
        raise file.broken("y", "a label for every node of the split", f"{int(y[used].min())}")
    return GraphData(
        name=path.stem,
        x=features,
        edge_index=edge_index,
        y=y,
        train_idx=train,
        val_idx=val,
        test_idx=test,
        num_classes=int(y.max()) + 1,
        notes=tuple(notes),
    )


def _read_split(file: NpzFile, y: Tensor, options: SourceOptions) -> tuple[Tensor, Tensor, Tensor, str]:
    """train, val, test and a note: three index vectors, or one column of published splits, or drawn here on request."""
    num_nodes = len(y)
    if "train_idx" in file:
        parts = [
            torch.from_numpy(file.index(key, "int node numbers", num_nodes)) for key in ("train_idx", "val_idx", "test_idx")
        ]
        for key, part in zip(("train_idx", "val_idx", "test_idx"), parts, strict=True):
            if not len(part):
                raise file.broken(key, "at least one node", "none")
        return parts[0], parts[1], parts[2], ""
    if "splits" in file:
        splits = file.array("splits", f"uint8 [splits, {num_nodes}]", ndim=2, kinds="u")
        if splits.shape[1] != num_nodes:
            raise file.broken("splits", f"uint8 [splits, {num_nodes}]", str(list(splits.shape)))
        if not 0 <= options.split < len(splits):
            raise DataError(f"{file.path}: split {options.split}: the file has splits 0 to {len(splits) - 1}")
        row = torch.from_numpy(splits[options.split])
        train, val, test = ((row == part).nonzero().flatten() for part in range(3))
        return train, val, test, f"split {options.split} of {len(splits)}"
    if not options.random_split:
        raise DataError(
            f"{file.path}: no split: expected keys 'train_idx', 'val_idx' and 'test_idx', or 'splits'\n"
            f"  Draw one with --random-split ({TRAIN_PER_CLASS} train and {VAL_PER_CLASS} validation nodes a class)."
        )
    train, val, test = generate.class_split(y, TRAIN_PER_CLASS, VAL_PER_CLASS, options.seed)
    return train, val, test, f"random split, seed {options.seed}"


# PyTorch Geometric


PYG_SETS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    **{name: ("Planetoid", {"name": name}) for name in ("Cora", "CiteSeer", "PubMed")},
    **{f"Amazon{name}": ("Amazon", {"name": name}) for name in ("Computers", "Photo")},
    **{f"Coauthor{name}": ("Coauthor", {"name": name}) for name in ("CS", "Physics")},
    **{name: ("HeterophilousGraphDataset", {"name": name}) for name in ("Roman-empire", "Amazon-ratings", "Minesweeper")},
    **{name: (name, {}) for name in ("WikiCS", "Flickr", "Reddit", "Reddit2", "Actor", "CoraFull")},
}


def _from_pyg(name: str, options: SourceOptions) -> GraphData:
    """A data set of PyTorch Geometric, downloaded into the download directory on first use."""
    import torch_geometric.datasets

    kind, arguments = PYG_SETS[name]
    root = pathlib.Path(options.download_dir) / "pyg" / name
    try:
        graph = getattr(torch_geometric.datasets, kind)(root=str(root), **arguments)[0]
    except (OSError, RuntimeError, EOFError) as error:  # urllib's and aiohttp's errors are OSErrors; a cut file is the rest
        raise DataError(
            f"data pyg:{name}: could not be downloaded ({type(error).__name__}: {error})\n"
            f"  There may be no network. Use 'digits' or a .npz file, or put the files of {kind} under {root}/raw."
        ) from error
    y = graph.y.flatten().long()
    parts = [_mask(graph, key, options.split) for key in ("train_mask", "val_mask", "test_mask")]
    note: tuple[str, ...] = ()
    if any(part is None for part in parts):
        parts = list(generate.class_split(y, TRAIN_PER_CLASS, VAL_PER_CLASS, options.seed))
        note = (f"no published split: drawn with seed {options.seed}",)
    train, val, test = (part for part in parts if part is not None)
    return GraphData(
        name=name,
        x=graph.x.float(),
        edge_index=graph.edge_index.long(),
        y=y,
        train_idx=train,
        val_idx=val,
        test_idx=test,
        num_classes=int(y.max()) + 1,
        notes=note,
    )


def _mask(graph: Any, key: str, split: int) -> Tensor | None:
    mask = graph.get(key)
    if mask is None:
        return None
    if mask.dim() == 2:
        if not 0 <= split < mask.shape[1]:
            raise DataError(f"split {split}: the data set has splits 0 to {mask.shape[1] - 1}")
        mask = mask[:, split]
    return mask.nonzero().flatten()


# generated


LEAST: Mapping[str, int] = {"nodes": 5, "features": 1, "classes": 1}  # five nodes give every part of the split one


@dataclass(frozen=True, kw_only=True)
class GeneratedSize:
    """The numbers of a generated source."""

    nodes: int
    edges: int
    features: int = DEFAULT_FEATURES
    classes: int = 40
    seed: int = 0


def _generated(source: str, kind: str, text: str) -> GraphData:
    """Labels are random; features are noise around the mean of a node's class, so that there is something to learn."""
    size = parse_size(source, text)
    edge_index = generate.EDGE_GENERATORS[kind](size.nodes, size.edges, size.seed)
    random = torch.Generator().manual_seed(size.seed + 1)
    y = torch.randint(size.classes, (size.nodes,), generator=random)
    means = torch.randn(size.classes, size.features, generator=random)
    x = generate.features(size.nodes, size.features, size.seed + 2) + 0.5 * means[y]
    train, val, test = generate.random_split(size.nodes, (0.6, 0.2), size.seed)
    return GraphData(
        name=source, x=x, edge_index=edge_index, y=y, train_idx=train, val_idx=val, test_idx=test, num_classes=size.classes
    )


def parse_size(source: str, text: str) -> GeneratedSize:
    """The numbers after the colon of a generated source.

    >>> parse_size("rmat:nodes=8,edges=20", "nodes=8,edges=20")
    GeneratedSize(nodes=8, edges=20, features=128, classes=40, seed=0)
    """
    valid = [field.name for field in dataclasses.fields(GeneratedSize)]
    given: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in valid:
            raise DataError(f"data {source!r}: unknown {key!r}; valid: {', '.join(valid)}")
        if not value.isdigit():
            raise DataError(f"data {source!r}: {key}: expected a whole number, got {value!r}")
        given[key] = int(value)
    missing = [key for key in ("nodes", "edges") if key not in given]
    if missing:
        raise DataError(f"data {source!r}: {' and '.join(missing)} missing; write for example rmat:nodes=20000,edges=1000000")
    for key, number in given.items():
        if number < LEAST.get(key, 0):
            raise DataError(f"data {source!r}: {key}: expected at least {LEAST[key]}, got {number}")
    return GeneratedSize(**given)
