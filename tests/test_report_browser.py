"""``heteroplace report`` in a real browser: it loads, draws, picks and reads, on a phone too."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="reports need pyarrow")
pytest.importorskip("playwright", reason="needs the playwright package")

from playwright.sync_api import sync_playwright
from report_results import hostile, quick_results

from heteroplace.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_results(tmp_path_factory)


WIDE, PHONE = (1280, 900), (390, 844)
READABLE = 11.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, with pictures of 12 of its 36 instances."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(quick), "--out", str(out), "--placements", "12"]) == 0
    return out


class Visit:
    """A page in the browser, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, file: Path, size: tuple[int, int], scheme: str) -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", timeout=60_000)

    def drawn(self, side: str) -> bytes:
        """The picture of a side, to the pixel."""
        frame = self.page.frame_locator(f"#{side}")
        return bytes(
            frame.locator("#picture").evaluate("canvas => canvas.toDataURL()").encode("ascii")
        )

    def pick(self, place: int) -> str:
        """Click on an instance in the list and wait for its pictures; its key."""
        option = self.page.locator("#list [role=option]").nth(place)
        option.click()
        self.page.wait_for_selector("#placements[data-drawn]:not([data-drawn=''])")
        return str(self.page.get_attribute("#placements", "data-drawn"))


