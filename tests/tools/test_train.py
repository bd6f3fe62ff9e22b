"""The training loop: it learns, stops, resumes and writes what it says; and when two engines agree."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pathlib
from collections.abc import Iterator

import pytest
import torch

from plait.errors import DataError, OptionError
from plait.tools.compare import EngineRuns, compare, judge, run_child
from plait.tools.models import MODELS, ModelSpec
from plait.tools.train import Summary, TrainOptions, train

SMALL = "powerlaw:nodes=60,edges=300,features=8,classes=3"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's own scatter gives the same bits every time with one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(out: pathlib.Path, **changes: object) -> TrainOptions:
    return dataclasses.replace(TrainOptions(data=SMALL, engine="eager", epochs=4, out=str(out)), **changes)  # type: ignore[arg-type]


def lines(out: pathlib.Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_digits_are_learned_in_few_epochs(tmp_path: pathlib.Path) -> None:
    summary = train(TrainOptions(engine="eager", model=ModelSpec(name="gcn"), epochs=25, out=str(tmp_path)))

    assert summary.test_accuracy > 0.9
    assert 0 < summary.epoch_s < 10
    assert summary.peak_bytes >= summary.loaded_bytes > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_a_step(tmp_path: pathlib.Path, name: str) -> None:
    summary = train(options(tmp_path, model=ModelSpec(name=name, width=16), epochs=1))

    assert summary.losses[0] > 0


def test_it_writes_json_lines_and_a_picture(tmp_path: pathlib.Path) -> None:
    train(options(tmp_path))

    assert [line["kind"] for line in lines(tmp_path)] == ["options", *["epoch"] * 4, "summary"]
    assert {"epoch", "loss", "val_loss", "train_accuracy", "val_accuracy", "step_s", "eval_s"} <= lines(tmp_path)[1].keys()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path: pathlib.Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(options(whole, epochs=6))
    train(options(parts, epochs=3))
    got = train(options(parts, epochs=6, resume=True))

    assert got.losses == expected.losses
    assert (got.test_accuracy, got.best_epoch) == (expected.test_accuracy, expected.best_epoch)
    states = [torch.load(out / "last.pt", weights_only=True)["model"] for out in (whole, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert [line.get("epoch") for line in lines(parts)] == [line.get("epoch") for line in lines(whole)]


def test_it_stops_when_validation_does_not_improve(tmp_path: pathlib.Path) -> None:
    # a learning rate this small changes no prediction, so the first epoch stays the best but for the last bits of the loss
    summary = train(options(tmp_path, epochs=50, patience=3, lr=1e-30))

    assert summary.stopped_early
    assert summary.num_epochs == summary.best_epoch + 3


def test_nothing_to_resume_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"last\.pt: no checkpoint to resume from"):
        train(options(tmp_path, resume=True))


def test_a_broken_checkpoint_is_named(tmp_path: pathlib.Path) -> None:
    train(options(tmp_path, epochs=1))
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 cut short")

    with pytest.raises(DataError, match=r"last\.pt: not a readable checkpoint"):
        train(options(tmp_path, resume=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: pathlib.Path) -> None:
    train(options(tmp_path, epochs=1))

    with pytest.raises(OptionError, match=r"--resume: .*another run: model: .*'gat'.* in the checkpoint, .*'gcn'"):
        train(options(tmp_path, resume=True, model=ModelSpec(name="gcn")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gta"}, "model 'gta': no such model; valid: gcn, sage"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1, got 1.0"),
        ({"width": 30, "heads": 4}, "width: 30 cannot be shared by 4 heads"),
    ],
)
def test_wrong_model_options_are_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ModelSpec(**changes)  # type: ignore[arg-type]


def test_an_unknown_engine_lists_the_known_ones(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=r"(?s)engine 'inductro'.*eager, inductor, plait"):
        train(options(tmp_path, engine="inductro"))


# comparing


def runs(engine: str, losses: tuple[float, ...], accuracies: tuple[float, ...]) -> EngineRuns:
    """What a comparison looks at, made up."""
    common = {"data": "d", "model": "gat", "num_epochs": 1, "stopped_early": False, "best_epoch": 1, "val_accuracy": 0.9}
    rest = {
        "num_test": 1000,
        "epoch_s": 1.0,
        "first_epoch_s": 1.0,
        "peak_bytes": 2,
        "loaded_bytes": 1,
        "losses": (),
        "notes": (),
    }
    summaries = tuple(
        Summary(engine=engine, seed=seed, test_accuracy=accuracy, **common, **rest)  # type: ignore[arg-type]
        for seed, accuracy in enumerate(accuracies)
    )
    return EngineRuns(engine=engine, summaries=summaries, losses=losses)


def test_losses_within_rounding_agree() -> None:
    checks = judge(runs("eager", (2.0, 1.5), (0.9,)), runs("plait", (2.000001, 1.50001), (0.9,)), dropout=0.0)

    assert [check.passed for check in checks] == [True]


@pytest.mark.parametrize("wrong", [(2.0, 1.51), (2.0, float("nan"))])
def test_losses_that_differ_do_not_agree(wrong: tuple[float, ...]) -> None:
    (check,) = judge(runs("eager", (2.0, 1.5), (0.9,)), runs("plait", wrong, (0.9,)), dropout=0.0)

    assert not check.passed


def test_with_dropout_accuracies_may_differ_by_noise_and_no_more() -> None:
    eager = runs("eager", (2.0,), (0.90, 0.91, 0.92))
    near, far = runs("plait", (2.0,), (0.91, 0.92, 0.90)), runs("plait", (2.0,), (0.80, 0.81, 0.79))

    assert all(check.passed for check in judge(eager, near, dropout=0.5))
    assert [check.passed for check in judge(eager, far, dropout=0.5)] == [True, False]


def test_compare_runs_each_engine_in_a_process_of_its_own(tmp_path: pathlib.Path) -> None:
    model = ModelSpec(name="gcn", width=8, dropout=0.0)
    result = compare(options(tmp_path, engine="eager_noexcept", epochs=2, model=model))

    assert result.agrees
    assert [runs.engine for runs in (result.reference, result.candidate)] == ["eager", "eager_noexcept"]
    assert (tmp_path / "eager_noexcept" / "seed-0" / "metrics.jsonl").exists()


def test_compare_passes_on_what_went_wrong_in_a_process(tmp_path: pathlib.Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        run_child(sender, options(tmp_path, data="gone.npz"), (0,), None)
        told = receiver.recv()

    assert isinstance(told, DataError)
    assert "gone.npz: no such file" in str(told)
