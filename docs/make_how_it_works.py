"""Writes docs/how-it-works.md: one GATConv through every stage, with what each stage really printed.

    python docs/make_how_it_works.py            writes the page
    python docs/make_how_it_works.py --print    prints it instead

The page is the same on every machine: sizes and seeds are fixed, the excerpt of C++ is generated for 256-bit vectors, and paths
begin at the package.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import sys
import tempfile
import warnings

import torch
import torch_geometric

PAGE = pathlib.Path(__file__).parent / "how-it-works.md"
EXCERPT_LINES = 75

LAYER = """\
layer = GATConv(16, 8, heads=2)  # everything else at its default: self-loops are removed and added again
x = torch.randn(1000, 16)
edge_index = torch.randint(1000, (2, 5000))
print(plait.explain(layer, x, edge_index))"""

HEAD = """\
<!-- written by docs/make_how_it_works.py; edit that, and run it again after a change to the compiler -->

# How it works: one layer through every stage

This page follows one attention layer from PyTorch Geometric's code to C++ and shows what every stage printed, with
torch {torch} and PyTorch Geometric {pyg}. To see the same for a model of yours, set `PLAIT_DUMP=dir`; to see the
summary, call `plait.explain`. Three things were taken out for the reader: the ends of lines that only free variables
(`x = None`), the directories before a package's name, and the random part of the names of files that PyG generates.

```python
{layer}
```

The words: a *map* is an int vector from edges to nodes. `gather(x, map)` reads a node's row for every edge,
`segment_reduce(e, map, num_rows, reduce)` combines the edges of each node. An *edge program* is a fused region over one set of
edges. [design-notes.md](design-notes.md) says why things are the way they are.
"""

SECTIONS = """\
## 1. What Dynamo captured

`torch.compile` traces the layer's Python code, softmax, scatter and self-loops included, into one graph without a
break. `u0` is the number of edges that are no self-loops: nobody knows it before the layer runs.

{captured}

## 2. Canonicalised

The graph is traced to functional aten operators, still before autograd. The many spellings of gather and scatter are
then two operators, `plait.gather` and `plait.segment_reduce`. The softmax is not recognised as such: it is a max, an
exponential, a sum and a division, as in any layer somebody may invent.

{canonicalize}

After this, equal calls become one (`edge_index[1]` is read twice above), edge dropout becomes a counter-based draw
(none here), and what depends on one end of the edges moves to the nodes: products, and scores that are narrower than the
rows they are made of (none here: GATConv projects and scores before it gathers).

## 3. Structure

AOTAutograd then writes the joint graph of forward and backward. What depends on index tensors alone is cut out of it.
This graph runs once per graph, not once per step: its results are found again by the content of `edge_index`.

{forward_structure}

## 4. What is kept, what is computed again

Edge values are not kept for the backward. It gets copies of their computation, and these copies are fused into its
own kernels.

```text
{plan}
```

## 5. The forward's edge program

Everything between the gathers and the last reduction is one program. A *row* is a target node; `edge` values exist
for a few edges at a time, in registers. The first `segment_reduce` is the largest score of the row; its edges read it
again, and the reductions chain inside the row. What has a row per node and stands beside the edges, such as the bias,
joins.

{forward_0}

## 6. The backward's edge programs

The gradient of a gather is a segment reduction over the same map, so that one program runs over the rows of the
targets and one over the rows of the sources. The second needs a reduced value of the first, by another map: that is
the only reason for a second kernel.

{backward_1}

{backward_0}

## 7. Generated C++

The forward's program from its schedule on, for 256-bit vectors (`PLAIT_DUMP` writes the whole source). Before it was
printed, the program was factored: the division by the row's sum is the same for all edges of a row, and is done once
behind the loop. Rows are cut into tasks by their number of edges, and every row is summed in one order: the number of
threads cannot change a bit.

```cpp
{source}
```

## 8. The graph that runs

The matrix product stays PyTorch's, with a buffer that is used again. The rest are calls of kernels.

{forward_final}

## 9. What `plait.explain` says

```text
{explained}
```
"""


def page() -> str:
    """The text of the page."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PLAIT_DUMP"] = directory
        explained = explain_layer()
        (folder,) = pathlib.Path(directory).iterdir()
        stages = {path.stem.partition("_")[2]: path.read_text() for path in sorted(folder.glob("*.txt"))}
    blocks = {
        name: block("text", without_deletions(stages[name]))
        for name in ("captured", "canonicalize", "forward_structure", "forward_final")
    }
    blocks |= {name: block("text", stages[name]) for name in ("forward_0", "backward_0", "backward_1")}
    versions = {"torch": torch.__version__.partition("+")[0], "pyg": torch_geometric.__version__}
    sections = SECTIONS.format(**blocks, plan=plan(explained), source=source(), explained=explained.strip())
    return portable(HEAD.format(layer=LAYER, **versions) + "\n" + sections)


def explain_layer() -> str:
    import plait
    from plait.costs import BY_BYTES

    # without the times of this machine's memory, which the report would predict by
    explaining = importlib.import_module("plait.tools.explain")
    explaining.machine_costs = lambda: BY_BYTES  # type: ignore[attr-defined]
    names: dict[str, object] = {"plait": plait, "torch": torch, "GATConv": torch_geometric.nn.GATConv}
    torch.manual_seed(0)
    *setup, last = LAYER.splitlines()
    exec("\n".join(setup), names)
    return str(eval(last.removeprefix("print(").removesuffix(")"), names))


def plan(explained: str) -> str:
    """The paragraphs of the report about the plan."""
    paragraphs = explained.split("\n\n")
    return "\n\n".join(part for part in paragraphs if part.startswith(("kept for", "computed again")))


def source() -> str:
    """The C++ of the forward's program for a fixed machine, from its schedule on."""
    from plait.capture.record import RECORDS
    from plait.codegen.kernel import generate
    from plait.codegen.target import Target

    program = RECORDS[-1].programs["forward"][0]
    _, text = generate(program, Target(vector_bytes=32, registers=16), program.name)
    lines = text[text.index("// schedule") :].splitlines()
    return "\n".join(lines[:EXCERPT_LINES] + ["..."] * (len(lines) > EXCERPT_LINES))


def block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def without_deletions(text: str) -> str:
    return re.sub(r";  (?:\w+ = )+None$", "", text, flags=re.MULTILINE)


def portable(text: str) -> str:
    text = re.sub(r"(?<=File: )\S*/site-packages/", "", text)
    return re.sub(r"\S*/(torch_geometric\.[\w.]+)_\w{8}\.py", r"\1.py", text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "--print" in sys.argv:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())