@pytest.fixture
def visit(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    size, scheme = getattr(request, "param", (WIDE, "light"))
    made = Visit(browser, file, size, scheme)
    yield made
    made.context.close()


EVERYWHERE = pytest.mark.parametrize(
    "visit",
    [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["wide", "wide-dark", "phone", "phone-dark"],
    indirect=True,
)


@EVERYWHERE
def test_it_loads_without_a_word_and_without_a_request(visit: Visit, file: Path):
    visit.pick(1)
    visit.page.locator("summary").first.click()
    assert visit.said == []
    assert visit.asked == [file.as_uri()]


@EVERYWHERE
def test_every_chart_is_drawn_in_sight(visit: Visit):
    charts = visit.page.eval_on_selector_all(
        "svg.chart",
        """charts => charts.map(chart => {
            const box = chart.getBoundingClientRect();
            const marks = [...chart.querySelectorAll(".mark, .part, .curve")].map(mark => {
                const at = mark.getBoundingClientRect(), style = getComputedStyle(mark);
                return { x: at.x - box.x, y: at.y - box.y, right: at.right - box.x,
                    bottom: at.bottom - box.y, fill: style.fill, stroke: style.stroke };
            });
            const card = getComputedStyle(chart.closest(".card")).backgroundColor;
            return { width: box.width, height: box.height, marks, card };
        })""",
    )
    assert len(charts) >= 15
    for chart in charts:
        assert 250 <= chart["width"] <= 480
        assert 150 <= chart["height"] <= 360
        assert chart["marks"]
        for mark in chart["marks"]:
            assert -6 <= mark["x"] <= mark["right"] <= chart["width"] + 6
            assert -6 <= mark["y"] <= mark["bottom"] <= chart["height"] + 6
            assert {mark["fill"], mark["stroke"]} != {chart["card"]}


@EVERYWHERE
def test_marks_and_words_stand_out_from_the_page(visit: Visit):
    seen = visit.page.evaluate(
        """() => {
            const words = [...document.querySelectorAll(
                "p, li, td, th, dt, dd, summary, h1, h2, h3, .chart text, label, button, a, pre")];
            const shown = words.filter(
                each => each.getClientRects().length && each.textContent.trim());
            const ink = each => getComputedStyle(each)[each.closest("svg") ? "fill" : "color"];
            const marks = [...document.querySelectorAll(".chart .mark, .chart .part")];
            const card = getComputedStyle(document.querySelector(".card")).backgroundColor;
            return { card, words: [...new Set(shown.map(ink))],
                marks: [...new Set(marks.map(each => getComputedStyle(each).fill))] };
        }"""
    )
    assert len(seen["marks"]) >= 4
    for colour in seen["words"]:
        assert contrast(colour, seen["card"]) >= 4.5, colour
    for colour in seen["marks"]:
        assert contrast(colour, seen["card"]) >= 3, colour


def contrast(first: str, second: str) -> float:
    """Contrast of two colours (WCAG 2.1)."""

    def light(colour: str) -> float:
        parts = [float(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)


@EVERYWHERE
def test_it_reads_at_any_width(visit: Visit):
    for summary in visit.page.locator("summary").all():
        summary.click()
    seen = visit.page.evaluate(
        """() => {
            const wide = document.documentElement.clientWidth, out = [];
            for (const each of document.querySelectorAll("main *")) {
                if (each.closest(".scroll, .hide, #list, svg")) continue;
                const box = each.getBoundingClientRect();
                if (box.width && (box.right > wide + 1 || box.left < -1))
                    out.push(each.outerHTML.slice(0, 90));
            }
            const small = [];
            for (const each of document.querySelectorAll("main *")) {
                if (each.closest(".hide")) continue;
                const texts = [...each.childNodes].filter(node => node.nodeType === 3);
                if (!texts.some(node => node.data.trim())) continue;
                if (!each.getClientRects().length || each.tagName === "SCRIPT") continue;
                let size = parseFloat(getComputedStyle(each).fontSize);
                const svg = each.closest("svg");
                if (svg) size *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
                small.push(size);
            }
            const scroll = document.documentElement.scrollWidth;
            return { wide, scroll, out, least: Math.min(...small) };
        }"""
    )
    assert seen["scroll"] <= seen["wide"]
    assert seen["out"] == []
    assert seen["least"] >= READABLE


@EVERYWHERE
def test_picking_an_instance_changes_both_placements(visit: Visit):
    first, before = visit.pick(0), {side: visit.drawn(side) for side in ("left", "right")}
    second, after = visit.pick(4), {side: visit.drawn(side) for side in ("left", "right")}
    assert first != second
    for side in ("left", "right"):
        assert before[side] != after[side]
        assert len(after[side]) > 2000
    # The greedy and the optimum differ on the instance that differs most.
    assert before["left"] != before["right"]


def test_the_pictures_are_those_of_the_plans(visit: Visit, quick: Path):
    from heteroplace.compare.record import read_results

    key = visit.pick(0)
    results = read_results(quick)
    for side, profile in (("left", "greedy"), ("right", "auto")):
        plan = results.plan({"instance": key, "profile": profile})
        assert plan is not None
        added = sum(len(group.added) for group in plan.groups)
        frame = visit.page.frame_locator(f"#{side}")
        facts = frame.locator("#facts").evaluate("list => list.textContent")
        assert f"added+{added}" in facts.replace(",", "")


def test_the_list_filters_and_the_arrow_keys_pick(visit: Visit):
    page = visit.page
    assert page.inner_text("#found") == "36 of 36 instances"
    page.fill("#find", "seed 2 load 1.2")
    assert page.inner_text("#found") == "4 of 36 instances"
    for text in page.locator("#list [role=option]").all_inner_texts():
        assert "seed 2" in text
        assert "load 1.2" in text
    page.fill("#find", "small seed=2")
    assert page.inner_text("#found") == "12 of 36 instances"
    page.fill("#find", "no such thing")
    assert "change the filter" in page.inner_text("#found")
    page.fill("#find", "")
    page.select_option("#keep", "pictured")
    assert page.inner_text("#found") == "12 of 36 instances"
    first = visit.pick(0)
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(f"#placements:not([data-drawn='{first}'], [data-drawn=''])")
    chosen = page.locator("#list [aria-selected=true]")
    assert chosen.count() == 1
    assert chosen.get_attribute("id") == page.get_attribute("#list", "aria-activedescendant")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(f"#placements[data-drawn='{first}']")


def test_an_order_sorts_the_list(visit: Visit):
    page = visit.page
    page.select_option("#sort", "gpus")
    sizes = [
        int(text.split(" GPUs")[0].split()[-1].replace(",", ""))
        for text in page.locator("#list [role=option]").all_inner_texts()
    ]
    assert len(set(sizes)) > 1
    assert sizes == sorted(sizes, reverse=True)


def test_an_instance_without_pictures_says_how_to_get_them(visit: Visit, quick: Path):
    page = visit.page
    bare = page.locator("#list [role=option]", has_text="no picture")
    assert bare.count() == 24
    bare.first.click()
    assert page.is_hidden("#pair")
    command = page.inner_text("#command")
    assert command.startswith(f"heteroplace report {quick} --instance ")
    assert page.locator("#chosen td").count() > 10


def test_what_is_done_in_one_picture_is_done_in_the_other(visit: Visit):
    page = visit.page
    visit.pick(0)
    left, right = (page.frame_locator(f"#{side}") for side in ("left", "right"))
    box = left.locator("#picture").bounding_box()
    assert box is not None
    left.locator("#picture").click(position={"x": box["width"] * 0.3, "y": 40})
    crumbs = left.locator("#crumbs").inner_text()
    assert "s1" in crumbs
    assert right.locator("#crumbs").inner_text() == crumbs
    right.locator("#crumbs button").first.click()
    assert left.locator("#crumbs").inner_text() == right.locator("#crumbs").inner_text() != crumbs
    page.fill("#spot", "service-0001")
    for side in (left, right):
        assert "1 service shown" in side.locator("#found").evaluate("each => each.textContent")


@pytest.mark.parametrize("visit", [(PHONE, "light")], ids=["phone"], indirect=True)
def test_on_a_phone_one_flips_between_the_placements(visit: Visit):
    page = visit.page
    visit.pick(0)
    assert page.is_visible("#left")
    assert page.is_hidden("#right")
    page.click("#flip-right")
    assert page.is_hidden("#left")
    assert page.is_visible("#right")
    assert page.get_attribute("#flip-right", "aria-pressed") == "true"


def test_the_file_of_a_figure_can_be_saved(visit: Visit):
    page = visit.page
    page.locator("#unmet summary").nth(1).click()
    with page.expect_download() as found:
        page.click("#unmet a.save")
    assert found.value.suggested_filename == "unmet.csv"
    rows = list(csv.reader(io.StringIO(Path(found.value.path()).read_text(encoding="utf-8"))))
    assert rows[0][:3] == ["by", "group", "series"]
    assert len(rows) > 20


def test_it_prints_without_its_controls(visit: Visit):
    visit.page.emulate_media(media="print")
    assert visit.page.is_hidden("#find")
    assert visit.page.is_hidden("#list")
    assert visit.page.is_visible("#unmet svg.chart >> nth=0")
    assert len(visit.page.pdf()) > 20_000


def test_hostile_names_run_nothing(browser: Any, quick: Path, tmp_path: Path):
    folder, out = hostile(quick, tmp_path / "hostile"), tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out), "--placements", "4"]) == 0
    visit = Visit(browser, out, WIDE, "light")
    alerts: list[str] = []
    visit.page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    visit.pick(0)
    visit.page.wait_for_timeout(200)
    assert alerts == []
    assert visit.said == []
    assert visit.asked == [out.as_uri()]
    for scope in (
        visit.page,
        visit.page.frame_locator("#left"),
        visit.page.frame_locator("#right"),
    ):
        assert scope.locator("img").count() == 0
        assert scope.locator("b").count() == 0
    services = visit.page.frame_locator("#left").locator("#services")
    assert "<img src=x" in services.evaluate("each => each.textContent")
    visit.context.close()


def test_without_scripts_figures_and_tables_are_there(browser: Any, file: Path):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("svg.chart").count() >= 15
    assert page.is_visible("noscript p")
    context.close()
