"""Test accuracy of sampled against full-batch training, five seeds each or more.

    python benchmarks/loader_accuracy.py planetoid/pubmed.npz nodeclass/coauthor_physics.npz    # files under PLAIT_DATA

GraphSAGE, two layers; sampled: fan-outs 15, 10, batches of 1,024 training nodes. Prints mean and standard deviation over seeds,
and the difference in units of its standard error. With --fanout -1 -1 both train on the same edges.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import statistics
import tempfile

from plait.tools.data import SourceOptions
from plait.tools.models import ModelSpec
from plait.tools.train import TrainOptions, train
from plait.tools.train_sampled import LoaderSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--fanout", type=int, nargs=2, default=[15, 10])
    parser.add_argument("--engine", default="plait")
    given = parser.parse_args()
    base = pathlib.Path(os.environ.get("PLAIT_DATA", "."))
    for file in given.files:
        found: dict[str, list[float]] = {}
        for kind in ("full", "neighbor"):
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                with tempfile.TemporaryDirectory() as out:
                    options = TrainOptions(
                        data=str(base / file),
                        source=SourceOptions(seed=seed),
                        model=ModelSpec(name="sage", width=64),
                        loader=LoaderSpec(kind=kind, fanout=tuple(given.fanout)),
                        engine=given.engine,
                        epochs=given.epochs,
                        seed=seed,
                        out=out,
                    )
                    found.setdefault(kind, []).append(100 * train(options).test_accuracy)
            values = found[kind]
            print(
                f"{file:32} {kind:9} {statistics.mean(values):6.2f} +- {statistics.stdev(values):.2f} %  {values}", flush=True
            )
        full, sampled = found["full"], found["neighbor"]
        error = math.sqrt((statistics.variance(full) + statistics.variance(sampled)) / given.seeds)
        difference = statistics.mean(sampled) - statistics.mean(full)
        print(
            f"{file:32} difference {difference:+.2f} points, {difference / max(error, 1e-9):+.1f} standard errors", flush=True
        )


if __name__ == "__main__":
    main()
