"""The report says what the artifacts say, loads and runs nothing, and is the same every time."""

import html
import io
import re
import wave
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from report_html import tags_of, words_of
from report_questions import Plan
from report_run import RUN_ID, build_run

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.layout import HELDOUT, report_key
from mmar_jobs.manifest import sha256
from mmar_jobs.questions import Reject
from mmar_jobs.records import Grade, Question
from mmar_jobs.report import write_report
from mmar_jobs.report.cases import MAX_CASES, pick, show_cases
from mmar_jobs.report.findings import Comparison, Headline, compare, headline
from mmar_jobs.report.plots import accuracy
from mmar_jobs.report.run_view import Run, read_run
from mmar_jobs.report.words import duration
from mmar_jobs.store import Store, open_store

EVIL = '</script><script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


def _store(folder: Path, plan: Plan) -> Store:
    store = open_store(str(folder / "store"))
    build_run(store, folder / "audio", plan)
    return store


def _page(folder: Path, plan: Plan) -> str:
    return write_report(_store(folder, plan), RUN_ID).decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished run whose first two iterations are promoted."""
    return _store(tmp_path_factory.mktemp("run"), Plan(num_clips=40))


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    """Its report."""
    return write_report(store, RUN_ID).decode()


@pytest.fixture(scope="module")
def compared(store: Store) -> tuple[Run, Comparison]:
    """The run and its comparison of base and final model."""
    run = read_run(store, RUN_ID)
    comparison = compare(run)
    assert comparison is not None
    return run, comparison


def test_report_is_written_to_the_store(store: Store, page: str) -> None:
    """The bytes that are returned are the ones that lie in the store."""
    assert page.encode() == store.read(report_key(RUN_ID))


def test_same_artifacts_give_the_same_bytes(store: Store, page: str) -> None:
    """Nothing in the page comes from a clock, a process or a place."""
    assert page.encode() == write_report(store, RUN_ID)


def test_same_run_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    """Where store and clips lie is not on the page."""
    plan = Plan(num_clips=8, accuracies=(40, 70))
    assert _page(tmp_path / "here", plan) == _page(tmp_path / "there", plan)


def test_headline_gives_gain_and_test(page: str, compared: tuple[Run, Comparison]) -> None:
    """The answer, the gain, both accuracies and the discordant pairs are those of the answers."""
    seen = compared[1].verdict
    words = words_of(page)
    assert seen.gain > 0.1
    assert f"Yes, by {100 * seen.gain:.1f} points" in words
    assert f"right on {seen.child_accuracy:.1%} of {seen.n} held-out questions" in words
    assert f"{seen.c} won, {seen.b} lost of {seen.n}" in words
    assert "not above chance, so its score comes from listening" in words


def test_final_model_is_the_last_promoted_one(compared: tuple[Run, Comparison]) -> None:
    """The last iteration was refused, so the model before it is the run's result."""
    run, comparison = compared
    promoted = [t.number for t in run.iterations if t.verdict and t.verdict.next_parent == "child"]
    assert promoted[-1] < len(run.iterations)
    assert promoted[-1] == comparison.after.iteration
    assert comparison.before.iteration == 0


def test_page_has_every_section(page: str) -> None:
    """All that issue and reader ask for is there, each with its plot."""
    for section in (
        "results",
        "categories",
        "listen",
        "benchmark",
        "dropped",
        "lineage",
        "settings",
    ):
        assert f'<section id="{section}">' in page
    labels = [
        attrs["aria-label"] for tag, attrs in tags_of(page) if tag == "svg" and "role" in attrs
    ]
    starts = ["Held-out", "Questions", "Training", "Completion", "Accuracy per", "Time per"]
    assert len(starts) == len(labels)
    for start, label in zip(starts, labels, strict=True):
        assert str(label).startswith(start)


def test_every_axis_says_what_it_measures(page: str) -> None:
    """Quantity and unit of each plot, as text of the picture."""
    for axis in (
        "right answers",
        "share of the questions asked",
        "completion length, tokens; height: share of candidates",
        "optimizer step",
        "loss, nats per token",
        "wall time",
    ):
        assert re.search(rf">\s*{axis}\s*</text>", page), axis


