"""The questions that most tests compare on."""

from pathlib import Path

import pytest

from tests.prediction_files import meta_row, write_rows


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """Forty questions about forty clips."""
    return write_rows(tmp_path / "meta.jsonl", [meta_row(i) for i in range(40)])
