"""Tests of the rubric score against a judge that storms, stalls, garbles and lies."""

import json
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.errors import ExitCode
from tests.fakes import Fails
from tests.judge.cases import NUM_ITEMS, SECRET, arguments, item_of, run_json, steady
from tests.judge.server import Answer, JudgeServer, completion, marks, serve
from tests.prediction_files import write_rows


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


def test_where_no_judge_is_nobody_waits(files: tuple[Path, Path], fails: Fails) -> None:
    """A port that hangs up on every call: three tries a worker, not eight with doubling pauses."""
    num_calls = 0

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal num_calls
            num_calls += 1

    with socketserver.TCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        there = JudgeServer(steady)
        there.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        line = fails(ExitCode.TRY_AGAIN, "score", *arguments(files, there, "--concurrency", "2"))
        server.shutdown()
    assert f"nothing answers at {there.url} (no connection): check --judge" in line
    assert 3 <= num_calls <= 6


def test_a_server_that_goes_away_is_given_up(files: tuple[Path, Path], fails: Fails) -> None:
    """It answered once and then only fails: exit 75 after twenty ratings that could not be had."""

    def script(number: int, request: dict[str, Any]) -> Answer:
        return steady(number, request) if number == 0 else Answer(status=503, body={})

    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    predictions, meta = rows[: len(rows) - NUM_ITEMS], rows[len(rows) - NUM_ITEMS :]
    many = [
        write_rows(path, [{**row, "id": f"{row['id']}-{n}"} for n in range(8) for row in part])
        for path, part in zip(files, (predictions, meta), strict=True)
    ]
    with serve(script) as server:
        both = (many[0], many[1])
        line = fails(ExitCode.TRY_AGAIN, "score", *arguments(both, server, "--max-attempts", "1"))
    assert "the judge does not answer (status 503)" in line
    assert "1 ratings are kept" in line
    assert len(server.requests) < 40


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
