"""A million predictions compared: how long, and with how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.prediction_files import CHOICES, meta_row

ROOT = Path(__file__).resolve().parents[2]


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


# Runs a command and says what it took: the peak of all children would be that of some other test.
MEASURED = """
import sys
from mmar_jobs.cli import run_command
from mmar_jobs.bench.spent import cpu_s, peak_bytes
code = run_command(sys.argv[1], sys.argv[2:])
print(cpu_s(), peak_bytes(), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_million_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    """Two files of 500,000 rows over 500,000 questions, with the page: under 30 s and 1 GB."""
    command = write_many(tmp_path, 500_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "compare", *command],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    cpu_s, peak_bytes = map(float, done.stderr.split()[-2:])
    assert done.stdout.startswith("Yes: child is better than parent")
    assert cpu_s < 30
    assert peak_bytes < 1e9
