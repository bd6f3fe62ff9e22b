"""What every test shares: where kernels are kept, how many threads, how many examples, where real graphs are."""

from __future__ import annotations

import gc
import getpass
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

# Two processes of two threads on two cores: a thread that spins while it waits for another one takes the core that one needs.
# Read when torch loads OpenMP, therefore before it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = pathlib.Path(__file__).parent
sys.path.insert(
    0, str(TESTS.parent)
)  # `from tests.check import ...`: with --import-mode=importlib only `python -m pytest` does it

# Stable, so that kernels built by one test process are there for the next one; never the user's own cache.
os.environ["PLAIT_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir()) / f"plait-tests-{getpass.getuser()}")

torch.set_num_threads(2)

# Compiling makes objects by the million, nearly all for good: looking through them for garbage took a tenth of the time.
gc.set_threshold(100_000, 50, 1000)
torch._dynamo.config.run_gc_after_compile = False

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("local", max_examples=30, **COMMON)
settings.register_profile("ci", max_examples=50, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the expected files under tests/golden again")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The directory of real graphs; tests that need it are skipped where there is none."""
    given = os.environ.get("PLAIT_DATA")
    if given:
        candidates = [pathlib.Path(given)]
    else:
        repository = TESTS.parent
        candidates = [above / "shared" / "data" for above in (repository, *repository.parents)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        pytest.skip("no real graphs: set PLAIT_DATA, or put them in shared/data beside the repository")
    return found


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def assert_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """assert_golden("gat.cpp", text): text equals tests/golden/gat.cpp; `--update-golden` writes it instead."""

    def check(name: str, text: str) -> None:
        path = TESTS / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path.name} is missing: run pytest --update-golden and read the diff"
        assert text == path.read_text(), f"{path.name} differs: run pytest --update-golden and read the diff"

    return check
