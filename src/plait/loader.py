"""Sampled training: `from plait.loader import NeighborLoader` in place of PyG's. `import plait` does not pay for it."""

from plait.sampling import Block, Graph, GraphBatch, LinkNeighborLoader, NegativeSampling, NeighborLoader, blocks, layerwise

__all__ = ["Block", "Graph", "GraphBatch", "LinkNeighborLoader", "NegativeSampling", "NeighborLoader", "blocks", "layerwise"]
