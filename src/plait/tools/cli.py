"""The `plait` command. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:
    raise SystemExit(f"plait: the command line needs {missing.name!r}. Install it: pip install 'plait[train]'") from None

from plait.errors import DataError, OptionError, PlaitError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


class Commands(TyperGroup):
    """Turns what plait raises on purpose, and Ctrl-C, into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PlaitError as error:
            notes = getattr(error, "__notes__", [])
            typer.secho("\n".join([f"error: {error}", *notes]), fg="red", err=True)
            raise typer.Exit(MISUSED if isinstance(error, (OptionError, DataError)) else FAILED) from None
        except ModuleNotFoundError as missing:
            if not missing.name or missing.name.split(".")[0] not in ("torch_geometric", "sklearn", "matplotlib", "rich"):
                raise
            typer.secho(f"error: this command needs {missing.name!r}: pip install 'plait[train]'", fg="red", err=True)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            typer.secho("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def plait() -> None:
    """A compiler for graph neural networks."""


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="digits, FILE.npz, pyg:NAME, rmat:nodes=N,edges=E or powerlaw:...")] = "digits",
    model: Annotated[str, typer.Option(help="gcn, sage, gin, gat, gatv2, transformer, monet or edgeconv")] = "gat",
    layers: Annotated[int, typer.Option(help="number of layers")] = 2,
    width: Annotated[int, typer.Option(help="hidden width, all heads together")] = 64,
    heads: Annotated[int, typer.Option(help="attention heads")] = 4,
    dropout: Annotated[float, typer.Option(help="dropout of features and of attention")] = 0.5,
    loader: Annotated[str, typer.Option(help="full, or neighbor: batches of sampled neighbours")] = "full",
    fanout: Annotated[str, typer.Option(help="neighbor: neighbours per hop, as 15,10,5; -1 for all")] = "",
    batch_size: Annotated[int, typer.Option(help="neighbor: training nodes a batch")] = 1024,
    epochs: Annotated[int, typer.Option(help="at most so many epochs")] = 200,
    patience: Annotated[int, typer.Option(help="stop after so many epochs without a better validation accuracy")] = 50,
    lr: Annotated[float, typer.Option(help="learning rate of Adam")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="weight decay of Adam")] = 5e-4,
    seed: Annotated[int, typer.Option(help="seed of weights, dropout and drawn splits")] = 0,
    engine: Annotated[str, typer.Option(help="plait, eager, inductor or another back end of torch.compile")] = "plait",
    compare: Annotated[
        bool, typer.Option("--compare", help="also run the un-compiled model, and check that both agree")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="number of threads (default: what PyTorch takes)")] = None,
    out: Annotated[str, typer.Option(help="directory of metrics, picture and checkpoints")] = "runs/train",
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")] = False,
    split: Annotated[int, typer.Option(help="which of several published splits")] = 0,
    random_split: Annotated[bool, typer.Option("--random-split", help="draw a split where the data has none")] = False,
    download_dir: Annotated[str, typer.Option(help="where downloaded data goes", envvar="PLAIT_DATA")] = "data",
) -> None:
    """Train node classification, and say how well, how fast and in how much memory."""
    from plait.tools import screen
    from plait.tools import train as training
    from plait.tools.data import SourceOptions
    from plait.tools.models import ModelSpec
    from plait.tools.train_sampled import LoaderSpec

    options = training.TrainOptions(
        data=data,
        source=SourceOptions(split=split, random_split=random_split, seed=seed, download_dir=download_dir),
        model=ModelSpec(name=model, layers=layers, width=width, heads=heads, dropout=dropout),
        loader=LoaderSpec(kind=loader, fanout=_numbers("fanout", fanout), batch_size=batch_size),
        engine=engine,
        epochs=epochs,
        patience=patience,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        out=out,
        resume=resume,
    )
    if compare:
        _compare(options)
        return
    with screen.watch_training(f"{model}, {engine}", options) as on_epoch:
        summary = training.train(options, on_epoch)
    screen.show_summary(summary, out)


