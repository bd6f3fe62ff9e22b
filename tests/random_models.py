"""Random layers as plain PyTorch, by seed.

`random_model(seed)` draws statements that read what is there and make a new value per node, edge, graph or relation, and prints
them as a module: what a fuzzer finds is source text that can be read, cut down (`without_unused`) and kept as an example.

As in `tests.random_programs`, numbers stay tame, so that a difference between two engines is a mistake and not rounding: what
is multiplied or goes into exp is bounded, what divides is at least 0.1, and what has a kink or jumps (relu, a comparison) reads
its argument shifted by a random parameter: an exact zero, such as an edge's value less the mean of its row of one edge, would
be rounded to either side.
"""

from __future__ import annotations

import itertools
import linecache
import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import degree, scatter, softmax

from tests.awkward import RandomGraph

IN_CHANNELS, EDGE_DIM, NUM_RELATIONS, NUM_GRAPHS = 6, 3, 3, 4
WIDTHS = (1, 3, 4, 5, 8, 16, 17)
HEADS = (1, 2, 3)
Shape = tuple[int, ...]

ARGUMENTS = "x, edge_index, edge_attr, edge_weight, relation, batch"
BEGIN = """\
src, dst = edge_index
num_nodes = x.size(0)
"""
TEMPLATE = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
{members}

    def forward(self, {arguments}):
{body}
        return {result}
"""


@dataclass(frozen=True)
class Value:
    """A tensor with a row per node, edge, graph or relation, and its inner shape."""

    name: str
    rows: str
    shape: Shape


@dataclass(frozen=True)
class Statement:
    """`value = text`, or lines that end so. members: what `__init__` makes for it, by name."""

    value: Value
    text: str
    reads: tuple[str, ...]
    members: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RandomModel:
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]

    def source(self) -> str:
        members = [f"self.{name} = {made}" for item in self.statements for name, made in item.members]
        body = [item.text if "\n" in item.text else f"{item.value.name} = {item.text}" for item in self.statements]
        return TEMPLATE.format(
            arguments=ARGUMENTS,
            members=textwrap.indent("\n".join(members), " " * 8),
            body=textwrap.indent(BEGIN + "\n".join(body), " " * 8),
            result=", ".join(self.outputs),
        )

    def without_unused(self, outputs: Sequence[str] = ()) -> RandomModel:
        """Only the statements that `outputs` need (by default those of the model)."""
        needed = set(outputs or self.outputs)
        kept = []
        for item in reversed(self.statements):
            if item.value.name in needed:
                needed.update(item.reads)
                kept.append(item)
        return replace(self, statements=tuple(reversed(kept)), outputs=tuple(outputs or self.outputs))


_numbers = itertools.count()


def module_of(source: str, seed: int = 0) -> nn.Module:
    """The module `Model` that the text defines, with parameters fixed by `seed`."""
    names = {"torch": torch, "nn": nn, "F": F, "degree": degree, "scatter": scatter, "softmax": softmax}
    file = f"<random model {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # for messages that quote a line
    exec(compile(source, file, "exec"), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = names["Model"]()  # type: ignore[operator]
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.uniform_(-0.5, 0.5)
    return model


def inputs_for(graph: RandomGraph, seed: int, dtype: torch.dtype, index_dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    """Arguments of a random model; floats ask for their gradient. Edge weights are at least 0.5."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    x, edge_attr = normal(graph.num_nodes, IN_CHANNELS), normal(graph.num_edges, EDGE_DIM)
    weight = (torch.rand(graph.num_edges, generator=draw, dtype=torch.float64) + 0.5).to(dtype).requires_grad_()
    relation = torch.randint(NUM_RELATIONS, (graph.num_edges,), generator=draw)
    batch = torch.randint(NUM_GRAPHS, (graph.num_nodes,), generator=draw).sort().values
    return x, graph.edge_index.to(index_dtype), edge_attr, weight, relation.to(index_dtype), batch.to(index_dtype)


