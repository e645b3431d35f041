"""Tests of logs: one JSON object a line for machines, and never a local variable."""

import json

import pytest

from mmar_jobs import logs


def test_machines_get_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal every event is one object with its level and time, on standard error."""
    log = logs.configure("auto").bind(run_id="r")
    log.info("job_finished", num_examples=3)
    told = capsys.readouterr()
    event = json.loads(told.err)
    assert "" == told.out
    assert ("job_finished", "info", "r", 3) == (
        event["event"],
        event["level"],
        event["run_id"],
        event["num_examples"],
    )
    assert event["timestamp"].endswith("Z")


def test_people_get_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """On a console no JSON."""
    logs.configure("console").warning("rows_rejected", num_rejects=2)
    said = capsys.readouterr().err
    assert "rows_rejected" in said
    assert "{" not in said


def test_locals_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A secret in a local variable stays where it is; the error and its place do not."""
    log = logs.configure("json")
    secret = "very" + "-secret"
    try:
        int("no such bucket")
    except ValueError:
        log.exception("store_failed")
    said = capsys.readouterr().err
    assert secret not in said
    assert "no such bucket" in said
    assert "test_locals_are_not_logged" in said


def test_debug_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    """Events below info are for nobody."""
    logs.configure("json").debug("detail")
    assert "" == capsys.readouterr().err