def _compare(options: Any) -> None:
    from plait.tools import screen
    from plait.tools.compare import compare

    if options.resume:
        raise OptionError("--compare runs from the start; leave --resume out")
    if options.engine == "eager":
        raise OptionError("--compare runs eager beside another engine; name that one with --engine")
    result = compare(options, watch=screen.watch_training)
    screen.show_comparison(result, options)
    if not result.agrees:
        raise PlaitError(f"{options.engine} and eager disagree, see above")


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="layers, or loader: preparing batches and training on them")] = "layers",
    models: Annotated[str, typer.Option(help="names with commas between; default: all")] = "",
    graphs: Annotated[
        str,
        typer.Option(help="powerlaw:20k/1M, cora-sized, cora, ... or FILE.npz; with @F features are projected to F columns"),
    ] = "",
    engines: Annotated[
        str,
        typer.Option(help="eager, inductor, plait, torch_sparse, other back ends, or FILE.py:FUNCTION, which gets the model"),
    ] = "eager,inductor,plait,torch_sparse",
    quick: Annotated[bool, typer.Option("--quick", help="five layers on one generated graph, three rounds")] = False,
    rounds: Annotated[int, typer.Option(help="turns per engine, at most")] = 9,
    width: Annotated[int, typer.Option(help="features of generated graphs, in and out")] = 128,
    threads: Annotated[int | None, typer.Option(help="threads of every engine (default: the processors there are)")] = None,
    data: Annotated[str | None, typer.Option(help="directory of .npz files; adds the real graphs", envvar="PLAIT_DATA")] = None,
    dgl_python: Annotated[str | None, typer.Option(help="an interpreter that has DGL, which adds it as an engine")] = None,
    inference: Annotated[bool, typer.Option(help="also time inference")] = True,
    memory: Annotated[bool, typer.Option(help="also measure memory and first calls with full caches")] = True,
    memory_limit: Annotated[float | None, typer.Option(help="GB an engine may take (default: 85 % of what is free)")] = None,
    json: Annotated[str | None, typer.Option(help="write everything measured to this file")] = None,
    png: Annotated[str | None, typer.Option(help="draw the results to this file")] = None,
    torch_sparse: Annotated[str | None, typer.Option(help="loader: a built library of torch-sparse's operators")] = None,
) -> None:
    """Time engines side by side on the same layers and graphs, after checking that they give the same numbers."""
    import os

    if what == "loader":
        _bench_loader(graphs, quick=quick, rounds=rounds, threads=threads, json=json, torch_sparse=torch_sparse)
        return
    if what != "layers":
        raise OptionError(f"bench {what!r}: expected layers or loader")

    from plait.tools.bench import driver, run

    plan = run.make_plan(_names(models), _names(graphs), quick=quick, data_dir=data, json=json, png=png)
    options = driver.BenchOptions(
        engines=_names(engines) + (("dgl",) if dgl_python else ()),
        rounds=min(rounds, 3) if quick else rounds,
        seconds=15.0 if quick else driver.BenchOptions.seconds,
        width=width,
        threads=threads or os.cpu_count() or 1,
        data_dir=data,
        dgl_python=dgl_python,
        with_inference=inference,
        with_memory=memory,
        memory_limit_bytes=round(memory_limit * 1e9) if memory_limit else driver.default_memory_limit(),
    )
    if run.has_wrong_engine(run.run(plan, options)):
        raise PlaitError("an engine gave other numbers than eager, see above")


def _bench_loader(
    graphs: str, *, quick: bool, rounds: int, threads: int | None, json: str | None, torch_sparse: str | None
) -> None:
    import os

    from plait.tools.bench.loader import LoaderBenchOptions, run

    options = LoaderBenchOptions(
        graph=graphs or LoaderBenchOptions.graph,
        threads=threads or os.cpu_count() or 1,
        rounds=1 if quick else min(rounds, 3),
        num_batches=5 if quick else LoaderBenchOptions.num_batches,
        json=json,
        torch_sparse=torch_sparse,
    )
    run(options, typer.echo)


def _numbers(what: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise OptionError(f"{what}: expected whole numbers with commas between, as 15,10,5, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.command()
def explain(
    target: Annotated[str, typer.Argument(help="FILE.py:FUNCTION; the function returns (model, inputs)")],
    backward: Annotated[bool, typer.Option(help="explain training; else inference")] = True,
    eager: Annotated[bool, typer.Option(help="also run the un-compiled model, to count what it moves")] = True,
    measure: Annotated[bool, typer.Option("--measure", help="also time the programs and the step")] = False,
    json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
    html: Annotated[str | None, typer.Option(help="write a page with the data flow, before and after, to this file")] = None,
) -> None:
    """Print what plait does with a model: what it saves, programs fused, what is kept, every fallback and its reason."""
    from plait.tools.explain import explain as explained
    from plait.tools.pyfile import load_function

    made = load_function(target)()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], (tuple, list)):
        raise OptionError(f"explain {target!r}: expected the function to return (model, inputs), inputs a tuple, got {made!r}")
    model, inputs = made
    found = explained(model, *inputs, backward=backward, eager=eager, measure=measure)
    if html is not None:
        _write_page(found.to_html(), html)
    typer.echo(found.to_json() if json else str(found).rstrip())


@app.command()
def tune() -> None:
    """Measure anew what the order of products and propagations is chosen by, and store it for this machine."""
    from plait.capture.tune import remeasure

    try:
        costs = remeasure()
    except OSError as error:
        raise PlaitError(
            f"tune: the result cannot be stored: {error}\n  Set PLAIT_CACHE_DIR to a directory you own."
        ) from error
    typer.echo("nanoseconds per edge to gather and add a row, one thread; rows of so many bytes, from a table of so many")
    typer.echo(f"{'':>12}" + "".join(f"{size:>9}" for size in costs.row_bytes))
    for table, line in zip(costs.table_bytes, costs.gather_s, strict=True):
        typer.echo(f"{table:>12}" + "".join(f"{1e9 * seconds:9.1f}" for seconds in line))
    typer.echo(f"matrix products {costs.product_flops / 1e9:.0f} GFLOP/s, rows in order {costs.stream_bytes / 1e9:.1f} GB/s")


def _write_page(page: str, file: str) -> None:
    import pathlib

    try:
        pathlib.Path(file).write_text(page, encoding="utf8")
    except OSError as error:
        raise DataError(f"--html {file}: cannot be written: {error.strerror or error}") from error


@app.command()
def doctor() -> None:
    """Check the installation, compile one kernel, and say what to do about whatever is wrong."""
    from plait.tools.doctor import examine, show

    findings = examine()
    show(findings)
    if any(finding.is_essential_failure for finding in findings):
        raise typer.Exit(FAILED)


@app.command(name="clear-cache")
def clear_cache() -> None:
    """Delete the built kernels on disk and the structure kept in memory."""
    import plait

    clear = getattr(plait, "clear_cache", None)
    if clear is None:
        raise PlaitError("clear-cache: this build of plait has no plait.clear_cache")
    clear()
    from plait.config import environment

    typer.echo(f"cleared {environment().cache_dir}")


def main() -> None:
    """The entry point of the `plait` script."""
    app(prog_name="plait")


if __name__ == "__main__":
    main()
