"""The command line: messages instead of tracebacks, exit codes, files where they were asked for."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from plait.tools import cli
from plait.tools import train as training

SMALL = "powerlaw:nodes=60,edges=300,features=8,classes=3"


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.output


def test_help_lists_the_commands_without_importing_the_large_extras() -> None:
    code = "import sys; from plait.tools import cli; sys.exit('torch_geometric' in sys.modules or 'matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    status, text = run("--help")
    assert status == 0
    assert all(command in text for command in ("train", "bench", "doctor", "explain", "clear-cache"))


def test_train_prints_a_summary(tmp_path: pathlib.Path) -> None:
    status, text = run("train", SMALL, "--engine", "eager", "--epochs", "2", "--out", str(tmp_path))

    assert status == 0
    assert all(word in text for word in ("test accuracy", "time per epoch", "peak memory"))
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--model", "gta"), "model 'gta': no such model; valid: gcn, sage"),
        (("train", "nowhere.npz", "--engine", "eager"), "nowhere.npz: no such file"),
        (("train", "--engine", "inductro"), "engine 'inductro'"),
        (("train", "--epochs", "0"), "epochs: expected at least 1, got 0"),
        (("train", "--compare", "--engine", "eager"), "--compare runs eager beside another engine"),
        (("bench", "--models", "gta"), "model 'gta': no such model; valid: gcn, gcn_plain"),
        (("bench", "--graphs", "corra"), "graph 'corra': no such graph"),
        (("bench", "--graphs", "powerlaw:many"), "expected NODES/EDGES as in powerlaw:20k/1M"),
        (("bench", "--rounds", "0"), "rounds: expected at least 1, got 0"),
        (("explain", "nowhere.py:make"), "expected FILE.py:FUNCTION with a file that exists"),
    ],
)
def test_misuse_is_a_message_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: pathlib.Path) -> None:
    out = ("--out", str(tmp_path)) if arguments[0] == "train" else ()
    status, text = run(*arguments, *out)

    assert status == cli.MISUSED
    assert message in text
    assert "Traceback" not in text


def test_an_unknown_option_is_named() -> None:
    status, text = run("train", "--colour", "red")

    assert status == cli.MISUSED
    assert "--colour" in text


def test_interrupting_exits_130(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    status, text = run("train", "--engine", "eager", "--out", str(tmp_path))

    assert status == cli.INTERRUPTED
    assert "interrupted" in text


def test_explain_wants_a_model_and_its_inputs(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    return 3\n")
    status, text = run("explain", f"{file}:make")

    assert status == cli.MISUSED
    assert "expected the function to return (model, inputs)" in text


def test_explain_names_a_function_that_is_not_there(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("")
    status, text = run("explain", f"{file}:make")

    assert status == cli.MISUSED
    assert "has no function 'make'" in text
