"""PyTorch Geometric's layers, aggregations, norms, typed graphs and models: right, fused, faster? Prints a table.

usage: python benchmarks/coverage.py [--cases GCNConv ...] [--group Convolutions ...] [--stages check time]
       [--store FILE.json] [--part 2/9] [--nodes 20000] [--edges 200000] [--width 64] [--markdown FILE]

Per case, in stages that may run in different processes and meet in the store:
check    outputs, buffers and the gradients of all float inputs and parameters against eager on a small awkward graph, sizes
         marked dynamic; captures; graph breaks; programs; what was left, and why
time     on the large graph: training steps of the engines, in turns; then the widest tensor with a row per edge that forward
         and backward make, in columns per edge, seen by a dispatch mode that knows nothing of plait
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import resource
import signal
import subprocess
import time
import warnings

from coverage_cases import GROUPS
from coverage_graph import Case
from coverage_measure import Row, check, large_graph, take_times
from coverage_table import as_markdown, page, summary

log = logging.getLogger(__name__)
CASES: dict[str, tuple[str, Case]] = {
    f"{group}/{name}": (group, case) for group, cases in GROUPS.items() for name, case in cases.items()
}


def load(path: pathlib.Path | None) -> dict[str, Row]:
    if path is None or not path.exists():
        return {}
    return {item["name"]: Row(**item) for item in json.loads(path.read_text())}


def save(path: pathlib.Path | None, rows: dict[str, Row]) -> None:
    if path is not None:
        path.write_text(json.dumps([dataclasses.asdict(row) for row in rows.values()], indent=1))


def chosen(arguments: argparse.Namespace) -> list[str]:
    names = [
        key
        for key, (group, _) in CASES.items()
        if (not arguments.group or group in arguments.group)
        and (not arguments.cases or any(key == item or key.partition("/")[2].startswith(item) for item in arguments.cases))
    ]
    part, _, parts = arguments.part.partition("/")
    return names[int(part) - 1 :: int(parts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="*", help="names, or beginnings of names")
    parser.add_argument("--group", nargs="*", choices=list(GROUPS))
    parser.add_argument("--stages", nargs="*", default=["check"], choices=["check", "time", "none"])
    parser.add_argument("--engines", nargs="*", default=["eager", "inductor", "plait"], choices=["eager", "inductor", "plait"])
    parser.add_argument("--store", type=pathlib.Path, help="results by case, read and added to")
    parser.add_argument("--part", default="1/1", help="2/9: the second of nine parts")
    parser.add_argument("--todo", action="store_true", help="only what the store has no result of yet")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further case after so long")
    parser.add_argument("--limit", type=int, default=300, help="seconds per case")
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--markdown", type=pathlib.Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # what takes more fails, and is said to, where the system would end the whole run
    most = int(0.9 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    store = load(arguments.store)
    names = chosen(arguments)
    began = time.monotonic()
    for name in names:
        row = store.get(name, Row(name))
        if time.monotonic() - began > arguments.seconds:
            break
        if "none" in arguments.stages or (arguments.todo and is_done(row, arguments.stages)):
            continue
        examine(row, arguments)
        row.commit = commit
        store = load(arguments.store) | {name: row}
        save(arguments.store, store)
        print(as_markdown([row]).splitlines()[-1], flush=True)
    rows = [store[name] for name in names if name in store]
    if arguments.markdown:
        arguments.markdown.write_text(page(rows, arguments.markdown))
    print(f"\n{summary(rows)}")


def is_done(row: Row, stages: list[str]) -> bool:
    done = {"check": row.is_right is not None, "time": bool(row.times_ms)}
    return bool(row.error or row.eager_error) or all(done[stage] for stage in stages)


def examine(row: Row, arguments: argparse.Namespace) -> None:
    case = CASES[row.name][1]
    row.error = ""
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(arguments.limit)
    try:
        if "check" in arguments.stages:
            check(row, case, arguments.width)
        if "time" in arguments.stages:
            take_times(row, case, large_graph(arguments.nodes, arguments.edges, arguments.width), arguments.engines)
    except Exception as error:  # a table of what works must not end where something does not
        row.error = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        log.exception("%s", row.name)
    finally:
        signal.alarm(0)


def _out_of_time(number: int, frame: object) -> None:
    raise TimeoutError("took longer than the limit")


if __name__ == "__main__":
    main()
