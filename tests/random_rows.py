"""Statements of random models that make a new value over the same rows: the steps of `tests.random_layers`."""

from __future__ import annotations

import random

from tests.random_models import EDGE_DIM, IN_CHANNELS, NUM_RELATIONS, Shape, Statement, Value

WIDTHS = (1, 3, 4, 5, 8, 16, 17)
HEADS = (1, 2, 3)


class Rows:
    """The statements so far, the values they made, and what a statement may do with a row."""

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

    # --- a new value over the same rows

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
            f"F.softsign({name})",
            f"F.tanhshrink({name})",
            f"torch.atan({name})",
            f"torch.sinh(torch.tanh({name}))",
            f"2.0 ** torch.tanh({name})",
            f"torch.logaddexp({name}, torch.sin({name}))",
            f"torch.nan_to_num({name})",
            f"torch.xlogy({name}, {name}.square() + 0.3)",
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
            f"F.hardsigmoid({name})",
            f"F.hardswish({name})",
            f"F.celu({name}, 0.7)",
            f"F.selu({name})",
            f"F.softshrink({name}, 0.2)",
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
        forms = (
            (f"torch.einsum('nhc,hcd->nhd', {value.name}, self.weight#)", (heads, out), (heads, size, out)),
            (f"torch.einsum('hcd,nhc->ndh', self.weight#, {value.name})", (out, heads), (heads, size, out)),
            (f"torch.einsum('nhc,hd->ncd', {value.name}, self.weight#)", (size, out), (heads, out)),
            (f"{value.name} @ self.weight#", (heads, out), (size, out)),
            (f"{value.name} @ self.weight#", (heads,), (size,)),
            (f"torch.einsum('nhc,hc->nh', {value.name}, self.weight#)", (heads,), (heads, size)),
            (f"self.weight# @ {value.name}", (out, size), (out, heads)),
        )
        if self.rng.random() < 0.8:
            text, shape, sizes = self.rng.choice(forms)
            return self.add(value.rows, shape, text, value, weight=self.parameter(*sizes, scale=scale))
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
            f"torch.addcdiv({left}, torch.tanh({left}), {right}.square() + 0.5)",
            f"({left} - {right}).square().add(0.1).sqrt()",
        )
        if a.shape == b.shape:
            forms += (
                f"F.smooth_l1_loss({left} + self.shift#, {right}, reduction='none', beta=0.7)",
                f"F.mse_loss({left}, {right}, reduction='none')",
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
            ("F.normalize($, p=1, dim=-1, eps=0.3)", ""),
            ("$ - $.mean(0)", ""),
            ("$ / ($.var(0) + 0.5)", ""),
            *([("self.norm#($)", f"nn.BatchNorm1d({size}, eps=0.1)")] * 2 if len(value.shape) == 1 else []),
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
            (f"({name} + self.shift#).max(-1)[0]", value.shape[:-1]),
            (f"({name} + 2.0).square().sum(-1).add(0.2).sqrt()", value.shape[:-1]),
            (f"F.cosine_similarity({name} + 0.1, torch.sin({name}) + 1.5, dim=-1)", value.shape[:-1]),
            (f"F.pairwise_distance({name}, torch.cos({name}) + 0.2)", value.shape[:-1]),
            (f"torch.linalg.vecdot({name}, torch.tanh({name}))", value.shape[:-1]),
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
            (f"{name}.split([{cut}, {size - cut}], -1)[0]", cut),
            (f"F.pad({name}, (1, 0))", size + 1),
            (f"{name}[..., {[0, size - 1, 0]}]", 3),
        )
        text, out = self.rng.choice(forms)
        return self.add(rows, (*value.shape[:-1], out), text, value)

    def heads_of_edges(self, rows: str) -> Value:
        """Products of what a row has in several heads: scores, and matrices with each other."""
        value = self.recent(rows)
        if len(value.shape) != 2:
            return self.view(rows)
        heads, size = value.shape
        name, other = value.name, self.bounded(value)
        forms = (
            (f"torch.einsum('ehc,ehc->eh', {name}, {other})", (heads,)),
            (f"torch.einsum('ehc,ekc->ehk', {name}, {other})", (heads, heads)),
            (f"{name} @ {other}.transpose(1, 2)", (heads, heads)),
            (f"({name}.transpose(1, 2) @ {other}).mean(1)", (size,)),
            (f"({other} * {name}).unbind(1)[0]", (size,)),
        )
        text, shape = self.rng.choice(forms)
        return self.add(rows, shape, text, value)

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
        if self.rng.random() < 0.2:
            members = {"weight": self.parameter(out, size, size)}
            return self.add("edge", (out,), f"F.bilinear({value.name}, {self.bounded(value)}, self.weight#)", value, **members)
        text = self.rng.choice(
            (
                f"torch.bmm({value.name}.unsqueeze(1), {matrix.name}).squeeze(1)",
                f"({value.name}.unsqueeze(-1) * {matrix.name}).sum(1)",
                f"torch.einsum('ec,ecd->ed', {value.name}, {matrix.name})",
                f"torch.matmul({value.name}.unsqueeze(1), {matrix.name}).squeeze(1)",
            )
        )
        return self.add("edge", (out,), text, value, matrix)
