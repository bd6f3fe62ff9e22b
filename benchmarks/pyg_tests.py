"""PyG's own tests of its layers, aggregations and models, with every module compiled.

    python benchmarks/pyg_tests.py --pyg-source PATH --store FILE       # PATH: a checkout of pytorch_geometric
    python benchmarks/pyg_tests.py --pyg-source PATH --engines plain plait --only nn/conv/test_gcn_conv.py
    python benchmarks/pyg_tests.py --pyg-source PATH --store FILE --markdown    # the tables, of what the store holds

Copies the tests to a temporary directory, nothing changed, and runs them with pytest three times: as they are (plain); with
Dynamo's own back end `eager`, which compiles nothing; and through `plait.compile`. There every PyG module that a test calls is
compiled at its first call (`pyg_tests_plugin.py`). What fails as it is (missing packages, downloads) is not counted, and a test
that calls no module of PyG's, or only scripted ones, is counted apart.

One process runs many files. A file that takes longer than `--seconds` is ended and counted as failed, as is a test that takes
the process with it; the other files go on in a new one. With `--store` a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

FOLDERS = ("nn/conv", "nn/aggr", "nn/models")
ENGINES = ("plain", "eager", "plait")

Result = dict[str, Any]  # state, message, modules (that were compiled), programs (that were fused), seconds
Store = dict[str, dict[str, dict[str, Result]]]  # engine, file, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyg-source", required=True, type=pathlib.Path, help="a checkout of pytorch_geometric")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--only", nargs="*", default=list(FOLDERS), help="folders or files, below test/")
    parser.add_argument("--seconds", type=int, default=900, help="at most, for a file")
    parser.add_argument("--most", type=int, default=0, help="sets of parameters of one test at most, spread evenly; 0: all")
    parser.add_argument("--store", type=pathlib.Path, help="results are kept in this file, and not computed again")
    parser.add_argument("--again", action="store_true", help="run the files of --only anew")
    parser.add_argument(
        "--again-failed", action="store_true", help="run those anew in which a test failed that passes as it is"
    )
    parser.add_argument("--markdown", action="store_true", help="run nothing, print the tables")
    arguments = parser.parse_args()
    os.environ["PYG_TESTS_MOST"] = str(arguments.most)
    store: Store = {engine: {} for engine in ENGINES}
    if arguments.store and arguments.store.exists():
        store |= json.loads(arguments.store.read_text())
    if not arguments.markdown:
        names = files(arguments.pyg_source / "test", arguments.only)
        for engine in dict.fromkeys(("plain", *arguments.engines)):
            wanted = [name for name in names if is_wanted(store, engine, name, arguments.again, arguments.again_failed)]
            with tempfile.TemporaryDirectory() as folder:
                run(
                    arguments.pyg_source / "test",
                    pathlib.Path(folder),
                    engine,
                    wanted,
                    store,
                    arguments.store,
                    arguments.seconds,
                )
    return show(store)


def files(tests: pathlib.Path, only: list[str]) -> list[str]:
    found = [
        path
        for item in only
        for path in sorted((tests / item).glob("test_*.py") if (tests / item).is_dir() else [tests / item])
    ]
    return [str(path.relative_to(tests)) for path in found]


def is_wanted(store: Store, engine: str, name: str, again: bool, again_failed: bool) -> bool:
    if name not in store[engine] or (again and engine != "plain"):
        return True
    return again_failed and engine != "plain" and any(is_wrong(store, engine, name, test) for test in store[engine][name])


def is_wrong(store: Store, engine: str, name: str, test: str) -> bool:
    return store["plain"][name].get(test, {}).get("state") == "passed" and store[engine][name][test]["state"] != "passed"


def run(
    tests: pathlib.Path,
    folder: pathlib.Path,
    engine: str,
    names: list[str],
    store: Store,
    kept: pathlib.Path | None,
    limit: int,
) -> None:
    """Runs the files, in as many processes as it takes, and puts what they say into the store."""
    shutil.copy(tests / "conftest.py", folder / "conftest.py")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tests / name, folder / name)
    left = list(names)
    while left:
        done: set[str] = set()

        def keep(lines: list[Result], done: set[str] = done) -> None:
            for name, results in by_file(lines).items():
                store[engine][name] = results
                done.add(name)
            if kept:
                kept.write_text(json.dumps(store, indent=1))

        run_process(folder, engine, left, limit, keep)
        if not done:
            raise SystemExit(f"pytest does not start:\n{(folder / 'output.txt').read_text()[-2000:]}")
        left = [name for name in left if name not in done]


def by_file(lines: list[Result]) -> dict[str, dict[str, Result]]:
    """The last line of each test; one that began and did not end took the process with it."""
    found: dict[str, dict[str, Result]] = {}
    for line in lines:
        result = {name: item for name, item in line.items() if name not in ("file", "test")}
        if result["state"] == "begins":
            result = {
                "state": "failed",
                "message": "the process died, or the file was out of time",
                "modules": 1,
                "programs": 0,
            }
        found.setdefault(line["file"], {})[line["test"]] = result
    return found


def run_process(folder: pathlib.Path, engine: str, names: list[str], limit: int, keep: Callable[[list[Result]], None]) -> None:
    """One process of pytest; `keep` gets what it wrote of files that are done, and in the end of the last one."""
    here = pathlib.Path(__file__).parent
    results = folder / "results.jsonl"
    results.write_text("")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pyg_tests_plugin", "-W", "ignore"]
    command += ["--import-mode=importlib", "--tb=short", "--rootdir", str(folder), "-o", "addopts=", *names]
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    # sets of parameters come from sets, whose order would choose others with --most in every process
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYG_TESTS_ENGINE": engine,
        "PYG_TESTS_RESULTS": str(results),
        "PYTHONPATH": path,
    }

    def lines() -> list[Result]:
        return [json.loads(line) for line in results.read_text().splitlines(keepends=True) if line.endswith("\n")]

    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    file, waited = "", 0.0  # what it has waited, not what a clock says: the whole run may be paused
    while process.poll() is None and waited < limit:
        time.sleep(0.5)
        waited += 0.5
        written = lines()
        if written and written[-1]["file"] != file:
            file, waited = written[-1]["file"], 0.0
            print(f"{engine}: {file}", flush=True)
            keep([line for line in written if line["file"] != file])
    if process.poll() is None:
        process.kill()
        process.wait()
    if written := lines():
        keep(written)


def show(store: Store) -> int:
    """The tables; 1 if a test fails under plait that passes as it is."""
    print("| | files run, of | tests | pass under Dynamo's `eager` | pass under plait | of these with a kernel |")
    print("|---|---|---|---|---|---|")
    every: collections.Counter[str] = collections.Counter()
    for folder in FOLDERS:
        counts = count(store, folder)
        every += counts
        row(f"`{folder}`", counts)
    row("all", every)
    failures = 0
    for engine in ("eager", "plait"):
        names = [name for name in store[engine] if name in store["eager"] and name in store["plait"]]
        wrong = [(name, test) for name in names for test in store[engine][name] if is_wrong(store, engine, name, test)]
        failures += len(wrong) * (engine == "plait")
        print(f"\nUnder {engine} {len(wrong)} fail:\n")
        by_reason: dict[str, list[str]] = {}
        for name, test in wrong:
            lines = store[engine][name][test].get("message", "").splitlines() or ["?"]
            by_reason.setdefault(lines[0][:160], []).append(f"`{pathlib.Path(name).stem}::{test}`")
        for reason, tests in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            print(f"- {len(tests)}: {reason}: {', '.join(tests)}")
    return int(failures > 0)


def row(title: str, counts: collections.Counter[str]) -> None:
    names = ("tests", "eager", "plait", "programs")
    print(f"| {title} | {counts['run']}, {counts['files']} | {' | '.join(str(counts[name]) for name in names)} |")


def count(store: Store, folder: str) -> collections.Counter[str]:
    """Of a folder: files; tests that pass as they are, compile a module and were run by both engines; those that pass."""
    counts: collections.Counter[str] = collections.Counter()
    for name, plain in store["plain"].items():
        if not name.startswith(folder):
            continue
        eager, plait = store["eager"].get(name, {}), store["plait"].get(name, {})
        counts["files"] += 1
        counts["run"] += bool(eager and plait)
        for test in (item for item in plait if item in eager and plain.get(item, {}).get("state") == "passed"):
            if not plait[test]["modules"]:
                continue
            passes = plait[test]["state"] == "passed"
            counts += collections.Counter(
                tests=1,
                eager=eager[test]["state"] == "passed",
                plait=passes,
                programs=passes and plait[test]["programs"] > 0,
            )
    return counts


if __name__ == "__main__":
    sys.exit(main())
