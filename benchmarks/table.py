"""Results of `plait bench --json`, several files put together, as one Markdown table.

    python benchmarks/table.py results/*.json

A line per graph and layer: milliseconds of a training step, median and quartiles, and how many times faster plait is than the
better of eager and Inductor, in training and in inference, and than torch.sparse where that can do the layer.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

ENGINES = ("eager", "inductor", "torch_sparse", "plait")
HEAD = ("graph", "layer", "eager", "Inductor", "torch.sparse", "plait", "training", "inference", "over torch.sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for path in parser.parse_args().files:
        found = json.loads(path.read_text())
        for cell in found["cells"]:
            print(line(cell, found["options"]["width"]))


def line(cell: dict[str, Any], width: int) -> str:
    """One line of the table."""
    results = {item["engine"]: item for item in cell["results"]}
    times = [shown(results.get(engine)) for engine in ENGINES]
    graph = cell["graph"] if width == 128 else f"{cell['graph']}, {width} features"
    ratios = [
        ratio(results, "train", ("eager", "inductor")),
        ratio(results, "infer", ("eager", "inductor")),
        ratio(results, "train", ("torch_sparse",)),
    ]
    return "| " + " | ".join((graph, cell["model"], *times, *ratios)) + " |"


def shown(result: dict[str, Any] | None) -> str:
    """Milliseconds with the quartiles; why there are none; nothing for an engine that cannot run the layer."""
    if result is None:
        return ""
    if result["error"] is not None or result["train"] is None:
        return str(result["error"] or "")
    low, median, high = (1e3 * result["train"][key] for key in ("low", "median", "high"))
    digits = 1 if median < 100 else 0
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(results: dict[str, Any], kind: str, others: tuple[str, ...]) -> str:
    """Times faster than the best of the others."""
    times = [results[name][kind]["median"] for name in others if name in results and results[name][kind] is not None]
    mine = results["plait"][kind]
    return f"{min(times) / mine['median']:.2f}" if times and mine else ""


if __name__ == "__main__":
    main()
