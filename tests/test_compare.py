"""Tests of compare: paired numbers, words, hostile files, the page, a million rows."""

import json
import re
import resource
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.analysis.compare import Comparison, Finding, compare
from mmar_jobs.analysis.items import clip_length_s, length_name, read_items
from mmar_jobs.analysis.outcomes import Matcher, judge_answer, read_outcomes
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import parse_answer
from mmar_jobs.lines import open_lines
from mmar_jobs.score import official_correct
from mmar_jobs.stats import bootstrap_gain, mcnemar
from tests.fakes import Fails
from tests.prediction_files import CHOICES, answers, meta_row, write_rows
from tests.report_html import tags_of, words_of

REAL_ROWS = Path(__file__).parents[2] / "shared" / "data" / "mmar-head.jsonl"
CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """Forty questions about forty clips."""
    return write_rows(tmp_path / "meta.jsonl", [meta_row(i) for i in range(40)])


def rows_of(meta: Path) -> list[dict[str, Any]]:
    """The rows of a META file."""
    return [json.loads(line) for line in meta.read_text().splitlines()]


def compared(
    meta: Path, *right: range | list[int], matcher: Matcher = Matcher.STRICT
) -> Comparison:
    """Compare files that are right at these places."""
    rows = rows_of(meta)
    items = read_items(open_lines(str(meta)))
    files = []
    for number, places in enumerate(right):
        path = write_rows(meta.with_name(f"file{number}.jsonl"), answers(rows, places))
        lines = open_lines(str(path))
        files.append(read_outcomes(lines, items, matcher=matcher, name=path.stem))
    return compare(items, files, matcher=matcher)


def test_a_pair_has_the_numbers_of_its_discordant_items(meta: Path) -> None:
    """Twenty right before, six of these lost, eighteen others won."""
    (pair,) = compared(meta, range(20), range(6, 38)).pairs
    assert (6, 18) == (pair.num_lost, pair.num_won)
    assert (0.5, 0.8) == (pair.baseline_accuracy, pair.accuracy)
    assert mcnemar(6, 18) == pair.p_value
    assert bootstrap_gain(6, 18, 40, seed=0) == pair.gain_ci95
    assert tuple(f"q{i}" for i in range(6)) == pair.lost_ids
    assert tuple(f"q{i}" for i in range(20, 38)) == pair.won_ids
    assert Finding.BETTER is pair.finding


def test_groups_add_up_and_are_adjusted(meta: Path) -> None:
    """Every dimension splits the same questions; Holm never lowers a p-value."""
    (pair,) = compared(meta, range(20), range(6, 38)).pairs
    for rows in pair.dimensions.values():
        assert (40, 6, 18) == tuple(
            sum(getattr(row, name) for row in rows) for name in ("n", "num_lost", "num_won")
        )
        assert all(row.p_value_holm >= row.p_value for row in rows)
    names = {name: [row.name for row in rows] for name, rows in pair.dimensions.items()}
    assert ["Semantic Layer", "Signal Layer"] == names["category"]
    assert (["4 choices"], ["10 to 20 s"]) == (names["num_choices"], names["clip_length"])


@pytest.mark.parametrize(
    ("second", "finding"),
    [(range(20), Finding.NO_DIFFERENCE), (range(2), Finding.WORSE), (range(3, 24), None)],
)
def test_findings(meta: Path, second: range, finding: Finding | None) -> None:
    """The same, clearly worse, and a gain that proves nothing."""
    (pair,) = compared(meta, range(20), second).pairs
    assert (finding or Finding.NO_DIFFERENCE) is pair.finding


def test_questions_of_one_clip_are_drawn_together(tmp_path: Path) -> None:
    """Ten clips of four questions that flip together are ten facts, not forty."""
    meta = write_rows(
        tmp_path / "meta.jsonl",
        [meta_row(i, audio_path=f"clip{i // 4}.wav") for i in range(40)],
    )
    found = compared(meta, range(20), range(8, 36))
    (pair,) = found.pairs
    assert (40, 10) == (found.num_questions, found.num_clips)
    low, high = pair.gain_ci95
    alone_low, alone_high = bootstrap_gain(pair.num_lost, pair.num_won, 40, seed=0)
    assert low < alone_low
    assert high > alone_high