def test_page_shows_what_each_iteration_recorded(
    page: str, compared: tuple[Run, Comparison]
) -> None:
    """Counts, losses, verdict and reasons stand in the table as the manifests have them."""
    words = words_of(page)
    for turn in compared[0].iterations:
        assert turn.verdict
        assert turn.examples
        assert f"{turn.examples.manifest.counts['num_examples']:,}" in words
        assert f"{turn.losses[0]:.3f} → {turn.losses[-1]:.3f}" in words
        for reason in turn.verdict.reasons:
            assert " ".join(reason.split()) in words


def test_page_loads_nothing(page: str) -> None:
    """No element refers to anything but the page itself and data in it."""
    assert not re.search(r"@import|url\((?!#)", page)
    assert "://" not in page
    for tag, attrs in tags_of(page):
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            target = attrs.get(name) or "#"
            assert target.startswith(("#", "data:audio/")), (tag, name, target[:60])
        assert not any(name.startswith("on") for name in attrs)


def test_page_forbids_scripts_and_network(page: str) -> None:
    """Even if something slipped through, the page's own policy would stop it."""
    policy = next(
        attrs["content"]
        for _, attrs in tags_of(page)
        if "Content-Security-Policy" in attrs.values()
    )
    assert str(policy).startswith("default-src 'none'")
    assert "script" not in str(policy)


def test_page_is_accessible(page: str) -> None:
    """Language, one h1, headings without gaps, captions, scopes, and a name for every picture."""
    tags = tags_of(page)
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    levels = [int(name[1]) for name in names if re.fullmatch(r"h[1-6]", name)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert names.count("table") == names.count("caption")
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "audio")
    assert all(
        attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in tags if tag == "svg"
    )
    assert ("html", {"lang": "en"}) in tags


