"""What `plait.explain` says is right, and asking leaves nothing behind."""

from __future__ import annotations

import copy
import json
import pathlib
import random
import subprocess
import sys

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import EdgeConv, GATConv, GCNConv
from typer.testing import CliRunner

import plait
from plait.tools import cli
from plait.tools.explain_capture import Access, ProgramReport

N, E, F, C = 7, 11, 3, 5
FLOAT, INT32, INT64 = 4, 4, 8
AS_WRITTEN = {"order": "as_written"}  # the product before the sum over edges, whatever that costs on this machine


def small_graph(num_nodes: int = N, num_edges: int = E) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    edge_index[1] = (edge_index[0] + 1) % num_nodes  # no self-loops
    return torch.randn(num_nodes, F, generator=generator), edge_index


def programs_of(explanation: plait.Explanation) -> dict[str, ProgramReport]:
    return {
        program.name: program
        for capture in explanation.captures
        for direction in capture.directions
        for program in direction.programs
    }


def bytes_by_name(accesses: tuple[Access, ...]) -> dict[str, int | None]:
    return {access.name: access.bytes for access in accesses}


class TwoLayers(nn.Module):
    """Everything that could be disturbed: parameters, buffers, random draws, an attribute that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GATConv(F, C, dropout=0.5)
        self.norm = nn.BatchNorm1d(C)
        self.conv2 = GCNConv(C, C)
        self.last: Tensor | None = None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.norm(self.conv1(x, edge_index)).relu()
        self.last = self.conv2(h, edge_index)
        return self.last


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(F, C), GCNConv(C, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv1(x, edge_index)
        torch._dynamo.graph_break()
        return self.conv2(h, edge_index)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_bytes_of_a_sum_of_neighbours() -> None:
    x, edge_index = small_graph()
    layer = GCNConv(F, C, add_self_loops=False, normalize=False, bias=False)
    found = plait.explain(layer, x, edge_index, options=AS_WRITTEN)

    forward = programs_of(found)["forward_0"]
    assert forward.summary == "sum over the edges of each row"
    assert (forward.num_edges, forward.num_rows) == (E, N)
    product, *index = forward.reads
    assert (product.shape, product.bytes) == ((E, C), E * C * FLOAT)  # gathered: a row for each edge, not for each node
    assert product.how.startswith("by ")
    assert sorted(access.bytes or 0 for access in index) == sorted([(N + 1) * INT64, E * INT32])
    assert forward.read_bytes == E * C * FLOAT + (N + 1) * INT64 + E * INT32
    assert forward.written_bytes == N * C * FLOAT
    assert forward.unwritten_bytes == E * C * FLOAT  # the gathered rows


def test_bytes_of_gcn_with_self_loops() -> None:
    """The size of the graph with its self-loops is known to nobody while compiling, and is in the report all the same."""
    x, edge_index = small_graph()
    found = plait.explain(GCNConv(F, C, bias=False), x, edge_index, options=AS_WRITTEN)

    forward = programs_of(found)["forward_0"]
    edges = E + N
    weight, indptr, index, edge_id = edges * FLOAT, (N + 1) * INT64, edges * INT32, edges * INT32
    assert forward.num_edges == edges
    assert forward.read_bytes == edges * C * FLOAT + weight + indptr + index + edge_id
    assert forward.written_bytes == N * C * FLOAT
    assert forward.unwritten_bytes == 2 * edges * C * FLOAT  # gathered rows, and the same times the weight


def test_backward_reads_the_gradient_by_dst() -> None:
    x, edge_index = small_graph()
    layer = GCNConv(F, C, add_self_loops=False, normalize=False, bias=False)
    found = plait.explain(layer, x, edge_index, options=AS_WRITTEN)

    assert found.mode == "training"
    backward = programs_of(found)["backward_0"]
    assert backward.read_bytes == E * C * FLOAT + (N + 1) * INT64 + E * INT32
    assert backward.rows != programs_of(found)["forward_0"].rows


def test_gat_keeps_node_tensors_only_and_recomputes_edges() -> None:
    x, edge_index = small_graph()
    (capture,) = plait.explain(GATConv(F, C, heads=2), x, edge_index).captures

    assert capture.cached
    assert all(access.shape[0] == N for access in capture.cached)
    assert capture.cached_bytes == sum(access.bytes or 0 for access in capture.cached)
    assert any("exp" in name for name in capture.recomputed)
    assert any("edge_index" in access.source for access in capture.structure)


def test_inference_has_nothing_to_keep() -> None:
    x, edge_index = small_graph()
    found = plait.explain(GATConv(F, C), x, edge_index, backward=False)

    assert found.mode == "inference"
    (capture,) = found.captures
    assert [direction.direction for direction in capture.directions] == ["inference"]
    assert capture.cached == ()


def test_moved_products_are_named() -> None:
    x, edge_index = small_graph()
    (capture,) = plait.explain(EdgeConv(nn.Linear(2 * F, C)), x, edge_index).captures

    assert any("product of edge rows moved" in text for text, _ in capture.moved)


def test_parameters_have_the_names_the_user_gave_them() -> None:
    x, edge_index = small_graph(num_nodes=1000, num_edges=4000)
    found = plait.explain(TwoLayers(), x, edge_index)

    sources = {access.source for program in programs_of(found).values() for access in program.reads}
    assert "conv1.bias" in sources
    assert {program.module for program in programs_of(found).values()} >= {"conv1 (GATConv)", "conv2 (GCNConv)"}


# --- what is not fused -----------------------------------------------------------------------------------------------


def test_a_model_without_edges_says_that_nothing_was_fused() -> None:
    found = plait.explain(nn.Linear(F, C), torch.ones(N, F))

    assert found.num_programs == 0
    assert "nothing was fused" in str(found).splitlines()[0]


def test_fallbacks_are_listed_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.capture import assemble
    from plait.errors import CompilerError

    def no_compiler(programs: object) -> None:
        raise CompilerError("no C++ compiler was found")

    monkeypatch.setattr(assemble, "compile_programs", no_compiler)
    monkeypatch.setenv("PLAIT_STRICT", "1")  # listed, not raised
    x, edge_index = small_graph()
    found = plait.explain(GCNConv(F, C), x, edge_index)

    assert found.fallbacks == ("build: no C++ compiler was found",)
    assert "build: no C++ compiler was found" in str(found)
    assert programs_of(found)["forward_0"].engine == "interpreter"


def test_graph_breaks_are_listed() -> None:
    x, edge_index = small_graph()
    found = plait.explain(Broken(), x, edge_index)

    assert len(found.captures) == 2
    assert len(found.graph_breaks) == 1
    assert "graph_break" in found.graph_breaks[0]


def test_explaining_often_does_not_meet_the_limit_of_recompilations() -> None:
    x, edge_index = small_graph()
    model = Broken()
    with torch._dynamo.config.patch(recompile_limit=2):
        counts = {plait.explain(model, x, edge_index).num_programs for _ in range(4)}

    assert len(counts) == 1
    assert counts != {0}


# --- ways to call it -------------------------------------------------------------------------------------------------


def test_functions_keywords_and_compiled_models() -> None:
    x, edge_index = small_graph()
    layer = GCNConv(F, C)

    def model(features: Tensor, *, ends: Tensor) -> Tensor:
        return layer(features, ends)

    named = plait.explain(model, x, ends=edge_index, options=AS_WRITTEN)
    compiled = plait.explain(torch.compile(layer, backend="plait"), x, edge_index, options=AS_WRITTEN)

    assert named.model == "model"
    assert compiled.model == "GCNConv"
    assert named.num_programs == compiled.num_programs == 2


def test_json_holds_everything() -> None:
    x, edge_index = small_graph()
    found = plait.explain(GATConv(F, C), x, edge_index)
    read = json.loads(found.to_json())

    assert read["captures"][0]["directions"][0]["programs"][0]["read_bytes"] == programs_of(found)["forward_0"].read_bytes


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(plait.errors.OptionError, match="unknown option 'colour'; valid options: rest"):
        plait.explain(nn.Linear(F, C), torch.ones(N, F), options={"colour": "red"})


def test_the_command_prints_text_or_json(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def model(x, src, dst):\n"
        "    return torch.zeros_like(x).index_add(0, dst, x[src])\n"
        "def make():\n"
        "    return model, (torch.ones(3, 4), torch.tensor([0, 1]), torch.tensor([1, 2]))\n"
    )
    text = CliRunner().invoke(cli.app, ["explain", f"{file}:make"])
    as_json = CliRunner().invoke(cli.app, ["explain", f"{file}:make", "--json"])

    assert (text.exit_code, as_json.exit_code) == (0, 0)
    assert "model, inference: 1 fused program" in text.output
    assert json.loads(as_json.output)["mode"] == "inference"


def test_importing_plait_imports_no_optional_package() -> None:
    code = "import sys, plait; sys.exit(bool({'torch_geometric', 'matplotlib', 'rich', 'typer'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- nothing is left behind ------------------------------------------------------------------------------------------


def test_model_inputs_gradients_and_random_state_are_untouched() -> None:
    x, edge_index = small_graph()
    x.requires_grad_()
    model = TwoLayers()
    model(x, edge_index).sum().backward()
    model.last = None
    state = copy.deepcopy(model.state_dict())
    gradients = [None if item.grad is None else item.grad.clone() for item in (x, *model.parameters())]
    held = [item.grad for item in (x, *model.parameters())]
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()  # noqa: NPY002

    plait.explain(model, x, edge_index)

    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    for item, grad, old in zip((x, *model.parameters()), gradients, held, strict=True):
        assert item.grad is old
        assert grad is None or (old is not None and torch.equal(old, grad))
    assert model.last is None
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (numpy.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_a_pending_backward_still_works() -> None:
    """The graph the input hangs on is not run, and nothing a forward has saved is written to."""
    x, edge_index = small_graph()
    weight = torch.ones(F, requires_grad=True)
    model = TwoLayers().eval()
    scaled = x * weight
    loss = model(scaled, edge_index).sum()

    plait.explain(model, scaled, edge_index)
    loss.backward()

    assert weight.grad is not None


def test_the_users_compiled_model_is_not_compiled_again() -> None:
    x, edge_index = small_graph()
    model = GATConv(F, C)
    compiled = torch.compile(model, backend="plait")
    compiled(x, edge_index)
    torch._dynamo.utils.counters.clear()

    plait.explain(model, x, edge_index)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(x, edge_index)


def test_an_input_the_model_writes_to_is_untouched() -> None:
    def model(x: Tensor, edge_index: Tensor) -> Tensor:
        x.mul_(2.0)
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])

    x, edge_index = small_graph()
    expected = x.clone()
    plait.explain(model, x, edge_index)

    assert torch.equal(x, expected)
