"""Tests of the rubric score against a judge that storms, stalls, garbles and lies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from tests.fakes import Fails
from tests.judge_server import Answer, JudgeServer, completion, marks, serve

NUM_ITEMS = 6
SECRET = "sk-very-secret"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON line a row."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and META of six questions; the last two answers are wrong and missing."""
    meta, predictions = [], []
    for i in range(NUM_ITEMS):
        meta.append(
            {
                "id": f"q{i}", "audio_path": f"./audio/q{i}.wav", "question": f"What is number {i}?",
                "choices": ["a dog", "a cat"], "answer": "a dog", "modality": "sound",
                "category": "Signal Layer" if i % 2 else "Semantic Layer", "sub-category": "x",
                "thinking": f"reference {i}",
                "rubric": [
                    {"name": f"point {k}", "scoring_point": f"hears {k}", "choices": [0, 1]}
                    for k in range(5)
                ],
            }
        )  # fmt: skip
        predictions.append(
            {
                "id": f"q{i}",
                "thinking_prediction": f"thinking of {i}",
                "answer_prediction": "a dog" if i < NUM_ITEMS - 2 else "a cat",
            }
        )
    return (
        write_rows(tmp_path / "predictions.jsonl", predictions[:-1]),
        write_rows(tmp_path / "meta.jsonl", meta),
    )


def arguments(files: tuple[Path, Path], server: JudgeServer, *more: str) -> list[str]:
    """A quick rubric score of these files by this judge."""
    predictions, meta = files
    return [
        str(predictions), "--meta", str(meta), "--rubrics", "--judge", server.url,
        "--judge-model", "judge-1", "--retry-pause", "0.01", "--json", *more,
    ]  # fmt: skip


def run_json(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0
) -> dict[str, Any]:
    """Run the command and read what it prints."""
    capsys.readouterr()
    assert code == run_command("score", arguments)
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def item_of(request: dict[str, Any]) -> str:
    """Which question a call is about."""
    return "q" + request["messages"][1]["content"].split("What is number ")[1][0]


def steady(number: int, request: dict[str, Any]) -> Answer:
    """Awards three of five."""
    return completion(marks(1, 1, 1, 0, 0))


def test_right_answers_are_rated_five_times_and_wrong_ones_are_zero(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Four right of six at 3/5: the score is 4 * 0.6 / 6; wrong ones cost no call."""
    with serve(steady) as server:
        scored = run_json(capsys, arguments(files, server))
    assert 20 == len(server.requests)
    assert {"q0", "q1", "q2", "q3"} == {item_of(request) for request in server.requests}
    expected = pytest.approx(4 * 0.6 / 6)
    assert {"lowest": expected, "evaluated_only": expected, "highest": expected} == scored["score"]
    assert (6, 4, 0) == (scored["num_items"], scored["num_right"], scored["num_not_evaluated"])
    assert [0.0, 0.0] == [item["score"] for item in scored["items"][4:]]
    assert (2000, 200) == (scored["prompt_tokens"], scored["completion_tokens"])
    low, high = scored["score_ci95"]
    assert low < 0.4 < high


def test_best_and_worst_rating_do_not_count(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ratings of 0, 1/5, 2/5, 3/5 and 1 give the mean of the middle three."""
    given: dict[str, int] = {}
    ratings = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1, 1, 1, 1, 1)]

    def script(number: int, request: dict[str, Any]) -> Answer:
        key = item_of(request)
        given[key] = given.get(key, -1) + 1
        return completion(marks(*ratings[given[key]]))

    with serve(script) as server:
        scored = run_json(capsys, arguments(files, server, "--concurrency", "1"))
    assert [pytest.approx(0.4)] * 4 == [item["score"] for item in scored["items"][:4]]


