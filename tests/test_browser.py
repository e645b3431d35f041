"""Every page in a real browser: light, dark and narrow, quiet, alone, by keyboard and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_questions import Plan
from report_run import RUN_ID, build_run

from mmar_jobs.bench.result import write_measurements
from mmar_jobs.cli import run_command
from mmar_jobs.report import write_report
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.analysis.cases import rows_of, write_page, write_pair
from tests.bench.test_history import past, steps
from tests.browser import CHROMIUM, Browser, open_browser
from tests.prediction_files import answers, meta_row, write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the path"),
]
NAMES = ("report", "compare", "compare-three", "analyze", "inspect", "doctor", "history")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, world: TinyWorld) -> dict[str, Path]:
    """One page of each kind; those of predictions hold texts that try to break out."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {name: folder / f"{name}.html" for name in NAMES}
    store = open_store(str(folder / "store"))
    (folder / "clips").mkdir()
    keep = ["--num-train", "40", "--store", str(folder / "store"), "--run-id", RUN_ID, "--keep"]
    assert 0 == run_command("plan", keep)
    build_run(store, folder / "clips", Plan(num_clips=12))
    pages["report"].write_bytes(write_report(store, RUN_ID))
    meta = write_rows(folder / "meta.jsonl", [meta_row(i) for i in range(40)])
    pages["compare"].write_text(write_page(meta, "--embed-mb", "0", "--max-items", "4"))
    third = str(write_rows(folder / "third.jsonl", answers(rows_of(meta), range(9))))
    three = [third, *write_pair(meta), "--all-pairs", "--max-items", "2"]
    assert 0 == run_command("compare", [*three, "--html", str(pages["compare-three"])])
    alone = [str(folder / "child.jsonl"), "--meta", str(meta), "--max-items", "4"]
    assert 0 == run_command("analyze", [*alone, "--html", str(pages["analyze"])])
    question_id = rows_of(world.heldout)[0]["id"]
    seen = ["--model", str(tiny_model_folder()), "--questions", str(world.heldout), "--draws", "1"]
    seen += ["--variants", "baseline,v9", "--threads", "1", "--html", str(pages["inspect"])]
    assert 0 == run_command("inspect", [question_id, *seen])
    examined = ["doctor", str(world.heldout), "--cache", "none", "--html", str(pages["doctor"])]
    assert 0 == run_command("data", examined)
    (folder / "bench").mkdir()
    levels = steps(100, 80, noise=0.01, seed=0, num=5)
    for number, figure in enumerate(past(levels)):
        write_measurements(folder / "bench" / f"{number}.jsonl", [figure])
    results = ["history", str(folder / "bench"), "--html", str(pages["history"])]
    assert 0 == run_command("bench", results)
    return pages


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(params=NAMES)
def page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    """One page after the other."""
    return pages[request.param]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_quiet_alone_and_readable(browser: Browser, page: Path, scheme: str) -> None:
    """Nothing on the console, no request but its own, every text with contrast, none cut off."""
    browser.show(page, scheme=scheme)
    assert [] == browser.complaints
    assert [page.as_uri()] == browser.requests
    assert [] == browser.check("faintTexts")
    assert [] == browser.check("cutTexts")


def test_both_schemes_are_there(browser: Browser, page: Path) -> None:
    """The paper is light in one and dark in the other."""
    papers = []
    for scheme in ("light", "dark"):
        browser.show(page, scheme=scheme)
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        papers.append(sum(map(int, re.findall(r"\d+", paper))) / 3)
    assert papers[0] > 200
    assert papers[1] < 60


def test_page_fits_a_phone(browser: Browser, page: Path) -> None:
    """Only what may scroll does: the page itself is no wider than the screen."""
    browser.show(page, width=390)
    assert 390 == browser.evaluate("document.documentElement.scrollWidth")


def test_keyboard_reaches_everything(browser: Browser, page: Path) -> None:
    """Tab goes from the link that skips to the content through all links, players and regions."""
    browser.show(page)
    wanted, reached = browser.stops()
    assert 'class="skip"' in reached[0]
    assert sorted(wanted) == sorted(reached)
    scrolling = """[...document.querySelectorAll("*")].filter((e) => e.scrollHeight > e.clientHeight
        && ["auto", "scroll"].includes(getComputedStyle(e).overflowY) && e.tabIndex < 0).length"""
    assert 0 == browser.evaluate(scrolling)


def test_pictures_have_titles_and_words(browser: Browser, page: Path) -> None:
    """Each is named by a heading, said in a text alternative, and has its axes labelled."""
    browser.show(page)
    figures = browser.evaluate("""[...document.querySelectorAll("svg[role=img]")].map((svg) => [
        svg.closest("figure")?.querySelector("h3, figcaption")?.textContent ?? "",
        svg.getAttribute("aria-label") ?? "", svg.querySelectorAll("text").length])""")
    assert figures
    for title, told, num_texts in figures:
        assert title.strip()
        assert len(told) > 30
        assert num_texts >= 3


def test_page_prints(browser: Browser, page: Path) -> None:
    """A PDF with all of it: a box that scrolls on screen is as long as its text on paper."""
    browser.show(page)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") >= 2
    browser.call("Emulation.setEmulatedMedia", media="print")
    hidden = browser.evaluate("""[...document.querySelectorAll("pre")].filter((pre) =>
        pre.checkVisibility() && pre.scrollHeight > pre.clientHeight + 1).length""")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert 0 == hidden


def test_the_checks_can_fail(browser: Browser, tmp_path: Path) -> None:
    """A page with each of the faults is caught at each of them."""
    path = tmp_path / "bad.html"
    path.write_text(
        """<!DOCTYPE html><html lang="en"><body style="margin:0">
        <p style="color:#999">faint</p><a href="#x" style="outline:none">x</a>
        <div style="width:900px">wide</div><img src="nowhere.png">
        <svg role="img" width="200" height="50" viewBox="0 0 200 50"><rect width="200" height="50"
        fill="#0b6e66"/><text x="2" y="20" fill="#1c2326">dark on teal</text>
        <text x="150" y="40" fill="#fff">reaches out</text></svg>
        <script>console.error("x")</script></body></html>"""
    )
    browser.show(path, width=390)
    assert len(browser.complaints) >= 2
    assert 2 == len(browser.requests)
    assert ["faint", "dark on teal"] == [text[5:] for text in browser.check("faintTexts")]
    assert ["reaches out"] == browser.check("cutTexts")
    assert 900 == browser.evaluate("document.documentElement.scrollWidth")
    wanted, reached = browser.stops()
    assert (1, 0) == (len(wanted), len(reached))
