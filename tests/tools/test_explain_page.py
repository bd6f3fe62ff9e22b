"""The page of `plait explain --html`: sound HTML that needs nothing else, a box for every program, tried in a browser."""

from __future__ import annotations

import functools
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv
from typer.testing import CliRunner

import plait
from plait.tools import cli
from plait.tools.explain_page import to_html

N, E, F = 40, 400, 8
_VOID = {"meta", "br", "link", "img", "input", "hr"}

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")


class Model(nn.Module):
    """Two layers, and a name that would break the page if it were not escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GATConv(F, 4, heads=2), GATConv(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


Model.__name__ = "Two<b>&Layers"


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, F, generator=generator), torch.randint(N, (2, E), generator=generator)


@functools.cache
def explained() -> plait.Explanation:
    torch.manual_seed(0)
    return plait.explain(Model(), *inputs())


class Page(html.parser.HTMLParser):
    """Checks that every element is closed where it must be, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.external: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"<{tag}> has an attribute twice"
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [value for key, value in attrs if key == "href" and value]
        self.classes += (given.get("class") or "").split()
        self.external += [
            f"{key}={value}" for key, value in attrs if key in ("src", "href") and not (value or "").startswith("#")
        ]
        if tag not in _VOID:
            self.open.append(tag if "class" not in given else f"{tag}.{given['class']}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().partition(".")[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@functools.cache
def page() -> Page:
    return Page(to_html(explained()))


def keys() -> list[str]:
    return [
        f"code-{number}-{program.name}"
        for number, capture in enumerate(explained().captures)
        for direction in capture.directions
        for program in direction.programs
    ]


# --- its structure ---------------------------------------------------------------------------------------------------


def test_every_element_is_closed_and_every_id_is_unique() -> None:
    assert page().open == []
    assert len(set(page().ids)) == len(page().ids)


def test_the_page_needs_nothing_else() -> None:
    text = to_html(explained())

    assert page().external == []
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_every_program_has_a_box_that_leads_to_its_code() -> None:
    boxes = [link for link in page().links if link != "#closed"]

    assert len(keys()) > 2
    assert sorted(boxes) == sorted(f"#{key}" for key in keys())
    assert set(keys()) <= set(page().ids)


def test_code_and_program_text_stand_there_letter_by_letter() -> None:
    programs = [program for part in explained().captures[0].directions for program in part.programs]

    assert "".join(page().texts["pre.code"]) == "".join(program.code.strip() for program in programs)
    assert "".join(page().texts["pre.text"]) == "".join(program.text.strip() for program in programs)
    assert all("<" in program.code for program in programs)


def test_names_are_escaped() -> None:
    assert "Two<b>&Layers, training" in page().texts["h1"]


def test_the_figures_are_those_of_the_count() -> None:
    before, after = explained().before, explained().after
    assert before is not None
    assert after is not None
    figures = page().texts["b"]

    assert figures[0] == f"{before.tally.bytes / after.tally.bytes:.2g}x"
    assert len(figures) == page().classes.count("figure") == 4  # time is there only when it was measured


def test_every_operator_of_both_sides_is_drawn() -> None:
    before, after = explained().before, explained().after
    assert before is not None
    assert after is not None
    drawn = page().classes

    assert drawn.count("operator") == len(before.steps) + len(after.steps) - after.tally.programs
    assert drawn.count("program") == after.tally.programs + 1  # and the legend
    assert drawn.count("pill") >= sum(len(step.writes) for step in after.steps)


def test_a_model_without_edges_has_a_page() -> None:
    found = Page(to_html(plait.explain(nn.Linear(F, F), torch.ones(N, F))))

    assert "Nothing was fused; the reasons stand below." in found.texts["p.lead"]


def test_a_page_without_the_eager_side() -> None:
    found = Page(to_html(plait.explain(GATConv(F, F), *inputs(), eager=False)))

    assert "after" in found.ids
    assert "before" not in found.ids


def test_a_long_run_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.tools.explain_drawing.MAX_ROWS", 7)

    def long(x: Tensor) -> Tensor:
        for _ in range(7 + 5):
            x = x + 1
        return x

    found = Page(to_html(plait.explain(long, torch.ones(3, 2))))

    assert "and 5 more, not drawn" in found.texts["text.quiet"]


# --- the command -----------------------------------------------------------------------------------------------------

MAKE = """\
import torch
def model(x, src, dst):
    return torch.zeros_like(x).index_add(0, dst, x[src])
def make():
    return model, (torch.ones(3, 4), torch.tensor([0, 1]), torch.tensor([1, 2]))
"""


def test_the_command_writes_the_page(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(MAKE)
    result = CliRunner().invoke(cli.app, ["explain", f"{tmp_path}/mine.py:make", "--json", "--html", f"{tmp_path}/page.html"])

    assert result.exit_code == 0
    assert json.loads(result.output)["after"]["tally"]["programs"] == 1
    assert "model, inference" in Page((tmp_path / "page.html").read_text()).texts["h1"]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(MAKE)
    result = CliRunner().invoke(cli.app, ["explain", f"{tmp_path}/mine.py:make", "--html", f"{tmp_path}/none/page.html"])

    assert result.exit_code == cli.MISUSED
    assert "page.html: cannot be written: No such file or directory" in result.output


# --- in a browser ----------------------------------------------------------------------------------------------------

PROBE = """
<script>
const seen = {};
const box = document.querySelector("a .program").closest("a");
const panel = () => [...document.querySelectorAll(".detail")].filter((item) => getComputedStyle(item).display !== "none");
seen.open_first = panel().length;
box.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true, view: window}));
setTimeout(() => {
  const shown = panel();
  seen.open_clicked = shown.map((item) => item.id);
  seen.code = shown.length ? shown[0].querySelector("pre.code").textContent.length : 0;
  seen.height = shown.length ? shown[0].getBoundingClientRect().height : 0;
  dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  setTimeout(() => {
    seen.open_escaped = panel().length;
    const fits = (text, rect) => text.right <= rect.right + 1 && text.left >= rect.left - 1;
    const rects = (item) => ["text", "rect"].map((tag) => item.querySelector(tag).getBoundingClientRect());
    seen.pills = document.querySelectorAll(".pill").length;
    const wide = [...document.querySelectorAll(".pill")].filter((item) => !fits(...rects(item)));
    seen.too_wide = wide.map((item) => item.textContent);
    const boxes = [...document.querySelectorAll("#after .back, #after .pill rect")].map((item) => item.getBoundingClientRect());
    seen.overlaps = boxes.filter((a, i) => boxes.some((b, j) => j > i && a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
    seen.scrolls_sideways = document.documentElement.scrollWidth > innerWidth;
    const note = document.createElement("script");
    note.type = "application/json";
    note.id = "seen";
    note.textContent = JSON.stringify(seen);
    document.body.append(note);
  }, 50);
}, 50);
</script>
</body>"""


@needs_browser
def test_in_a_browser_a_click_shows_the_code_and_nothing_overlaps(tmp_path: pathlib.Path) -> None:
    (tmp_path / "page.html").write_text(to_html(explained()).replace("</body>", PROBE), encoding="utf8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,900",
    ]
    run = subprocess.run(
        [str(CHROMIUM), *options, "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'<script type="application/json" id="seen">(.*?)</script>', run.stdout)
    assert found is not None
    seen = json.loads(found[1])

    assert seen["open_first"] == 0
    assert len(seen["open_clicked"]) == 1
    assert seen["open_clicked"][0] in keys()
    assert seen["code"] > 100
    assert seen["height"] > 500
    assert seen["open_escaped"] == 0
    assert seen["pills"] > 10
    assert seen["too_wide"] == []
    assert seen["overlaps"] == 0
    assert not seen["scrolls_sideways"]