@given(st.data())
def test_the_fast_grade_is_the_grade(data: st.DataObject) -> None:
    """The short cut for verbatim answers says what the matchers say, for every text."""
    words = st.text("ab .A", min_size=1, max_size=5).filter(lambda text: text.strip())
    choices = data.draw(
        st.lists(words, min_size=2, max_size=4, unique_by=lambda c: " ".join(c.split()).casefold())
    )
    answer = data.draw(st.integers(0, len(choices) - 1))
    text = data.draw(st.one_of(st.sampled_from(choices), words, st.just("")))
    named = parse_answer(text, choices)
    expected = {
        Matcher.STRICT: named == choices[answer],
        Matcher.OFFICIAL: official_correct(text, choices[answer], choices),
    }
    for matcher, is_right in expected.items():
        assert (is_right, named is not None) == judge_answer(text, tuple(choices), answer, matcher)


@given(st.data())
def test_a_pair_turned_round_has_the_opposite_gain(data: st.DataObject) -> None:
    """Comparing B with A says of A and B what comparing A with B says, with the other sign."""
    before = np.array(data.draw(st.lists(st.booleans(), min_size=12, max_size=12)))
    after = np.array(data.draw(st.lists(st.booleans(), min_size=12, max_size=12)))
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    assert mcnemar(lost, won) == mcnemar(won, lost)
    assert after.mean() - before.mean() == pytest.approx((won - lost) / 12)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": "00:01:32,00:02:02"}, 30.0),
        ({"timestamp": "1:51,2:01;3:14,3:24"}, 20.0),
        ({"audio_s": 2.5, "timestamp": "0:00,0:30"}, 2.5),
        ({"duration": 7}, 7.0),
        ({"timestamp": "soon"}, None),
        ({"timestamp": ""}, None),
        ({"timestamp": None, "duration": "9"}, None),
        ({}, None),
    ],
)
def test_clip_lengths(row: dict[str, Any], expected: float | None) -> None:
    """From what a row says, in all the ways in which rows say it."""
    assert expected == clip_length_s(row)


def test_length_groups_have_lower_ends() -> None:
    """A clip of exactly 5 s is in the group that begins at 5 s."""
    assert ["unknown", "under 5 s", "5 to 10 s", "20 to 30 s", "30 s and more"] == [
        length_name(length_s) for length_s in (None, 4.9, 5.0, 29.9, 30.0)
    ]


def write_pair(meta: Path, **values: Any) -> list[str]:
    """Arguments of a comparison of two files."""
    rows = rows_of(meta)
    first = write_rows(meta.with_name("parent.jsonl"), answers(rows, range(20)))
    second = write_rows(meta.with_name("child.jsonl"), answers(rows, range(6, 38), **values))
    return [str(first), str(second), "--meta", str(meta)]


