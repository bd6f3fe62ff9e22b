"""What the pages show is true: marked code runs, links lead somewhere, and how-it-works.md is what the compiler prints."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch_geometric

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MARK = "python run"  # ```python run


def blocks() -> Iterator[tuple[pathlib.Path, int, str]]:
    """(page, line, code) of every block that is marked to be run."""
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(rf"^```{MARK}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield page, text[: found.start()].count("\n") + 2, found[1]


BLOCKS = list(blocks())


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS, ids=[f"{page.name}:{line}" for page, line, _ in BLOCKS])
def test_code_block_runs(page: pathlib.Path, line: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = types.ModuleType(f"{page.stem}_{line}".replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Dynamo looks the globals of a function up there
    # blank lines above, so that a traceback names the line of the page
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: pathlib.Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    missing = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]

    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_no_directory_of_a_machine(page: pathlib.Path) -> None:
    assert not re.findall(r"(?<![\w.~])/(?:home|root|work|tmp|usr|opt)/\S*", page.read_text())


def test_how_it_works_shows_what_the_compiler_prints() -> None:
    page = (DOCS / "how-it-works.md").read_text()
    versions = re.search(r"with\s+torch (\S+)\s+and\s+PyTorch\s+Geometric\s+(\S+)\.", page)
    assert versions is not None
    here = (torch.__version__.partition("+")[0], torch_geometric.__version__)
    if versions.groups() != here:
        pytest.skip(f"the page was written with torch {versions[1]} and PyG {versions[2]}, which print other graphs")
    script = subprocess.run(
        [sys.executable, str(DOCS / "make_how_it_works.py"), "--print"], capture_output=True, text=True, check=False
    )

    assert script.returncode == 0, script.stderr
    assert script.stdout == page, "run: python docs/make_how_it_works.py, and read the diff"
