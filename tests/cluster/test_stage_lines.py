"""Tests of progress: from a stage's log in a pod to the file that Argo reads."""

import json
from pathlib import Path

import pytest

from mmar_jobs.cluster.stage_lines import StageLines, progress_of, summary_of


def test_argo_reads_how_far_the_stage_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As N/M, the newest alone; the stage's lines come out as they are."""
    file = tmp_path / "progress"
    said = [json.dumps({"event": "progress", "done": n, "total": 4}) for n in (1, 3)]
    for line in (*said, "not JSON {"):
        StageLines(file).write(line)
    assert "3/4\n" == file.read_text()
    assert [*said, "not JSON {"] == capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("line", ["", "{", '{"event": "job_finished"}', "plain"])
def test_other_lines_are_no_progress(line: str) -> None:
    """Whatever else a stage says."""
    assert progress_of(line) is None


def test_status_says_how_far_and_how_fast() -> None:
    """The newest line that tells; tokens a second once it is done; nothing from other lines."""
    begun = '{"event": "progress", "label": "asking", "done": 10, "total": 4000}'
    newer = '{"event": "progress", "label": "asking", "done": 1234, "total": 4000, "per_s": 2.5}'
    assert "asking: 10 of 4,000" == summary_of([begun])
    assert "asking: 1,234 of 4,000, 2.5/s" == summary_of([begun, newer, "plain", "{", "{}"])
    done = '{"event": "job_finished", "num_tokens": 9, "tokens_per_s": 5312.4}'
    assert "5,312 tokens/s" == summary_of([newer, done])
    assert "" == summary_of([newer, '{"event": "job_finished"}'])
    assert "" == summary_of(["[1]", "plain"])