def test_the_first_lines_answer_the_question(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is it better, by how much, what could have been seen, and where is it worse."""
    assert 0 == run_command("compare", write_pair(meta))
    lines = capsys.readouterr().out.splitlines()
    assert "Yes: child is better than parent, by 30.0 points" == lines[0]
    assert "50.0% → 80.0% of 40 questions" in lines[1]
    assert "18 won, 6 lost, exact McNemar p = 0.023" in lines[1]
    assert re.search(r"40 questions show a difference of \d+\.\d points or more", lines[1])
    assert "It lost in no group." == lines[2].strip()


def test_what_got_worse_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gain overall does not hide a category that fell."""
    meta = write_rows(tmp_path / "meta.jsonl", [meta_row(i) for i in range(200)])
    rows = rows_of(meta)
    odd, even = range(1, 200, 2), range(0, 200, 2)
    first = write_rows(tmp_path / "a.jsonl", answers(rows, [*odd[:60], *even[:40]]))
    second = write_rows(tmp_path / "b.jsonl", answers(rows, [*odd[:30], *even[:95]]))
    assert 0 == run_command("compare", [str(first), str(second), "--meta", str(meta)])
    told = capsys.readouterr().out
    assert told.startswith("Yes: b is better than a, by 12.5 points")
    assert "Measurably worse in category Semantic Layer (−30.0 points of 100, p < 0.001)" in told


def test_json_has_everything(meta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with files, pairs, groups and the ids that flipped."""
    assert 0 == run_command("compare", [*write_pair(meta), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert ["parent", "child"] == [file["name"] for file in row["files"]]
    assert ("better", 6, 18) == (
        row["pairs"][0]["finding"], len(row["pairs"][0]["lost_ids"]), len(row["pairs"][0]["won_ids"]),
    )  # fmt: skip


def test_three_files_give_two_pairs_or_three(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All against the first; with --all-pairs all against all."""
    parent, child, *rest = write_pair(meta)
    third = str(write_rows(meta.with_name("third.jsonl"), answers(rows_of(meta), range(9))))
    for flags, expected in (
        ([], [("parent", "child"), ("parent", "third")]),
        (["--all-pairs"], [("parent", "child"), ("parent", "third"), ("child", "third")]),
    ):
        assert 0 == run_command("compare", [parent, child, third, *rest, "--json", *flags])
        pairs = json.loads(capsys.readouterr().out)["pairs"]
        assert expected == [(pair["baseline"], pair["name"]) for pair in pairs]


def test_a_row_without_answer_is_wrong(meta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing said is nothing right, and is counted as naming no choice."""
    assert 0 == run_command("compare", [*write_pair(meta, answer_prediction=None), "--json"])
    child = json.loads(capsys.readouterr().out)["files"][1]
    assert (0, 0) == (child["num_right"], child["num_named"])


def test_the_official_matcher_can_be_asked_for(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts a sentence around the answer, the strict one does not."""
    rows = rows_of(meta)
    parent, _, *rest = write_pair(meta)
    said = [
        {"id": row["id"], "answer_prediction": f"I would say {row['answer']} here"} for row in rows
    ]
    chatty = str(write_rows(meta.with_name("chatty.jsonl"), said))
    for matcher, expected in (("strict", 0), ("official", 40)):
        command = [parent, chatty, *rest, "--json", "--matcher", matcher]
        assert 0 == run_command("compare", command)
        assert expected == json.loads(capsys.readouterr().out)["files"][1]["num_right"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-3], "no prediction of 3 of 40 questions: 'q37', 'q38', 'q39'"),
        (lambda rows: [*rows, rows[4]], "line 41: duplicate id 'q4'"),
        (lambda rows: [*rows, {**rows[0], "id": "stranger"}], "1 unknown ids: 'stranger'"),
        (lambda rows: [{**row, "id": f"x{i}"} for i, row in enumerate(rows)], "another benchmark"),
        (lambda rows: [], "has no predictions"),
        (lambda rows: [{"answer_prediction": "x"}], "line 1: is not a prediction: it has no id"),
        (lambda rows: [{**rows[0], "answer_prediction": 3}], "answer_prediction must be text"),
        (lambda rows: [{**rows[0], "thinking_prediction": []}], "thinking_prediction must be text"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    meta: Path, fails: Fails, change: Any, said: str
) -> None:
    """Missing, duplicate, unknown and foreign ids; the message names file and ids."""
    command = write_pair(meta)
    write_rows(Path(command[1]), change(answers(rows_of(meta), range(40))))
    line = fails(ExitCode.DATA, "compare", *command)
    assert said in line
    assert "child.jsonl" in line


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"{half\n", b"\x1f\x8b\x08\x00", b"PK\x03\x04"])
def test_a_file_that_is_none_is_refused(meta: Path, fails: Fails, content: bytes) -> None:
    """Bytes that are no text, no JSON, or a broken archive."""
    command = write_pair(meta)
    Path(command[1]).write_bytes(content)
    assert "child.jsonl" in fails(ExitCode.DATA, "compare", *command)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": None}, "question q3 has no answer"),
        ({"answer": "snow"}, "line 4: its answer 'snow' is not among its choices"),
        ({"id": "q2"}, "line 4: duplicate id 'q2'"),
        ({"choices": ["a dog"]}, "line 4: needs 2 to 26 choices"),
        ({"benchmark_item": True}, "line 4: is marked benchmark_item"),
    ],
)
def test_a_broken_meta_is_refused(
    meta: Path, fails: Fails, change: dict[str, Any], said: str
) -> None:
    """A comparison over the rows that can be read would be of another benchmark."""
    command = write_pair(meta)
    rows = rows_of(meta)
    rows[3] |= change
    write_rows(meta, rows)
    assert said in fails(ExitCode.DATA, "compare", *command)


def test_wrong_use_is_one_line(meta: Path, fails: Fails) -> None:
    """One file, the same file twice, no file."""
    parent, child, *rest = write_pair(meta)
    assert "cannot be compared" in fails(ExitCode.SETTINGS, "compare", parent, *rest)
    assert "given twice" in fails(ExitCode.SETTINGS, "compare", parent, parent, *rest)
    assert "nowhere.jsonl" in fails(ExitCode.DATA, "compare", parent, "nowhere.jsonl", *rest)
    assert "--matcher" in fails(
        ExitCode.SETTINGS, "compare", parent, child, *rest, "--matcher", "x"
    )