def test_the_judge_reads_thinking_answer_reference_and_criteria(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The text to judge is the thinking and "The answer is" with the answer."""
    with serve(steady) as server:
        run_json(capsys, arguments(files, server))
    request = next(request for request in server.requests if item_of(request) == "q2")
    told = request["messages"][1]["content"]
    for part in ("thinking of 2 The answer is a dog.", "reference 2", "1. point 0: hears 0"):
        assert part in told
    assert ("judge-1", 0.0, 42) == (request["model"], request["temperature"], request["seed"])


def test_the_judge_is_recorded_and_the_key_is_not(
    files: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host, name, fingerprint and prompt digest are in the output; the key is nowhere."""
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with serve(lambda n, r: completion(marks(1, 1, 1, 1, 1), model="judge-1-2026-01-02")) as server:
        assert 0 == run_command("score", arguments(files, server, "--judge-key-env", "JUDGE_KEY"))
    told = capfd.readouterr()
    scored = json.loads(told.out)
    assert {f"Bearer {SECRET}"} == set(server.keys)
    assert server.url == scored["judge"]["judge_host"]
    assert ("judge-1-2026-01-02", ["fp_a"]) == (scored["reported_model"], scored["fingerprints"])
    assert 64 == len(scored["judge"]["prompt_sha256"])
    journal = files[0].with_name("predictions.jsonl.ratings.jsonl").read_text()
    assert SECRET not in told.out + told.err + journal
    assert 21 == len(journal.splitlines())


def test_a_storm_of_429_is_waited_out_by_all(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Retry-After holds every worker, and nothing is lost."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        if number < 8:
            return Answer(status=429, body={"error": {}}, headers={"retry-after": "0.4"})
        return steady(number, request)

    with serve(script) as server:
        scored = run_json(capsys, arguments(files, server, "--concurrency", "4"))
    assert (0, 28) == (scored["num_not_evaluated"], len(server.requests))
    assert server.times_s[4] - server.times_s[3] > 0.3
    assert server.most_at_once <= 4


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=500, body={"error": {"message": "boom"}}),
        Answer(status=503, body=b"<html>gateway</html>"),
        Answer(body=b"not json"),
        Answer(body={"choices": []}),
        Answer(body=[]),
        completion(None),
        completion("I would say four of five."),
        completion(marks(1, 1, 1, 1)),
        completion(marks(1, 1, 1, 1, 2)),
        completion(marks(1, 1, 1, 1, True)),
        completion('[{"criterion": 1'),
        Answer(stall_s=1.2, body={}),
    ],
    ids=lambda fault: f"{fault.status}-{str(fault.body)[:60]}",
)
def test_a_fault_is_tried_again(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], fault: Answer
) -> None:
    """Every fault that comes once ends in the same score as none."""
    with serve(lambda n, r: fault if n in {1, 7} else steady(n, r)) as server:
        scored = run_json(capsys, arguments(files, server, "--timeout", "0.5"))
    assert pytest.approx(0.4) == scored["score"]["evaluated_only"]
    assert (0, 22) == (scored["num_not_evaluated"], len(server.requests))


