"""Is an engine right? Its output and gradients beside eager's, through files.

Legend: F features.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.tools.bench.layers import find_layer

# float32 and sums of up to some 10^5 terms in another order: 1e-5 of the largest entry is seen, a wrong gradient shows as 1e-2
ENTRY_TOLERANCE = 1e-3
# Where two candidates of a maximum differ by less than rounding, another one may win, and its gradient goes elsewhere: one such
# flip moves a whole row of a weight gradient. Such layers are judged by the norm of the difference. EdgeConv on 20 k nodes and
# 1 M edges: eager float32 is 3e-4 of the norm away from eager float64, plait 6e-4; a wrong gradient is 1e-1 and more.
# The slope of a leaky ReLU flips where its operand is 0 but for rounding: of 4 M edges with 4 heads that happens to one or two,
# and their gradients are others. GAT on 400 k nodes and 4 M edges, worst gradient: eager float32 is 1.4e-4 of the norm away
# from float64, plait and Inductor 2.4e-4.
ALLOWED_NORM = {"": 0.0, "slope": 1e-3, "argmax": 5e-3}


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The worst tensor.

    largest: the largest difference as a share of the largest entry; share_off: how many entries are out of tolerance;
    norm: of the difference, as a share of the norm; allowed_norm: above 0, it alone decides.
    """

    tensor: str
    largest: float
    share_off: float
    norm: float
    allowed_norm: float

    @property
    def is_allowed(self) -> bool:
        return self.norm <= self.allowed_norm if self.allowed_norm else self.share_off == 0.0

    def __str__(self) -> str:
        share = f"{100 * self.share_off:.3g} % of entries"
        return f"{self.tensor} differs from eager by {self.largest:.1e} of its largest entry ({share})"


def compare_files(expected: pathlib.Path, got: pathlib.Path, model: str) -> Deviation:
    """The worst deviation over all tensors; one that is missing counts as wrong."""
    allowed = ALLOWED_NORM[find_layer(model).kink]
    found: list[Deviation] = []
    with np.load(expected) as reference, np.load(got) as mine:
        for name in reference.files:
            if name not in mine.files or mine[name].shape != reference[name].shape:
                return Deviation(
                    tensor=f"{name} is missing or has another shape; it", largest=1.0, share_off=1.0, norm=1.0, allowed_norm=0.0
                )
            found.append(_compare(name, reference[name], mine[name], allowed))
    return max(found, key=lambda deviation: (not deviation.is_allowed, deviation.largest))


def _compare(name: str, expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any], allowed: float) -> Deviation:
    """Relative to the largest entry: cancellation leaves small entries with the rounding of large ones."""
    if not expected.size:
        return Deviation(tensor=name, largest=0.0, share_off=0.0, norm=0.0, allowed_norm=allowed)
    scale = max(float(np.abs(expected).max()), 1e-30)
    # NaN on one side only is as wrong as can be
    error = np.where(np.isnan(expected) & np.isnan(got), 0.0, np.abs(expected - got) / scale)
    error = np.nan_to_num(error, nan=np.inf)
    return Deviation(
        tensor=name,
        largest=float(error.max()),
        share_off=float((error > ENTRY_TOLERANCE).mean()),
        norm=_relative_norm(expected, got),
        allowed_norm=allowed,
    )


def _relative_norm(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    """The norm of the difference as a share of the norm; NaN, which nothing may hold, counts as wrong."""
    scale = max(float(np.linalg.norm(expected.ravel())), 1e-30)
    share = float(np.linalg.norm((expected - got).ravel())) / scale
    return share if np.isfinite(share) else 1.0
