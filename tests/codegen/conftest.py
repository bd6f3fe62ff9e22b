from __future__ import annotations

import os

import pytest


@pytest.fixture
def update_golden() -> bool:
    """PLAIT_UPDATE_GOLDEN=1 writes the golden files instead of comparing with them."""
    return os.environ.get("PLAIT_UPDATE_GOLDEN", "0") != "0"
