"""Neighbour sampling: C++ sampler and its reference, threads that prepare whole batches, loaders with PyG's interface."""

from plait.sampling.blocks import Block, blocks
from plait.sampling.inference import layerwise
from plait.sampling.link import LinkNeighborLoader
from plait.sampling.negative import NegativeSampling
from plait.sampling.neighbor import NeighborLoader
from plait.sampling.source import Graph, GraphBatch

__all__ = ["Block", "Graph", "GraphBatch", "LinkNeighborLoader", "NegativeSampling", "NeighborLoader", "blocks", "layerwise"]