def random_model(seed: int, *, num_layers: int | None = None, short_indices: bool = False) -> RandomModel:
    """A model of one to three layers, the same for the same seed. short_indices: only operators that eager PyTorch runs with
    int32 indices."""
    rng = random.Random(seed)
    draft = _Draft(rng, short_indices)
    for _ in range(num_layers or rng.choice((1, 1, 1, 2, 2, 3))):
        draft.layer()
    return draft.model()


class _Draft:
    def __init__(self, rng: random.Random, short_indices: bool) -> None:
        self.rng, self.short_indices = rng, short_indices
        self.width, self.heads = rng.choice(WIDTHS), rng.choice(HEADS)
        self.statements: list[Statement] = []
        self.values = [
            Value("x", "node", (IN_CHANNELS,)),
            Value("edge_attr", "edge", (EDGE_DIM,)),
            Value("edge_weight", "edge", ()),
        ]

    # --- building blocks

    def add(self, rows: str, shape: Shape, text: str, *reads: Value, **members: str) -> Value:
        """A new value. In `text`, and in the names of members, `#` is its number; `$` stands for its name."""
        number = str(len(self.statements))
        value = Value(f"{rows[0]}{number}", rows, shape)
        made = tuple((f"{name}{number}", text) for name, text in members.items())
        text = text.replace("#", number).replace("$", value.name)
        self.statements.append(Statement(value, text, tuple(item.name for item in reads), made))
        self.values.append(value)
        return value

    def of(self, rows: str, rank: int | None = None) -> list[Value]:
        return [item for item in self.values if item.rows == rows and (rank is None or len(item.shape) == rank)]

    def recent(self, rows: str, rank: int | None = None) -> Value:
        """A value of these rows, the newest ones rather than others."""
        found = self.of(rows, rank)
        return found[-1] if self.rng.random() < 0.75 else self.rng.choice(found)

    def parameter(self, *shape: int, scale: float = 0.5) -> str:
        sizes = ", ".join(map(str, shape))
        return f"nn.Parameter({scale} * torch.randn({sizes}))"

    def flat(self, value: Value) -> Value:
        """With one inner axis."""
        if len(value.shape) == 1:
            return value
        if not value.shape:
            return self.add(value.rows, (1,), f"{value.name}.unsqueeze(-1)", value)
        size = value.shape[0] * value.shape[1]
        return self.add(value.rows, (size,), f"{value.name}.flatten(1)", value)

    def bounded(self, value: Value) -> str:
        return self.rng.choice((f"torch.tanh({value.name})", f"torch.sigmoid({value.name})", f"torch.sin({value.name})"))

    # --- layers

    def layer(self) -> None:
        rng = self.rng
        for _ in range(rng.choice((0, 1, 1, 2))):
            self.step("node")
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice((self.gather, self.ends))()
        for _ in range(rng.randint(1, 6)):
            rng.choice((*[self.on_edges] * 6, self.gather, self.ends, self.scores))()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self.reduce(self.recent("edge"))
            if rng.random() < 0.5:  # the edges read what was reduced
                self.gather(self.values[-1] if self.values[-1].rows == "node" else None)
                self.binary("edge")
                if rng.random() < 0.5:
                    self.on_edges()
        self.reduce(self.recent("edge"), rows="node")
        if rng.random() < 0.5:
            self.binary("node")
        for _ in range(rng.choice((0, 1, 2))):
            self.step("node")
        if rng.random() < 0.2:
            self.pool()

    def on_edges(self) -> None:
        self.step("edge")

    def ends(self) -> None:
        """Both ends of an edge, side by side or combined, and often what the edge has itself."""
        own, other = self.gather(), self.gather()
        left, right, shape = self.aligned(own, other)
        if own.shape != other.shape or self.rng.random() < 0.3:
            self.add(
                "edge", shape, self.rng.choice((f"{left} - {right}", f"{left} + {right}", f"{left} * {right}")), own, other
            )
            return
        parts = [
            self.flat(own),
            self.flat(other),
            *([self.flat(self.rng.choice(self.of("edge")))] if self.rng.random() < 0.5 else []),
        ]
        size = sum(item.shape[0] for item in parts)
        names = [item.name for item in parts]
        if self.rng.random() < 0.3:
            names[1] = f"{names[1]} - {names[0]}"
        joined = self.add("edge", (size,), f"torch.cat([{', '.join(names)}], -1)", *parts)
        if self.rng.random() < 0.7:
            self.linear("edge")
        elif size > 64:
            self.add("edge", (size // 2,), f"{joined.name}[:, ::2]" if size % 2 == 0 else f"{joined.name}[:, 1::2]", joined)

    def model(self) -> RandomModel:
        rng = self.rng
        names = [self.of("node")[-1].name]
        made = {item.value.name for item in self.statements}
        for rows, share in (("edge", 0.2), ("graph", 0.8), ("relation", 0.5), ("node", 0.1)):
            found = [item.name for item in self.of(rows) if item.name in made and item.name not in names]
            if found and rng.random() < share:
                names.append(rng.choice(found[-2:]))
        return RandomModel(tuple(self.statements), tuple(names)).without_unused()

    # --- steps: a new value over the same rows

    def step(self, rows: str) -> Value:
        steps: list[Callable[[str], Value]] = [
            *[self.unary] * 4,
            *[self.linear] * 4,
            *[self.binary] * 4,
            *[self.kink] * 2,
            self.cat,
            self.norm,
            self.view,
            self.inner,
            self.part,
            self.attention_vector,
        ]
        if rows == "edge":
            steps += [self.select, self.relation_weight, self.own_matrix]
        return self.rng.choice(steps)(rows)

    def unary(self, rows: str) -> Value:
        value = self.recent(rows)
        name = value.name
        forms = (
            f"torch.tanh({name})",
            f"torch.sigmoid({name})",
            f"F.silu({name})",
            f"F.gelu({name})",
            f"F.gelu({name}, approximate='tanh')",
            f"F.softplus({name})",
            f"F.mish({name})",
            f"F.elu({name})",
            f"torch.exp(torch.tanh({name}))",
            f"torch.log1p({name}.square())",
            f"torch.sqrt({name}.square() + 0.3)",
            f"torch.rsqrt({name}.square() + 0.3)",
            f"1.0 / (1.5 + torch.cos({name}))",
            f"torch.tanh({name}).pow(3)",
            f"torch.exp(-{name}.square())",
            f"torch.erf({name})",
            f"-0.5 * {name} + 0.25",
            f"{name}.detach() + 0.5 * {name}",
            f"F.logsigmoid({name})",
            f"torch.atan2({name}, torch.ones_like({name}))",
        )
        return self.add(rows, value.shape, self.rng.choice(forms), value)

    def kink(self, rows: str) -> Value:
        value = self.recent(rows)
        name = f"({value.name} + self.shift#)"
        forms = (
            f"torch.relu{name}",
            f"F.leaky_relu({name}, 0.2)",
            f"{name}.abs()",
            f"{name}.clamp(min=-0.4, max=0.7)",
            f"F.relu6({name})",
            f"F.hardtanh({name})",
            f"torch.where({name} > 0, {value.name}, 0.1 * {value.name})",
            f"torch.maximum({name}, torch.full_like({value.name}, 0.3))",
            f"{name}.masked_fill({name} < -0.5, 0.125)",
            f"F.threshold({name}, 0.1, -0.2)",
            f"{value.name} * ({name} > 0).to({value.name}.dtype)",
            f"F.prelu({name}.unsqueeze(1), self.slope#).squeeze(1)",
        )
        form = self.rng.choice(forms)
        members = {"shift": self.parameter(*value.shape) if value.shape else self.parameter(1)}
        if "slope" in form:
            members["slope"] = "nn.Parameter(torch.tensor([0.25]))"
        return self.add(rows, value.shape, form, value, **members)

    def linear(self, rows: str) -> Value:
        value = self.recent(rows)
        rng = self.rng
        if len(value.shape) == 2 and rng.random() < 0.5:
            return self.linear_by_head(value)
        value = self.flat(value) if len(value.shape) != 1 or rng.random() < 0.5 else value
        (size,) = value.shape
        out = rng.choice((self.width, self.width, self.heads * self.width, 1, rng.choice(WIDTHS)))
        kind = rng.choice(("module", "module", "matmul", "mlp", "functional"))
        if kind == "module":
            bias = rng.random() < 0.6
            return self.add(rows, (out,), f"self.lin#({value.name})", value, lin=f"nn.Linear({size}, {out}, bias={bias})")
        if kind == "mlp":
            activation = rng.choice(("nn.SiLU()", "nn.Tanh()", "nn.ReLU()", "nn.Softplus()"))
            norm = f"nn.LayerNorm({self.width}), " if rng.random() < 0.3 else ""
            made = f"nn.Sequential(nn.Linear({size}, {self.width}), {norm}{activation}, nn.Linear({self.width}, {out}))"
            return self.add(rows, (out,), f"self.mlp#({value.name})", value, mlp=made)
        text = f"{value.name} @ self.weight#" if kind == "matmul" else f"F.linear({value.name}, self.weight#.t())"
        return self.add(rows, (out,), text, value, weight=self.parameter(size, out, scale=round(size**-0.5, 3)))

    def linear_by_head(self, value: Value) -> Value:
        heads, size = value.shape
        out = self.rng.choice((self.width, size, 2))
        scale = round(size**-0.5, 3)
        if self.rng.random() < 0.5:
            made = self.parameter(heads, size, out, scale=scale)
            return self.add(
                value.rows, (heads, out), f"torch.einsum('nhc,hcd->nhd', {value.name}, self.weight#)", value, weight=made
            )
        return self.add(value.rows, (heads, out), f"self.lin#({value.name})", value, lin=f"nn.Linear({size}, {out})")

    def binary(self, rows: str) -> Value:
        a, b = self.recent(rows), self.rng.choice(self.of(rows))
        a, b = (a, b) if self.rng.random() < 0.5 else (b, a)
        left, right, shape = self.aligned(a, b)
        forms = (
            f"{left} + {right}",
            f"{left} - {right}",
            f"torch.tanh({left}) * {right}",
            f"{left} * torch.sigmoid({right})",
            f"{left} / ({right}.square() + 0.5)",
            f"torch.maximum({left} + self.shift#, {right})",
            f"torch.addcmul({left}, torch.tanh({left}), torch.tanh({right}))",
            f"torch.lerp({left}, {right}, 0.3)",
            f"({left} - {right}).square().add(0.1).sqrt()",
        )
        form = self.rng.choice(forms)
        members = {"shift": self.parameter(1)} if "shift" in form else {}
        return self.add(rows, shape, form, a, b, **members)

    def aligned(self, a: Value, b: Value) -> tuple[str, str, Shape]:
        """Both as text, with inner shapes that broadcast: axes of size 1 are added, or the longer one is cut."""
        if a.shape == b.shape:
            return a.name, b.name, a.shape
        if len(a.shape) < len(b.shape):
            right, left, shape = self.aligned(b, a)
            return left, right, shape
        # a has at least as many axes
        if not b.shape:
            return a.name, f"{b.name}.view(-1{', 1' * len(a.shape)})", a.shape
        if len(a.shape) == 2 and len(b.shape) == 1:
            if b.shape[0] == a.shape[0]:
                return a.name, f"{b.name}.unsqueeze(-1)", a.shape
            if b.shape[0] in (1, a.shape[1]):
                return a.name, f"{b.name}.unsqueeze(1)", a.shape
            return a.name, f"{b.name}.mean(-1)[:, None, None]", a.shape
        if any(size == 1 for size in (*a.shape, *b.shape)) and len(a.shape) == 1:
            return a.name, b.name, (max(a.shape[0], b.shape[0]),)
        if len(a.shape) == 1:
            size = min(a.shape[0], b.shape[0])
            return f"{a.name}[:, :{size}]", f"{b.name}[:, :{size}]", (size,)
        return a.name, f"{b.name}.mean((1, 2), keepdim=True)", a.shape

    def cat(self, rows: str) -> Value:
        parts = [self.flat(self.recent(rows)) for _ in range(self.rng.choice((2, 2, 3)))]
        size = sum(item.shape[0] for item in parts)
        if size > 64:
            return self.unary(rows)
        names = ", ".join(item.name for item in parts)
        text = self.rng.choice((f"torch.cat([{names}], dim=-1)", f"torch.hstack([{names}])"))
        if len({item.shape for item in parts}) == 1 and self.rng.random() < 0.3:
            return self.add(rows, (len(parts), parts[0].shape[0]), f"torch.stack([{names}], dim=1)", *parts)
        return self.add(rows, (size,), text, *parts)

    def norm(self, rows: str) -> Value:
        value = self.recent(rows)
        value = self.flat(value) if not value.shape else value
        size = value.shape[-1]
        forms = (
            ("self.norm#($)", f"nn.LayerNorm({size})"),
            (f"F.layer_norm($, ({size},), eps=0.1)", ""),
            ("F.normalize($, dim=-1, eps=0.3)", ""),
            ("$ / ($.norm(dim=-1, keepdim=True) + 0.5)", ""),
            ("self.norm#($)", f"nn.RMSNorm({size}, eps=0.1)"),
            ("torch.softmax($, dim=-1)", ""),
            ("torch.log_softmax($, dim=-1)", ""),
        )
        text, made = self.rng.choice(forms)
        members = {"norm": made} if made else {}
        return self.add(rows, value.shape, text.replace("$", value.name), value, **members)

    def view(self, rows: str) -> Value:
        value = self.recent(rows)
        if len(value.shape) == 2:
            heads, size = value.shape
            text, shape = self.rng.choice(
                (
                    (f"{value.name}.flatten(1)", (heads * size,)),
                    (f"{value.name}.mean(1)", (size,)),
                    (f"{value.name}.transpose(1, 2)", (size, heads)),
                    (f"{value.name}.reshape(-1, {heads * size})", (heads * size,)),
                    (f"{value.name}.permute(0, 2, 1).reshape(-1, {heads * size})", (heads * size,)),
                )
            )
            return self.add(rows, shape, text, value)
        value = self.flat(value)
        (size,) = value.shape
        if size % self.heads == 0 and size > self.heads:
            return self.add(
                rows, (self.heads, size // self.heads), f"{value.name}.view(-1, {self.heads}, {size // self.heads})", value
            )
        if self.rng.random() < 0.5:
            return self.add(rows, (self.heads, size), f"{value.name}.unsqueeze(1).expand(-1, {self.heads}, -1)", value)
        return self.add(rows, (size,), self.rng.choice((f"{value.name}.flip(-1)", f"{value.name}.roll(1, -1)")), value)

    def inner(self, rows: str) -> Value:
        value = self.recent(rows)
        if not value.shape:
            return self.unary(rows)
        name = value.name
        forms = (
            (f"{name}.sum(-1)", value.shape[:-1]),
            (f"{name}.mean(-1, keepdim=True)", (*value.shape[:-1], 1)),
            (f"({name} + self.shift#).amax(-1)", value.shape[:-1]),
            (f"{name}.var(-1, unbiased=False)", value.shape[:-1]),
            (f"{name}.square().sum(-1, keepdim=True).add(0.2).sqrt()", (*value.shape[:-1], 1)),
            (f"torch.logsumexp({name}, -1)", value.shape[:-1]),
            (f"{name}.cumsum(-1)", value.shape),
        )
        text, shape = self.rng.choice(forms)
        members = {"shift": self.parameter(value.shape[-1])} if "shift" in text else {}
        return self.add(rows, shape, text, value, **members)

    def part(self, rows: str) -> Value:
        value = self.recent(rows)
        if not value.shape or value.shape[-1] < 2:
            return self.unary(rows)
        size, name = value.shape[-1], value.name
        cut = self.rng.randint(1, size - 1)
        half = size // 2
        forms = (
            (f"{name}[..., :{cut}]", cut),
            (f"{name}[..., {cut}:]", size - cut),
            (f"{name}[..., ::2]", (size + 1) // 2),
            (f"{name}.narrow(-1, {cut}, {size - cut})", size - cut),
            (f"F.glu({name}[..., :{2 * half}], -1)", half),
            (f"{name}.chunk(2, -1)[1]", size - (size + 1) // 2),
            (f"{name}[..., {[0, size - 1, 0]}]", 3),
        )
        text, out = self.rng.choice(forms)
        return self.add(rows, (*value.shape[:-1], out), text, value)

    def attention_vector(self, rows: str) -> Value:
        """A number per head from a learned vector."""
        value = self.recent(rows)
        if not value.shape:
            return self.unary(rows)
        text = self.rng.choice(
            (f"({value.name} * self.vector#).sum(-1)", f"({value.name} * self.vector#).sum(dim=-1, keepdim=True)")
        )
        shape = (*value.shape[:-1], 1) if "keepdim" in text else value.shape[:-1]
        return self.add(rows, shape, text, value, vector=self.parameter(*value.shape))

    # --- steps of edges only

    def select(self, rows: str) -> Value:
        value = self.recent("edge")
        axes = ", 1" * len(value.shape)
        condition = self.rng.choice(
            ("src != dst", "relation == 1", "src < dst", "edge_weight > 0.9", "(relation > 0) & (src != dst)")
        )
        mask = f"({condition}).view(-1{axes})"
        forms = (
            f"torch.where({mask}, {value.name}, 0.5 * {value.name})",
            f"{value.name} * {mask}",
            f"{value.name}.masked_fill(~{mask}, 0.0)",
            f"torch.where({mask}, {value.name}, torch.zeros_like({value.name}))",
        )
        return self.add("edge", value.shape, self.rng.choice(forms), value)

    def relation_weight(self, rows: str) -> Value:
        """A learned row per relation, or what was computed per relation."""
        found = self.of("relation")
        if found and self.rng.random() < 0.5:
            return self.add("edge", found[-1].shape, f"{found[-1].name}[relation]", found[-1])
        shape = self.rng.choice(((self.width,), (self.heads, 1), (1,)))
        text = self.rng.choice(("self.table#[relation]", "self.table#.index_select(0, relation)"))
        if len(shape) == 1 and self.rng.random() < 0.3:
            text = "F.embedding(relation, self.table#)"
        return self.add("edge", shape, text, table=self.parameter(NUM_RELATIONS, *shape))

    def own_matrix(self, rows: str) -> Value:
        """A product with another matrix for every edge."""
        value = self.flat(self.recent("edge"))
        (size,) = value.shape
        if size > 8:
            return self.unary("edge")
        out = self.rng.choice((1, 2, 4))
        source = self.flat(self.rng.choice(self.of("edge")))
        matrix = self.add(
            "edge", (size, out), f"torch.tanh(self.lin#({source.name})).view(-1, {size}, {out})", source,
            lin=f"nn.Linear({source.shape[0]}, {size * out})",
        )  # fmt: skip
        text = self.rng.choice(
            (
                f"torch.bmm({value.name}.unsqueeze(1), {matrix.name}).squeeze(1)",
                f"({value.name}.unsqueeze(-1) * {matrix.name}).sum(1)",
                f"torch.einsum('ec,ecd->ed', {value.name}, {matrix.name})",
                f"torch.matmul({value.name}.unsqueeze(1), {matrix.name}).squeeze(1)",
            )
        )
        return self.add("edge", (out,), text, value, matrix)

    def scores(self) -> Value:
        """A softmax over the edges of a row."""
        value = self.recent("edge")
        index = self.rng.choice(("dst", "dst", "dst", "src"))
        score = self.add("edge", value.shape, f"3.0 * torch.tanh({value.name})", value)
        if self.short_indices:
            shifted = self.add("edge", value.shape, f"torch.exp({score.name})", score)
            total = self.add(
                "node", value.shape, f"{self.zeros('num_nodes', shifted)}.index_add(0, {index}, {shifted.name})", shifted
            )
            weight = self.add("edge", value.shape, f"{shifted.name} / ({total.name}[{index}] + 1e-16)", shifted, total)
        else:
            weight = self.add("edge", value.shape, f"softmax({score.name}, {index}, num_nodes=num_nodes)", score)
        other = self.rng.choice(self.of("edge"))
        left, right, shape = self.aligned(weight, other)
        return self.add("edge", shape, f"{left} * {right}", weight, other)

    # --- between rows

    def gather(self, value: Value | None = None) -> Value:
        value = value or self.recent("node")
        index = self.rng.choice(("src", "src", "dst"))
        forms = [f"{value.name}[{index}]", f"{value.name}.index_select(0, {index})", f"{value.name}[{index}, ...]"]
        if not self.short_indices:
            if len(value.shape) == 1:
                forms += [f"torch.gather({value.name}, 0, {index}.unsqueeze(-1).expand(-1, {value.shape[0]}))"]
                forms += [f"F.embedding({index}, {value.name})"]
            forms += (
                [f"torch.take_along_dim({value.name}, {index}{'[:, None]' * len(value.shape)}, 0)"]
                if len(value.shape) < 2
                else []
            )
            forms += [f"{value.name}[edge_index[{int(index == 'dst')}]]"]
        return self.add("edge", value.shape, self.rng.choice(forms), value)

    def zeros(self, count: str, value: Value) -> str:
        return f"{value.name}.new_zeros({', '.join([count, *map(str, value.shape)])})"

    def reduce(self, value: Value, rows: str = "") -> Value:
        """Edges to nodes, to relations, or to graphs."""
        rng = self.rng
        rows = rows or rng.choice(("node", "node", "node", "node", "relation"))
        index, count = (
            ("relation", str(NUM_RELATIONS)) if rows == "relation" else (rng.choice(("dst", "dst", "src")), "num_nodes")
        )
        return self.segment(value, rows, index, count)

    def pool(self) -> Value:
        value = self.segment(self.recent("node"), "graph", "batch", str(NUM_GRAPHS))
        if self.rng.random() < 0.5:
            return value
        again = self.add("node", value.shape, f"{value.name}[batch]", value)
        return self.add("node", value.shape, f"torch.tanh({again.name})", again)

    def segment(self, value: Value, rows: str, index: str, count: str) -> Value:
        rng, name = self.rng, value.name
        zeros, expanded = self.zeros(count, value), f"{index}.view(-1{', 1' * len(value.shape)}).expand_as({name})"
        sums = [f"{zeros}.index_add(0, {index}, {name})", f"$ = {zeros}\n$.index_add_(0, {index}, {name})"]
        if self.short_indices:
            return self.add(rows, value.shape, rng.choice(sums), value)
        own = str(rng.random() < 0.5)
        sums += [
            f"scatter({name}, {index}, 0, {count}, 'sum')",
            f"{zeros}.scatter_add(0, {expanded}, {name})",
            f"{zeros}.index_put(({index},), {name}, accumulate=True)",
            f"$ = {zeros}\n$.scatter_add_(0, {expanded}, {name})",
            f"{zeros}.scatter_reduce(0, {expanded}, {name}, 'sum')",
            f"0.5 * {zeros}.index_add(0, {index}, {name}, alpha=2)",
        ]
        means = [
            f"scatter({name}, {index}, 0, {count}, 'mean')",
            f"{zeros}.scatter_reduce(0, {expanded}, {name}, 'mean', include_self={own})",
            f"{zeros}.index_add(0, {index}, {name}) / degree({index}, {count}).clamp(min=1).view(-1{', 1' * len(value.shape)})",
        ]
        largest = [
            f"scatter({name}, {index}, 0, {count}, '{rng.choice(('max', 'min'))}')",
            f"{zeros}.scatter_reduce(0, {expanded}, {name}, '{rng.choice(('amax', 'amin'))}', include_self=False)",
            f"({zeros} + 0.25).scatter_reduce(0, {expanded}, {name}, '{rng.choice(('amax', 'amin'))}', include_self=True)",
        ]
        products = [f"torch.ones_like({zeros}).scatter_reduce(0, {expanded}, 1.0 + 0.01 * torch.tanh({name}), 'prod')"]
        mean = f"scatter({name}, {index}, 0, {count}, 'mean').square()"
        deviations = [f"(scatter({name}.square(), {index}, 0, {count}, 'mean') - {mean} + 0.1).sqrt()"]
        kind = rng.choices((sums, means, largest, products, deviations), (6, 4, 5, 0.3, 1))[0]
        return self.add(rows, value.shape, rng.choice(kind), value)