def test_a_malformed_reply_is_asked_for_again_with_another_seed(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """At temperature 0 the same seed would garble again."""
    with serve(lambda n, r: completion("no") if r["seed"] == 42 else steady(n, r)) as server:
        scored = run_json(capsys, arguments(files, server))
    assert {42, 43} == {request["seed"] for request in server.requests}
    assert 0 == scored["num_not_evaluated"]


def test_what_is_never_rated_is_not_zero(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An item that the judge garbles for ever is NOT EVALUATED; the score is an interval."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        return completion("garbage") if item_of(request) == "q1" else completion(marks(*[1] * 5))

    with serve(script) as server:
        scored = run_json(capsys, arguments(files, server, "--max-attempts", "2"))
    assert 1 == scored["num_not_evaluated"]
    assert [pytest.approx(3 / 6), pytest.approx(3 / 5), pytest.approx(4 / 6)] == [
        scored["score"][name] for name in ("lowest", "evaluated_only", "highest")
    ]
    item = scored["items"][1]
    assert (None, True) == (item["score"], item["is_right"])
    assert "malformed reply: holds no JSON list" == item["not_evaluated"]


def test_what_the_server_failed_at_ends_in_try_again(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 75 with the score so far; the next run asks only for what is missing."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        is_down = item_of(request) == "q3"
        return Answer(status=502, body={}) if is_down else steady(number, request)

    with serve(script) as server:
        scored = run_json(
            capsys, arguments(files, server, "--max-attempts", "2"), ExitCode.TRY_AGAIN
        )
        assert (1, "status 502") == (
            scored["num_not_evaluated"], scored["items"][3]["not_evaluated"],
        )  # fmt: skip
        server.script = steady
        before = len(server.requests)
        scored = run_json(capsys, arguments(files, server))
    assert (5, 0) == (len(server.requests) - before, scored["num_not_evaluated"])


def test_a_rejected_request_is_not_repeated(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A 400 is about this prompt: it is named, and the others go on."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        is_long = item_of(request) == "q0"
        return Answer(status=400, body={}) if is_long else steady(number, request)

    with serve(script) as server:
        scored = run_json(capsys, arguments(files, server, "--concurrency", "1"))
    assert "rejected: status 400" == scored["items"][0]["not_evaluated"]
    assert 16 == len(server.requests)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (Answer(status=401, body={"error": {"message": SECRET}}), ExitCode.SETTINGS, "the key"),
        (Answer(status=404, body={}), ExitCode.SETTINGS, "does not know judge-1"),
        (completion(marks(1, 1, 1, 1, 1), model="judge-1-mini"), ExitCode.DATA, "calls itself"),
        (completion("x", model="other"), ExitCode.DATA, "--judge-reports other"),
        (Answer(status=422, body={}), ExitCode.DATA, "no usable rating"),
    ],
)
def test_a_judge_that_cannot_judge_ends_the_run(
    files: tuple[Path, Path], fails: Fails, answer: Answer, code: ExitCode, said: str
) -> None:
    """One line, without what the server wrote, and no 20 calls of it."""
    with serve(lambda n, r: answer) as server:
        line = fails(code, "score", *arguments(files, server, "--concurrency", "2"))
    assert said in line
    assert SECRET not in line
    assert len(server.requests) <= 8


def test_a_name_that_was_announced_is_accepted(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy may call a model otherwise, if the caller says so."""
    with serve(lambda n, r: completion(marks(1, 1, 1, 1, 1), model="other")) as server:
        scored = run_json(capsys, arguments(files, server, "--judge-reports", "other"))
    assert "other" == scored["reported_model"]


def test_a_judge_that_changes_on_the_way_is_refused(files: tuple[Path, Path], fails: Fails) -> None:
    """Two versions of a model are two judges."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        return completion(marks(1, 1, 1, 1, 1), model=f"judge-1-{1 + (number >= 6)}")

    with serve(script) as server:
        line = fails(ExitCode.DATA, "score", *arguments(files, server, "--concurrency", "1"))
    assert "changed from judge-1-1 to judge-1-2" in line


def test_a_server_that_is_gone_is_given_up(files: tuple[Path, Path], fails: Fails) -> None:
    """No connection at all: exit 75, not an hour of patience."""
    with serve(steady) as server:
        pass
    line = fails(ExitCode.TRY_AGAIN, "score", *arguments(files, server, "--max-attempts", "2"))
    assert "no connection" in line


def test_a_judge_that_only_garbles_is_given_up(tmp_path: Path, fails: Fails) -> None:
    """Twenty items in a row without a usable rating: it will not get better with the next 800."""
    points = [{"name": "n", "scoring_point": "s"}]
    rows = [
        {
            "id": f"q{i}", "audio_path": "a.wav", "question": "What?", "choices": ["x", "y"],
            "answer": "x", "rubric": points, "answer_prediction": "x",
        }
        for i in range(60)
    ]  # fmt: skip
    both = write_rows(tmp_path / "rows.jsonl", rows)
    with serve(lambda n, r: completion("I cannot rate this.")) as server:
        line = fails(
            ExitCode.DATA, "score", *arguments((both, both), server, "--max-attempts", "1")
        )
    assert "gave no usable rating 20 times in a row (malformed reply: holds no JSON list)" in line
    assert len(server.requests) < 30


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--judge-model", "judge-2"], "another judge model (judge-1 there, judge-2 now)"),
        (["--temperature", "0.5"], "another temperature"),
        (["--judge-seed", "-1"], "another seed"),
        (["--rubric-file", "OTHER"], "another rubrics or questions"),
        (["predictions"], "another predictions"),
    ],
)
def test_a_journal_is_not_mixed(
    files: tuple[Path, Path], fails: Fails, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    change: list[str], said: str,
) -> None:  # fmt: skip
    """Another judge, rubric or prediction file needs another journal."""
    with serve(steady) as server:
        run_json(capsys, arguments(files, server))
        before = len(server.requests)
        if change == ["predictions"]:
            files[0].write_text(files[0].read_text().replace("thinking of 1", "thought of 1"))
            change = []
        if "OTHER" in change:
            other = tmp_path / "other.jsonl"
            other.write_text(files[1].read_text().replace("hears 3", "notices 3"))
            change = ["--rubric-file", str(other)]
        line = fails(ExitCode.SETTINGS, "score", *arguments(files, server), *change)
        assert before == len(server.requests)
    assert said in line


def test_a_journal_that_was_cut_short_goes_on(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a line at its end is dropped; all others count."""
    journal = files[0].with_name("predictions.jsonl.ratings.jsonl")
    with serve(steady) as server:
        whole = run_json(capsys, arguments(files, server))
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:11]) + lines[11][:25])
        before = len(server.requests)
        again = run_json(capsys, arguments(files, server))
    assert 10 == len(server.requests) - before
    assert whole["score"] == again["score"]
    assert 21 == len(journal.read_bytes().splitlines())


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b'{"id": 1}\n'])
def test_a_file_that_is_no_journal_is_left_alone(
    files: tuple[Path, Path], fails: Fails, tmp_path: Path, content: bytes
) -> None:
    """A wrong --journal must not eat a file."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with serve(steady) as server:
        line = fails(ExitCode.DATA, "score", *arguments(files, server, "--journal", str(path)))
    assert "is no journal" in line
    assert content == path.read_bytes()


def run_until(calls: int, server: JudgeServer, command: list[str]) -> None:
    """Start the command, kill it without warning after so many calls."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    running = subprocess.Popen(
        [sys.executable, "-m", "mmar_jobs", "score", *command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.requests) < calls and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_a_kill_loses_only_what_was_in_flight(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle and run again: at most the calls in flight are repeated."""

    def slow(number: int, request: dict[str, Any]) -> Answer:
        return Answer(**{**vars(steady(number, request)), "stall_s": 0.05})

    with serve(slow) as server:
        run_until(9, server, arguments(files, server, "--concurrency", "2"))
        time.sleep(0.2)
        scored = run_json(capsys, arguments(files, server))
    assert 20 < len(server.requests) <= 22
    assert (0, 20) == (scored["num_not_evaluated"], scored["num_ratings"])


def test_the_estimate_calls_nobody(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls, tokens and price, without a judge; a real run says the same first."""
    predictions, meta = files
    asked = [str(predictions), "--meta", str(meta), "--estimate", "--price", "2", "8"]
    assert 0 == run_command("score", asked)
    told = capsys.readouterr().out
    assert "4 of 6 answers are right: 20 calls, about" in told
    assert "price about 0.06 at 2 and 8 a million" in told
    with serve(steady) as server:
        assert 0 == run_command("score", arguments(files, server, "--price", "2", "8"))
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://x", "is not a URL"),
        ("localhost:8000", "is not a URL"),
        ("http://", "is not a URL"),
        (f"http://me:{SECRET}@host/v1", "holds more than an address"),
        (f"http://host/v1?key={SECRET}", "holds more than an address"),
    ],
)
def test_a_wrong_address_is_refused_without_repeating_it(
    files: tuple[Path, Path], fails: Fails, url: str, said: str
) -> None:
    """An address may hold a password."""
    predictions, meta = files
    line = fails(
        ExitCode.SETTINGS, "score", str(predictions), "--meta", str(meta), "--rubrics",
        "--judge", url, "--judge-model", "m",
    )  # fmt: skip
    assert said in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("rubric", "said"),
    [
        (None, "4 right answers have no rubric"),
        ([{"name": "x"}], "the rubric of 'q0' cannot be used"),
        ([{"name": "x", "scoring_point": "y", "choices": [0, 1, 2]}], "scores other than 0 and 1"),
        ("text", "the rubric of 'q0' cannot be used"),
        ([["x"]], "the rubric of 'q0' cannot be used"),
    ],
)
def test_a_broken_rubric_is_named(
    files: tuple[Path, Path], fails: Fails, rubric: Any, said: str
) -> None:
    """Before anything is paid for."""
    predictions, meta = files
    rows = [json.loads(line) for line in meta.read_text().splitlines()]
    write_rows(meta, [{**row, "rubric": rubric} for row in rows])
    line = fails(ExitCode.DATA, "score", str(predictions), "--meta", str(meta), "--estimate")
    assert said in line


def test_two_runs_do_not_share_a_journal(
    files: tuple[Path, Path], fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told to wait."""
    import fcntl

    journal = files[0].with_name("predictions.jsonl.ratings.jsonl")
    with serve(steady) as server:
        run_json(capsys, arguments(files, server))
        with journal.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            line = fails(ExitCode.TRY_AGAIN, "score", *arguments(files, server))
    assert "is in use by another run" in line
