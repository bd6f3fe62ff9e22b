"""Gradients of gradients: a compiled backward cannot be differentiated, so the forward graph runs again un-compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


class Again:
    """A captured graph, un-compiled, for a backward that is differentiated itself (`create_graph=True`).

    mutated: the numbers of inputs the graph writes to, which are left alone when it runs again.
    """

    def __init__(self, eager: GraphModule) -> None:
        self.eager = eager
        self._is_random = any(_is_random(node) for node in eager.graph.nodes)
        placeholders = [node for node in eager.graph.nodes if node.op == "placeholder"]
        self.mutated = frozenset(
            number for number, node in enumerate(placeholders) if any(_writes(user, node) for user in node.users)
        )

    def random_state(self) -> Tensor | None:
        """The state of the generator, if the graph draws from it: to be asked for before the forward runs."""
        return torch.get_rng_state() if self._is_random else None

    # else Dynamo, which is on where a model asks for gradients, compiles this too, and then what this asks for
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def gradient(self, inputs: Sequence[Any], grads: Sequence[Any], random_state: Tensor | None) -> list[Any]:
        """Gradients by input (None where there is none), with a graph behind them.

        grads: by output of the graph, None where the loss does not depend on it. random_state: of the forward's run.
        """
        result: list[Any] = [None] * len(inputs)
        outputs = self._run(inputs, random_state)
        pairs = [
            (item, grad)
            for item, grad in zip(outputs, grads, strict=True)
            if grad is not None and isinstance(item, Tensor) and item.requires_grad
        ]
        if not pairs:
            return result
        wanted = [number for number, item in enumerate(inputs) if isinstance(item, Tensor) and item.requires_grad]
        found = torch.autograd.grad(
            [item for item, _ in pairs],
            [inputs[number] for number in wanted],
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
        for number, grad in zip(wanted, found, strict=True):
            result[number] = grad
        return result

    def _run(self, inputs: Sequence[Any], random_state: Tensor | None) -> Sequence[Any]:
        given = [item.clone() if number in self.mutated else item for number, item in enumerate(inputs)]
        with torch.random.fork_rng(devices=[], enabled=random_state is not None), torch.enable_grad():
            if random_state is not None:
                torch.set_rng_state(random_state)
            return self.eager(*given)  # type: ignore[no-any-return]


def _is_random(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _writes(user: Any, node: Any) -> bool:
    """Whether a call changes `node` in place: batch norm writes to its running statistics, not to what it normalises."""
    schema = getattr(user.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    given = dict(zip((item.name for item in schema.arguments), user.args, strict=False)) | dict(user.kwargs)
    written = [given.get(item.name) for item in schema.arguments if item.alias_info is not None and item.alias_info.is_write]
    return any(item is node or (isinstance(item, list | tuple) and node in item) for item in written)