def test_meta_may_be_an_array_and_rows_of_this_project(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three forms of a question file give the same comparison."""
    told = []
    command = write_pair(meta)
    rows = rows_of(meta)
    own = [
        {
            "id": row["id"], "audio": row["audio_path"], "text": row["question"],
            "choices": row["choices"], "answer": row["answer"], "modality": row["modality"],
            "category": row["category"], "sub_category": row["sub-category"], "audio_s": 12.0,
        }
        for row in rows
    ]  # fmt: skip
    for text in (meta.read_text(), json.dumps(rows), "".join(f"{json.dumps(r)}\n" for r in own)):
        meta.write_text(text)
        assert 0 == run_command("compare", command)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]


def wav_bytes(length_s: float) -> bytes:
    """A silent WAV file."""
    import io

    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(8000)
            writer.writeframes(bytes(2 * int(8000 * length_s)))
        return buffer.getvalue()


def write_page(meta: Path, *flags: str) -> str:
    """A page of two files whose texts try to break out; returns it."""
    (meta.parent / "audio").mkdir(exist_ok=True)
    for i in range(39):
        (meta.parent / "audio" / f"q{i}.wav").write_bytes(wav_bytes(0.5))
    hostile = "</pre><script>alert(1)</script><img src=https://example.org/x.png>"
    command = write_pair(meta, thinking_prediction=hostile)
    html = meta.with_name("page.html")
    assert 0 == run_command("compare", [*command, "--html", str(html), *flags])
    return html.read_text()


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
    """Pictures have alternatives, tables can be scrolled by keyboard, nothing comes from outside."""
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


def chromium(*arguments: str, folder: Path) -> str:
    """Run a headless Chromium and return what it logs."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--v=0", f"--user-data-dir={folder}", *arguments,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")
@pytest.mark.parametrize("name", ["compare", "analyze"])
def test_a_browser_shows_and_prints_the_page(meta: Path, tmp_path: Path, name: str) -> None:
    """No error on the console, no address but its own, a picture and a PDF come out."""
    write_page(meta, "--embed-mb", "0")
    page = meta.with_name("page.html")
    if name == "analyze":
        child = str(meta.with_name("child.jsonl"))
        assert 0 == run_command("analyze", [child, "--meta", str(meta), "--html", str(page)])
    log = tmp_path / "net.json"
    pdf, png = tmp_path / "page.pdf", tmp_path / "page.png"
    folder = tmp_path / "profile"
    told = chromium(
        f"--screenshot={png}", "--window-size=1200,2000", f"--log-net-log={log}", page.as_uri(),
        folder=folder,
    )  # fmt: skip
    assert "CONSOLE" not in told
    told = chromium(f"--print-to-pdf={pdf}", page.as_uri(), folder=folder)
    assert "CONSOLE" not in told
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.stat().st_size > 20_000
    assert "example.org" not in log.read_text()


def write_many(folder: Path, num: int) -> list[str]:
    """Two files of `num` predictions with thinking of ordinary length, and their META."""
    drawn = np.random.default_rng(0)
    thinking = " ".join(["the dog barks while somebody speaks about rain"] * 12)
    kinds = drawn.integers(0, 5, num).tolist()
    with (folder / "meta.jsonl").open("w") as file:
        for i in range(num):
            row = meta_row(i, modality=f"m{kinds[i]}", id=f"clip_{i:07d}_00-00-00_00-00-12")
            file.write(f"{json.dumps(row)}\n")
    paths = []
    for name, share in (("parent", 0.60), ("child", 0.61)):
        right = (drawn.random(num) < share).tolist()
        path = folder / f"{name}.jsonl"
        with path.open("w") as file:
            for i in range(num):
                answer = CHOICES[(i + (not right[i])) % len(CHOICES)]
                key = f"clip_{i:07d}_00-00-00_00-00-12"
                row = {"id": key, "thinking_prediction": thinking, "answer_prediction": answer}
                file.write(f"{json.dumps(row)}\n")
        paths.append(str(path))
    return [*paths, "--meta", str(folder / "meta.jsonl"), "--html", str(folder / "page.html")]


@pytest.mark.slow
def test_a_million_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    """Two files of 500,000 rows over 500,000 questions, with the page: under 30 s and 1 GB."""
    command = write_many(tmp_path, 500_000)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mmar_jobs", "compare", *command],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    wall_s = time.monotonic() - start_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime
    assert done.stdout.startswith("Yes: child is better than parent")
    assert cpu_s < 30, f"{cpu_s:.1f} s of CPU, {wall_s:.1f} s of wall"
    assert used.ru_maxrss < 1_000_000, f"{used.ru_maxrss} KiB"
