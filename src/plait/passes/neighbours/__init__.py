"""Neighbours given as a matrix: x[nbr], nbr int [N, K], and what is reduced over the K columns, are edges like any other.

Layers on k nearest neighbours, and on as many sampled neighbours for every node, hold a value per entry of such a matrix,
[N, K, ...], and reduce it over axis 1. Here these values get one axis for all entries, [E, ...] with E = N K, and the
reductions become segment reductions by the row of each entry, which is structure. There may be several axes in front of the
columns, as in batches of point clouds, [B, N, K].

`matrix`: which matrices there are, and what is known of their entries; `values`: one axis for all entries, from a value back to
the gathers, one operator at a time; `reductions`: what ends with one row each, which is where a rewrite begins.
"""

from plait.passes.neighbours.reductions import flatten_neighbours

__all__ = ["flatten_neighbours"]
