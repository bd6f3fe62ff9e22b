"""Random layers, by seed: gathers, steps over the same rows (`tests.random_rows`), softmax, reductions."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.random_models import NUM_GRAPHS, NUM_RELATIONS, RandomModel, Value
from tests.random_rows import Rows


def random_model(seed: int, *, num_layers: int | None = None, short_indices: bool = False) -> RandomModel:
    """A model of one to three layers, the same for the same seed. short_indices: only operators that eager PyTorch runs with
    int32 indices."""
    rng = random.Random(seed)
    draft = _Draft(rng, short_indices)
    for _ in range(num_layers or rng.choice((1, 1, 1, 2, 2, 3))):
        draft.layer()
    return draft.model()


class _Draft(Rows):
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

    def both_ends(self) -> None:
        """The rows of both ends, gathered at once."""
        value = self.recent("node")
        pairs = f"{value.name}[edge_index]"
        forms = [
            (f"{pairs}.sum(0)", value.shape),
            (f"({pairs}[0] - {pairs}[1])", value.shape),
            (f"$, other = {pairs}\n$ = torch.tanh($) * other", value.shape),
            (f"{pairs}.mean(0)", value.shape),
        ]
        if value.shape:
            first, *rest = value.shape
            forms.append((f"{value.name}[edge_index.t()].flatten(1, 2)", (2 * first, *rest)))
        text, shape = self.rng.choice(forms)
        self.add("edge", shape, text, value)

    def ends(self) -> None:
        """Both ends of an edge, side by side or combined, and often what the edge has itself."""
        if self.rng.random() < 0.15 and not self.short_indices:
            self.both_ends()
            return
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
            self.heads_of_edges,
        ]
        if rows == "edge":
            steps += [self.select, self.relation_weight, self.own_matrix]
        return self.rng.choice(steps)(rows)

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
