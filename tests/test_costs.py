"""Measured costs: what is read between the measured points, and the file they are kept in."""

from __future__ import annotations

import json
import pathlib

import pytest

from plait.capture import tune
from plait.costs import BY_BYTES, Costs, load, store
from plait.errors import PlaitError

COSTS = Costs(
    row_bytes=(16, 64, 256),
    table_bytes=(1 << 10, 1 << 20),
    gather_s=((1e-9, 2e-9, 8e-9), (1e-8, 2e-8, 8e-8)),
    product_flops=1e11,
    stream_bytes=1e10,
)


def test_measured_points_are_read_as_they_are() -> None:
    assert COSTS.gather(64, (1 << 10) / 64) == pytest.approx(2e-9)
    assert COSTS.gather(256, (1 << 20) / 256) == pytest.approx(8e-8)


def test_between_points_costs_grow_with_rows_and_with_tables() -> None:
    by_row = [COSTS.gather(size, (1 << 20) / size) for size in (16, 20, 40, 64, 100, 200, 256)]
    by_table = [COSTS.gather(64, rows) for rows in (1, 16, 100, 1_000, 16_384, 10**7)]

    assert by_row == sorted(by_row)
    assert by_table == sorted(by_table)
    assert by_table[0] == pytest.approx(2e-9)
    assert by_table[-1] == pytest.approx(2e-8)


def test_rows_wider_than_measured_cost_in_proportion() -> None:
    assert COSTS.gather(1024, 1 << 20) == pytest.approx(4 * 8e-8)


def test_products_and_streams() -> None:
    assert COSTS.product(1000, 10, 50) == pytest.approx(1e-5)
    assert COSTS.stream(1e10) == pytest.approx(1.0)


def test_stored_costs_come_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "costs.json"
    store(path, COSTS)

    assert load(path) == COSTS
    assert [item.name for item in path.parent.iterdir()] == ["costs.json"]


def test_first_of_two_processes_wins(tmp_path: pathlib.Path) -> None:
    """Whoever is second uses what is there: two processes must not choose differently."""
    path = tmp_path / "costs.json"
    store(path, COSTS)

    with pytest.raises(FileExistsError):
        store(path, BY_BYTES, overwrite=False)
    assert load(path) == COSTS
    assert [item.name for item in tmp_path.iterdir()] == ["costs.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 0}',
        "\x00",
        json.dumps(
            {"format": 1, "row_bytes": [16], "table_bytes": [1], "gather_s": [[0]], "product_flops": 1, "stream_bytes": 1}
        ),
    ],
)
def test_broken_file_is_as_good_as_none(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)

    assert load(path) is None


def test_measured_once_and_found_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune, "measure", lambda: calls.append(1) or COSTS)
    tune._costs.cache_clear()

    assert [tune.machine_costs() for _ in range(3)] == [COSTS] * 3
    tune._costs.cache_clear()
    assert tune.machine_costs() == COSTS
    assert len(calls) == 1
    tune._costs.cache_clear()


def test_where_nothing_can_be_stored_every_process_chooses_by_bytes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(blocked / "cache"))
    monkeypatch.setattr(tune, "measure", lambda: pytest.fail("measured, and nothing keeps it"))
    tune._costs.cache_clear()

    assert tune.machine_costs() is BY_BYTES
    tune._costs.cache_clear()


def test_wrong_order_is_an_error_that_lists_the_valid_ones() -> None:
    from plait.config import Options

    with pytest.raises(PlaitError, match="order: expected one of 'auto', 'as_written', 'first', 'behind', got 'fast'"):
        Options.parse({"order": "fast"})
