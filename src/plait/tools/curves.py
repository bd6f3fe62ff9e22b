"""The picture of a training run: loss and accuracy over epochs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

COLORS = ("#2a6f97", "#c8553d", "#588157", "#6d597a")


def draw_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path, *, title: str) -> None:
    """One PNG: losses at the left, accuracies at the right; solid is training, dashed is validation, one colour a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for color, (label, history) in zip(COLORS, histories.items(), strict=False):
        epochs = [epoch["epoch"] for epoch in history]
        for axes, train_key, val_key in ((left, "loss", "val_loss"), (right, "train_accuracy", "val_accuracy")):
            axes.plot(epochs, [epoch[train_key] for epoch in history], color=color, label=f"{label}, training")
            axes.plot(epochs, [epoch[val_key] for epoch in history], color=color, linestyle="--", label=f"{label}, validation")
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    right.set_ylim(0, 1)
    right.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
