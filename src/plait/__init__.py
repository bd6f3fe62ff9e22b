"""plait: a compiler for graph neural networks. `model = torch.compile(model, backend="plait")`."""

from plait.capture.compile import clear_cache, compile
from plait.config import Options
from plait.tools.explain import Explanation, explain

__all__ = ["Explanation", "Options", "clear_cache", "compile", "explain"]