def test_ids_are_unique_and_every_reference_is_met(page: str) -> None:
    """Six plots in one page do not steal each other's clip paths and markers."""
    ids = [str(attrs["id"]) for _, attrs in tags_of(page) if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {a or b for a, b in wanted} <= set(ids)


def test_plots_follow_the_page_between_light_and_dark(page: str) -> None:
    """Ink and paper of the plots are the page's variables, none is fixed."""
    plots = "".join(re.findall(r"<svg [^>]*role=.*?</svg>", page, flags=re.DOTALL))
    assert "var(--ink)" in plots
    for color in ("#1c2326", "#5d686c", "#0b6e66", "#fefefe", "DejaVu"):
        assert color not in plots


def test_clips_can_be_played(page: str) -> None:
    """Each case has its own sound, small enough for a mail."""
    players = [attrs for tag, attrs in tags_of(page) if tag == "audio"]
    assert MAX_CASES == len(players)
    assert len({attrs["src"] for attrs in players}) > 1
    assert all(str(attrs["src"]).startswith("data:audio/wav;base64,UklGR") for attrs in players)
    assert len(page) < 3_000_000


def test_cases_prefer_questions_that_changed(compared: tuple[Run, Comparison]) -> None:
    """Won questions come first, and a loss is shown where there is one."""
    run, comparison = compared
    changes = [change for _, change in pick(run.splits[HELDOUT], comparison)]
    assert MAX_CASES == len(changes)
    assert changes[0] == "won"
    assert comparison.verdict.b > 0
    assert {"won", "lost"} == set(changes)
    assert sorted(changes, reverse=True) == changes


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Markup and formulas in questions, choices, categories and thinking are shown, never run."""
    twist = Question(
        id=f"evil {EVIL}",
        audio="-",
        text=f"What is this? {EVIL}",
        choices=(f"one {EVIL}", "{{ 7 * 7 }}"),
        answer=f"one {EVIL}",
        category=f"$\\frac{{1 {EVIL}\\1",
        sub_category="\x00\x1b[31m声音",
        audio_sha256="0" * 64,
        audio_s=1.0,
    )
    reject = Reject(source="train", line_number=1, id=EVIL, reason=EVIL)
    plan = Plan(num_clips=3, accuracies=(0, 100), twist=twist, rejects=[reject])
    page = _page(tmp_path, plan)
    assert "script" not in {tag for tag, _ in tags_of(page)}
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in html.unescape(page)
    assert f"What is this? {EVIL}" in html.unescape(page)
    assert "Asked: What is this?" in page


def test_page_stays_small_with_long_clips_and_long_thinking(
    tmp_path: Path, compared: tuple[Run, Comparison]
) -> None:
    """Clips beyond the size limit are drawn and named but not embedded; thinking is cut."""
    run, comparison = compared
    data = io.BytesIO()
    with wave.open(data, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(32_000)
        writer.writeframes(b"\1\2\3\4" * 32_000 * 30)
    (tmp_path / "long.wav").write_bytes(data.getvalue())
    clip = {"audio": "long.wav", "audio_sha256": sha256(data.getvalue()), "audio_s": 30.0}
    asked = [question.model_copy(update=clip) for question in run.splits[HELDOUT]]
    assert run.questions is not None
    manifest = run.questions.manifest.model_copy(
        update={"placement": {"audio_roots": {HELDOUT: str(tmp_path)}}}
    )
    questions = replace(run.questions, manifest=manifest)
    wordy = {
        key: row.model_copy(update={"thinking": "hm " * 9_000})
        for key, row in comparison.after_answers.by_id.items()
    }
    answers = replace(comparison.after_answers, by_id=wordy)
    cases = show_cases(
        replace(run, splits={HELDOUT: asked}, questions=questions),
        replace(comparison, after_answers=answers),
        endpoint_url=None,
    )
    playable = [case.sound for case in cases if case.sound.data_uri]
    assert ["30.0 s, as the model hears it (16 kHz mono)"] * 2 == [s.note for s in playable]
    assert sum(len(sound.data_uri) for sound in playable) < 2_800_000
    assert "too large to embed, see long.wav" in cases[-1].sound.note
    assert all(len(case.after.thinking) < 4_100 for case in cases)


def test_missing_clip_is_said_and_not_raised(tmp_path: Path) -> None:
    """A report of an old run whose clips are gone still shows everything else."""
    page = _page(tmp_path, Plan(num_clips=6, accuracies=(40, 80), has_sound=False))
    assert "<audio" not in page
    assert "The clip cannot be played" in page


def test_changed_clip_is_not_played(tmp_path: Path) -> None:
    """A clip that is not the file that was answered must not pose as it."""
    store = _store(tmp_path, Plan(num_clips=6, accuracies=(40, 80)))
    for path in (tmp_path / "audio" / "heldout").iterdir():
        path.write_bytes(path.read_bytes()[:-2] + b"\x01\x02")
    page = write_report(store, RUN_ID).decode()
    assert "<audio" not in page
    assert "is not the file that ingest saw" in page


def test_run_without_promotion_says_no(tmp_path: Path) -> None:
    """Where every child was refused, the page says so and compares the last child."""
    words = words_of(_page(tmp_path, Plan(num_clips=10, accuracies=(60, 60, 55))))
    assert "Did the model get better? No " in words
    assert "None of 2 children was promoted" in words
    assert "iteration 2 (refused)" in words
    assert "refused, run stopped" in words
    assert "not yet" not in words, "the base's answers are no iteration of their own"


def test_headline_has_words_for_every_outcome(compared: tuple[Run, Comparison]) -> None:
    """A gain that may be luck, a control that was not tried, and a model that does not listen."""
    run, comparison = compared

    def said(**changes: object) -> Headline:
        verdict = comparison.verdict.model_copy(update=changes)
        return headline(run, replace(comparison, verdict=verdict))

    assert said(p_value=0.2).answer == "Not shown"
    assert "It was not tried without sound" in said(muted_accuracy=None).control
    assert "nothing shows that it listens" in said(listening_p_value=0.3).control
    silent = dict.fromkeys(comparison.muted_grades, Grade.UNPARSED)
    first, second = list(silent)[:2]
    silent |= {first: Grade.CORRECT, second: Grade.WRONG}
    control = headline(run, replace(comparison, muted_grades=silent)).control
    assert f"only {2 / len(silent):.1%} of them, and is right on 50.0% of these" in control


def test_cases_fill_up_with_questions_that_did_not_change(
    compared: tuple[Run, Comparison],
) -> None:
    """Where nothing changed there is still something to listen to, wrong answers first."""
    run, comparison = compared
    same = replace(comparison, after_grades=comparison.before_grades)
    changes = [change for _, change in pick(run.splits[HELDOUT], same)]
    assert ["still wrong"] * MAX_CASES == changes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (59.94, "59.9 s"), (61.0, "1 min 01 s"), (7860.0, "2 h 11 min")],
)
def test_durations_read_as_one_would_say_them(seconds: float, text: str) -> None:
    """Seconds, minutes or hours, whichever is told."""
    assert text == duration(seconds)


def test_long_run_is_drawn_without_collisions(store: Store) -> None:
    """With many iterations the accuracy plot leaves its numbers to the table."""
    turns = read_run(store, RUN_ID).iterations
    many = [replace(turns[0], number=number) for number in range(1, 9)]
    assert ">iteration 1<" in accuracy(turns)
    assert ">iteration 1<" not in accuracy(many)


def test_unfinished_run_without_promotion_says_not_so_far(tmp_path: Path) -> None:
    """A refused first child is no verdict on a run that goes on."""
    plan = Plan(num_clips=10, accuracies=(60, 60, 60), last_stage="train")
    words = words_of(_page(tmp_path, plan))
    assert "Did the model get better? Not so far " in words
    assert "The only child was not promoted" in words


def test_deaf_model_is_called_out(tmp_path: Path) -> None:
    """A muted score above chance is said beside the answer."""
    words = words_of(_page(tmp_path, Plan(num_clips=24, accuracies=(45, 75), muted_accuracy=70)))
    assert "above chance, so part of its score needs no listening" in words


@pytest.mark.parametrize(
    ("last_stage", "missing"),
    [
        ("generate", "the examples of iteration 1 (not begun: run the filter stage)"),
        ("filter", "the adapter of iteration 1 (not begun: run the train stage)"),
        ("train", "the verdict of iteration 1 (not begun: run the evaluate stage)"),
        ("evaluate", "the predictions for the benchmark (not begun: run the infer stage)"),
    ],
)
def test_unfinished_run_says_what_is_missing(tmp_path: Path, last_stage: str, missing: str) -> None:
    """Every stage's end is a state that can be looked at."""
    plan = Plan(num_clips=5, accuracies=(40, 70), last_stage=last_stage)
    words = words_of(_page(tmp_path, plan))
    assert "This run is not finished" in words
    assert missing in words
    assert ("Not known yet" in words) == (last_stage != "evaluate")


def test_begun_artifact_is_not_a_finished_one(tmp_path: Path) -> None:
    """An artifact with a plan and no manifest is called begun."""
    store = _store(tmp_path, Plan(num_clips=5, accuracies=(40, 70), last_stage="train"))
    store.write(f"runs/{RUN_ID}/iter-1/verdict/plan.json", b"{}")
    assert "the verdict of iteration 1 (begun and not finished: run" in words_of(
        write_report(store, RUN_ID).decode()
    )


def test_run_without_artifact_is_an_error(tmp_path: Path) -> None:
    """A mistyped run id makes no empty page."""
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(DataError, match="no finished artifact of run nothing"):
        write_report(store, "nothing")
    assert not store.exists(report_key("nothing"))


def test_damaged_answers_are_an_error(tmp_path: Path) -> None:
    """A page must not be drawn from shards that are not what was written."""
    store = _store(tmp_path, Plan(num_clips=5, accuracies=(40, 70)))
    key = next(key for key in store.list(f"runs/{RUN_ID}/answers/") if key.endswith(".gz"))
    store.write(key, store.read(key)[:-1] + b"x")
    with pytest.raises(GateError, match="changed or damaged"):
        write_report(store, RUN_ID)


def test_machine_paths_stay_out(page: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A report can be handed on: where things lay on a machine is nobody's business."""
    assert "/somewhere/private" not in page
    assert str(tmp_path_factory.getbasetemp()) not in page
