"""A client that is killed again and again leaves what an undisturbed one does, byte for byte."""

import random
import sys
from pathlib import Path

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.layout import candidates_key
from mmar_jobs.tiny.build import build_world
from tests.engine.loopback import serve
from tests.kills import finish, kill_somewhere, start

NUM_KILLS = 20
SEED = 7


def shards(store: Path) -> dict[str, bytes]:
    """The candidates in a store, by shard."""
    folder = store / candidates_key("r", 1)
    assert (folder / "manifest.json").is_file()
    return {path.name: path.read_bytes() for path in folder.iterdir() if "part-" in path.name}


@pytest.mark.slow
def test_twenty_kills_of_the_client_change_nothing(
    local: LocalEngine, model_folder: Path, tmp_path: Path
) -> None:
    """Twenty kill -9 with questions under way: every draw once, and the same bytes at the end."""
    world = build_world(
        tmp_path / "world", seed=SEED, num_train=300, num_heldout=8, num_benchmark=6
    )

    def generate(store: Path, url: str) -> list[str]:
        sources = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
        run = ["--store", str(store), "--run-id", "r"]
        files = [part for name, path in sources.items() for part in (f"--{name}", str(path))]
        assert 0 == run_command("ingest", [*run, *files])
        settings = {
            "model": model_folder,
            "engine.servers": url,
            "sampling.num-candidates": 4,
            "sampling.max-tokens": 24,
            "sampling.questions-per-shard": 2,
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "mmar_jobs", "generate", *run, *flags]

    with serve(local) as vllm:
        finish(generate(tmp_path / "undisturbed", vllm.url))
        store = tmp_path / "killed"
        command = generate(store, vllm.url)
        chance = random.Random(SEED)
        num_kills = sum(
            kill_somewhere(start(command), store, chance, at_least=1, longest_s=0.1)
            for _ in range(NUM_KILLS)
        )
        assert NUM_KILLS == num_kills, "it ended before it was killed often enough: ask for more"
        finish(command)
    expected = shards(tmp_path / "undisturbed")
    assert 150 == len(expected)
    assert expected == shards(store)
