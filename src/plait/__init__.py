"""plait: a compiler for graph neural networks. `model = torch.compile(model, backend="plait")`."""

from plait.capture.compile import clear_cache, compile
from plait.config import Options

__all__ = ["Options", "clear_cache", "compile"]
