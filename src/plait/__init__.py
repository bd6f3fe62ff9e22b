"""plait: a compiler for graph neural networks."""
