"""What the schedule decides, read from what it prints."""

from __future__ import annotations

import pathlib

import pytest

from plait.codegen.edges import tile_groups
from plait.codegen.kernel import generate
from plait.codegen.loops import mark, roll
from plait.codegen.target import Target
from plait.ir.program import Program
from tests.codegen import layers

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TARGET = Target(64, 32)


def printed(program: Program) -> str:
    return str(generate(program, TARGET, "kernel")[0])


def test_neighbour_sum_streams_over_the_row() -> None:
    assert "pass 0: one stream over the row" in printed(layers.neighbour_sum(128))


def test_attention_keeps_its_logits_for_the_second_pass() -> None:
    text = printed(layers.gat_forward(4, 32))

    assert "pass 2" not in text
    assert "kept from an earlier pass, not computed again: where" in text


def test_attention_backward_reads_wide_rows_in_one_pass() -> None:
    _, source = generate(layers.gat_backward_dst(4, 32), TARGET, "kernel")

    assert source.count("t0 + (i64)map0[e] *") == 1


def test_small_sums_without_costly_functions_are_wide() -> None:
    assert "wide, lanes are elements: segment out" in printed(layers.neighbour_sum(7))


def test_wide_rows_are_loops_not_long_code() -> None:
    sizes = [len(generate(layers.neighbour_sum(width), TARGET, "kernel")[1]) for width in (512, 2048)]

    assert sizes[1] < 1.2 * sizes[0]


def test_loop_numbers_are_linear_or_from_a_table() -> None:
    pieces = [[f"f({mark(a)}, {mark(b)});"] for a, b in ((0, 0), (16, 1), (32, 3))]

    assert roll(pieces, "g") == [
        "{",
        "  static const i32 g_at0[] = {0, 1, 3};",
        "  for (i64 g = 0; g < 3; ++g) {",
        "    f((16 * g), g_at0[g]);",
        "  }",
        "}",
    ]


def test_tile_groups_cover_every_tile_once() -> None:
    for count, run, size in ((12, 3, 8), (12, 4, 2), (63, 63, 8), (5, 1, 8), (14, 7, 3)):
        groups = tile_groups(count, run, size)

        assert sorted(number for group in groups for number in group) == list(range(count))


@pytest.mark.parametrize(
    "program",
    [layers.neighbour_sum(100), layers.gat_forward(2, 20), layers.edge_dropout(5)],
    ids=lambda program: program.name,
)
def test_source_is_the_golden_one(program: Program, update_golden: bool) -> None:
    path = GOLDEN / f"{program.name}.cpp"
    source = generate(program, TARGET, program.name)[1]
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    assert source == path.read_text(), "PLAIT_UPDATE_GOLDEN=1 writes the new source; read the difference"
