"""Results of `plait bench --json`, several files put together, as one Markdown table.

    python benchmarks/table.py [--memory] results/*.json

A line per graph and layer: milliseconds of a training step, median and quartiles, by engine, and how many times faster plait is
than the better of eager and Inductor, in training and in inference, than torch.sparse where that can do the layer, and than
DGL. With --memory: the megabytes a step holds beyond what was there before the model saw the graph. A column that no file has
anything for is left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Any]  # by engine
ENGINES = {"eager": "eager", "inductor": "Inductor", "torch_sparse": "torch.sparse", "dgl": "DGL", "plait": "plait"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    places: list[tuple[str, str]] = []
    rows: list[Results] = []
    for path in arguments.files:
        found = json.loads(path.read_text())
        width = found["options"]["width"]
        for cell in found["cells"]:
            graph = cell["graph"] if width == 128 else f"{cell['graph']}, {width} features"
            places.append((graph, cell["model"]))
            rows.append({item["engine"]: item for item in cell["results"]})
    columns = {name: [column(row) for row in rows] for name, column in (MEMORY if arguments.memory else TIMES).items()}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    print("| " + " | ".join(["graph", "layer", *columns]) + " |")
    print("|" + "---|" * (2 + len(columns)))
    for number, place in enumerate(places):
        print("| " + " | ".join([*place, *(cells[number] for cells in columns.values())]) + " |")


def shown(result: dict[str, Any] | None) -> str:
    """Milliseconds with the quartiles; why there are none; nothing for an engine that cannot run the layer."""
    if result is None:
        return ""
    if result["error"] is not None or result["train"] is None:
        return str(result["error"] or "")
    low, median, high = (1e3 * result["train"][key] for key in ("low", "median", "high"))
    digits = 1 if median < 100 else 0
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def megabytes(result: dict[str, Any] | None) -> str:
    held = result and result.get("extra_bytes")
    return f"{held / 1e6:.0f}" if held else ""


def ratio(results: Results, kind: str, others: tuple[str, ...]) -> str:
    """Times faster than the best of the others."""
    times = [results[name][kind]["median"] for name in others if name in results and results[name][kind] is not None]
    mine = results["plait"][kind]
    return f"{min(times) / mine['median']:.2f}" if times and mine else ""


def _by_engine(cell: Callable[[dict[str, Any] | None], str]) -> dict[str, Callable[[Results], str]]:
    return {name: lambda results, engine=engine: cell(results.get(engine)) for engine, name in ENGINES.items()}  # type: ignore[misc]


MEMORY: dict[str, Callable[[Results], str]] = _by_engine(megabytes)
TIMES: dict[str, Callable[[Results], str]] = {
    **_by_engine(shown),
    "training": lambda results: ratio(results, "train", ("eager", "inductor")),
    "inference": lambda results: ratio(results, "infer", ("eager", "inductor")),
    "over torch.sparse": lambda results: ratio(results, "train", ("torch_sparse",)),
    "over DGL": lambda results: ratio(results, "train", ("dgl",)),
}


if __name__ == "__main__":
    main()
