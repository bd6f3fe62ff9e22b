"""`plait train --loader neighbor`: it learns, and goes on in the middle of an epoch as if nothing had happened."""

from __future__ import annotations

import pathlib

import pytest
import torch

from plait.errors import OptionError
from plait.loader import blocks
from plait.tools import train as training
from plait.tools.data import load
from plait.tools.models import MODELS, ModelSpec, NodeClassifier
from plait.tools.train_sampled import BlockClassifier, LoaderSpec, SampledEpochs

SMALL = "powerlaw:nodes=300,edges=1500,features=8,classes=3"


def options(out: pathlib.Path, **given: object) -> training.TrainOptions:
    defaults = {
        "data": "digits",
        "model": ModelSpec(name="sage"),
        "loader": LoaderSpec(kind="neighbor", fanout=(8, 4), batch_size=128),
        "engine": "eager",
        "epochs": 3,
        "out": str(out),
    }
    return training.TrainOptions(**(defaults | given))  # type: ignore[arg-type]


def test_it_learns(tmp_path: pathlib.Path) -> None:
    summary = training.train(options(tmp_path))

    assert summary.losses[-1] < summary.losses[0]
    assert summary.test_accuracy > 0.9


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_runs_on_batches(name: str) -> None:
    graph = load(SMALL)
    spec = ModelSpec(name=name, width=8, heads=2)
    torch.manual_seed(0)
    model = NodeClassifier(spec, 8, 3)
    sampled = SampledEpochs(LoaderSpec(kind="neighbor", batch_size=64), spec, graph, 0, model, "eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    assert 0 < sampled.run(optimizer, lambda: None) < 100


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"gcn"}))  # its normalisation is by the degrees inside the batch
def test_all_neighbours_give_the_scores_of_the_whole_graph(name: str) -> None:
    graph = load(SMALL)
    spec = ModelSpec(name=name, width=8, heads=2)
    torch.manual_seed(0)
    model = NodeClassifier(spec, 8, 3).eval()
    sampled = SampledEpochs(LoaderSpec(kind="neighbor", fanout=(-1, -1), batch_size=64), spec, graph, 0, model, "eager")
    expected = model(graph.x, *training.edge_inputs(spec, graph.edge_index, graph.num_nodes))
    for batch in sampled.loader:
        positions = (batch.position,) if name == "monet" else ()
        found = BlockClassifier(model, spec).eval()(batch.x, blocks(batch), *positions)

        assert torch.allclose(found, expected[batch.n_id[: batch.batch_size]], atol=1e-5)


class StoppedError(Exception):
    pass


def test_resuming_in_the_middle_of_an_epoch_changes_nothing() -> None:
    def start() -> tuple[NodeClassifier, torch.optim.Optimizer, SampledEpochs]:
        torch.manual_seed(0)
        spec = ModelSpec(name="sage", width=8, dropout=0.0)
        model = NodeClassifier(spec, 8, 3)
        sampled = SampledEpochs(LoaderSpec(kind="neighbor", batch_size=32), spec, load(SMALL), 0, model, "eager")
        return model, torch.optim.Adam(model.parameters(), lr=0.01), sampled

    model, optimizer, sampled = start()
    expected = [sampled.run(optimizer, lambda: None) for _ in range(2)]
    saved: list[dict[str, object]] = []

    def stop_after_two() -> None:
        saved.append({"model": first.state_dict(), "optimizer": first_optimizer.state_dict(), "sampled": first_sampled.state()})
        if len(saved) == 2:
            raise StoppedError

    first, first_optimizer, first_sampled = start()
    with pytest.raises(StoppedError):
        first_sampled.run(first_optimizer, stop_after_two)
    second, second_optimizer, second_sampled = start()
    second.load_state_dict(saved[1]["model"])  # type: ignore[arg-type]
    second_optimizer.load_state_dict(saved[1]["optimizer"])  # type: ignore[arg-type]
    second_sampled.restore(saved[1]["sampled"])  # type: ignore[arg-type]

    assert [second_sampled.run(second_optimizer, lambda: None) for _ in range(2)] == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))


def test_a_run_resumes_with_its_checkpoint(tmp_path: pathlib.Path) -> None:
    whole = training.train(options(tmp_path / "whole", data=SMALL, epochs=4))
    training.train(options(tmp_path / "parts", data=SMALL, epochs=2))
    parts = training.train(options(tmp_path / "parts", data=SMALL, epochs=4, resume=True))

    assert parts.losses == whole.losses


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ({"kind": "cluster"}, "loader 'cluster': no such loader; valid: full, neighbor"),
        ({"kind": "neighbor", "batch_size": 0}, "batch-size: expected at least 1, got 0"),
        ({"kind": "neighbor", "fanout": (5,)}, "one number for each of the 2 layers, got 1"),
    ],
)
def test_what_cannot_be_asked_for(loader: dict[str, object], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=message):
        options(tmp_path, loader=LoaderSpec(**loader))  # type: ignore[arg-type]
