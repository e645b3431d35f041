"""What the tests of compare and analyze share: META, pairs of files, pages of them.

Not here: the rows (tests/prediction_files.py).
"""

import json
from pathlib import Path
from typing import Any

from mmar_jobs.analysis.compare import Comparison, compare
from mmar_jobs.analysis.items import read_items
from mmar_jobs.analysis.outcomes import Matcher, read_outcomes
from mmar_jobs.cli import run_command
from mmar_jobs.lines import open_lines
from tests.fakes import sound_bytes, tone
from tests.prediction_files import answers, write_rows


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


def write_pair(meta: Path, **values: Any) -> list[str]:
    """Arguments of a comparison of two files."""
    rows = rows_of(meta)
    first = write_rows(meta.with_name("parent.jsonl"), answers(rows, range(20)))
    second = write_rows(meta.with_name("child.jsonl"), answers(rows, range(6, 38), **values))
    return [str(first), str(second), "--meta", str(meta)]


def write_page(meta: Path, *flags: str) -> str:
    """A page of two files whose texts try to break out; returns it."""
    (meta.parent / "audio").mkdir(exist_ok=True)
    clip = sound_bytes(tone(seconds=0.5, rate_hz=8000), 8000)
    for i in range(39):
        (meta.parent / "audio" / f"q{i}.wav").write_bytes(clip)
    hostile = "</pre><script>alert(1)</script><img src=https://example.org/x.png>"
    command = write_pair(meta, thinking_prediction=hostile)
    html = meta.with_name("page.html")
    assert 0 == run_command("compare", [*command, "--html", str(html), *flags])
    return html.read_text()
