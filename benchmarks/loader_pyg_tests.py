"""PyG's own tests of its NeighborLoader and LinkNeighborLoader, run against plait's.

    python benchmarks/loader_pyg_tests.py --pyg-source PATH    # a checkout of pytorch_geometric

Copies the two test files to a temporary directory with the loaders' import changed, declares the samplers they ask for as
installed (plait stands in for them), and runs pytest. Nothing else is changed. Prints the pass rate and every difference.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

FILES = ("test_neighbor_loader.py", "test_link_neighbor_loader.py")
IMPORT = re.compile(r"^from torch_geometric\.loader import (NeighborLoader|LinkNeighborLoader)$", re.MULTILINE)

# Tests are asked for by decorators and flags that look for pyg-lib and torch-sparse: both are said to be there.
CONFTEST = """
import pytest
import torch_geometric.testing
import torch_geometric.typing

for flag in ("WITH_PYG_LIB", "WITH_TORCH_SPARSE", "WITH_EDGE_TIME_NEIGHBOR_SAMPLE", "WITH_WEIGHTED_NEIGHBOR_SAMPLE"):
    setattr(torch_geometric.typing, flag, True)
looked_for = torch_geometric.testing.withPackage
torch_geometric.testing.onlyNeighborSampler = lambda test: test
torch_geometric.testing.withPackage = lambda *names: looked_for(
    *[name for name in names if not name.startswith(("pyg_lib", "pyg-lib", "torch_sparse"))]
)


@pytest.fixture
def get_dataset():
    from torch_geometric.testing.data import get_random_edge_index  # noqa: F401
    pytest.skip("downloads a data set")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyg-source", required=True, type=pathlib.Path, help="a checkout of pytorch_geometric")
    tests = parser.parse_args().pyg_source / "test" / "loader"
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder)
        (target / "conftest.py").write_text(CONFTEST)
        for name in FILES:
            (target / name).write_text(IMPORT.sub(r"from plait.loader import \1", (tests / name).read_text()))
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore", folder]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
