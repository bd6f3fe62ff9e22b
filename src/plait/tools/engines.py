"""Who runs a model: PyTorch as it is, or a back end of `torch.compile`."""

from __future__ import annotations

import torch
from torch import nn

from plait.errors import OptionError

ENGINES = ("eager", "inductor", "plait")


def compile_with(engine: str, model: nn.Module) -> nn.Module:
    """The model as the engine runs it; it shares the parameters of the one given."""
    if engine == "eager":
        return model
    # plait is found through its entry point, as in a user's program, which does not import it
    if engine not in torch._dynamo.list_backends(exclude_tags=()):
        hint = "plait registers itself when it is installed: pip install -e ."
        if engine not in ENGINES:
            hint = f"Valid: {', '.join(ENGINES)}, or any other name in torch.compiler.list_backends()."
        raise OptionError(f"engine {engine!r}: torch.compile knows no such back end\n  {hint}")
    return torch.compile(model, backend=engine)  # type: ignore[return-value]  # an OptimizedModule is a Module
