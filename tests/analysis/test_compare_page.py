"""Tests of the page of a comparison: what it shows, plays and never lets run."""

import json
import re
from pathlib import Path

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from tests.analysis.cases import rows_of, write_page, write_pair
from tests.fakes import Fails
from tests.prediction_files import answers, write_rows
from tests.report_html import tags_of, words_of

REAL_ROWS = Path(__file__).parents[3] / "shared" / "data" / "mmar-head.jsonl"


def test_the_page_shows_both_thinkings_and_plays_the_clips(meta: Path) -> None:
    """Each flipped question has a player and both replies; a missing clip is said."""
    rows = rows_of(meta)
    write_rows(meta, [*rows[:5], {**rows[5], "audio_path": "./audio/none.wav"}, *rows[6:]])
    page = write_page(meta)
    tags = tags_of(page)
    sources = [attributes["src"] or "" for tag, attributes in tags if tag == "audio"]
    assert 23 == len(sources)
    assert all(source.startswith("data:audio/wav;base64,") for source in sources)
    words = words_of(page)
    assert words.startswith("Yes: child is better than parent, by 30.0 points")
    for text in ("I hear number 3.", "<script>alert(1)</script>", "The clip cannot be played"):
        assert text in words
    assert "script" not in {tag for tag, _ in tags}


def test_clips_beyond_the_budget_are_linked(meta: Path) -> None:
    """A relative path that works wherever the folder goes."""
    page = write_page(meta, "--embed-mb", "0")
    sources = [attributes["src"] for tag, attributes in tags_of(page) if tag == "audio"]
    assert "./audio/q0.wav" == sources[0]
    assert (meta.parent / str(sources[0])).exists()


def test_the_page_is_for_everyone(meta: Path) -> None:
    """Pictures have alternatives, tables scroll by keyboard, nothing comes from outside."""
    page = write_page(meta)
    tags = tags_of(page)
    pictures = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(pictures) >= 3
    assert all(len(attributes.get("aria-label") or "") > 20 for attributes in pictures)
    assert "tabindex" in next(a for t, a in tags if t == "div" and "wide" in (a.get("class") or ""))
    urls = [a[name] or "" for _, a in tags for name in ("src", "href") if a.get(name)]
    assert all(url.startswith(("#", "data:", "./")) for url in urls)
    assert "prefers-color-scheme: dark" in page
    assert ("html", {"lang": "en"}) in tags


def test_equal_files_give_equal_pages(meta: Path) -> None:
    """Nothing in it depends on the clock or on chance."""
    assert write_page(meta) == write_page(meta)


def test_flips_are_capped_and_lost_ones_come_first(meta: Path) -> None:
    """Half of the places are for those won, and the page says how many there are."""
    page = write_page(meta, "--max-items", "6")
    assert 6 == page.count('<article class="card case">')
    assert "shown: 6 of 24, all ids are in the JSON" in words_of(page)
    badges = re.findall(r'<span class="badge \w+">(won|lost)</span>', page)
    assert ["lost"] * 3 + ["won"] * 3 == badges


def test_a_page_that_cannot_be_written_is_one_line(meta: Path, fails: Fails) -> None:
    """And nothing half-written stays."""
    (meta.parent / "file").write_text("")
    html = meta.parent / "file" / "page.html"
    line = fails(ExitCode.SETTINGS, "compare", *write_pair(meta), "--html", str(html))
    assert f"cannot write {html}" in line


@pytest.mark.skipif(not REAL_ROWS.exists(), reason="the real rows are not here")
def test_real_rows_make_a_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right predictions of the real rows compared with ones that lose a category."""
    rows = rows_of(REAL_ROWS)
    assert 100 == len(rows)
    right = write_rows(tmp_path / "right.jsonl", answers(rows, range(100)))
    kept = [i for i, row in enumerate(rows) if row["category"] != "Perception Layer"]
    worse = write_rows(tmp_path / "worse.jsonl", answers(rows, kept))
    html = tmp_path / "page.html"
    command = [str(right), str(worse), "--meta", str(REAL_ROWS), "--json", "--html", str(html)]
    assert 0 == run_command("compare", command)
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    assert ("worse", 0, 37) == (pair["finding"], pair["num_won"], pair["num_lost"])
    lost = {row["name"]: row["num_lost"] for row in pair["dimensions"]["category"]}
    assert 37 == lost.pop("Perception Layer")
    assert {0} == set(lost.values())
    assert "unknown" not in {row["name"] for row in pair["dimensions"]["clip_length"]}
    assert "The clip cannot be played" in html.read_text()
