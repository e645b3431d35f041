"""`mmar-jobs merge` after a kill, beside itself, and where it has been before."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import ADAPTER_CONFIG
from mmar_jobs.qlora.lora import LoraModel
from tests import merge_cases
from tests.merge_cases import merge


def stopped_merge(base: Path, adapter: Path, out: Path, share: float) -> None:
    """Merge until `share` of all bytes are written, then die like a killed process."""
    code = f"""
import os, pathlib
from contextlib import contextmanager
from mmar_jobs.qlora.merge_run import Placement, find_adapter, merge_model

@contextmanager
def track(label, total):
    left = [{share} * total]
    def advance(num_done):
        left[0] -= num_done
        if left[0] <= 0:
            os.kill(os.getpid(), 9)
    yield advance

merge_model(pathlib.Path({str(base)!r}), find_adapter({str(adapter)!r}),
    output=pathlib.Path({str(out)!r}), cache=None, placement=Placement(track=track))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert -9 == ended.returncode, ended.stderr.decode()


def test_a_killed_merge_goes_on_where_it_was(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Nothing looks finished, what is finished is kept, the bytes are those of a whole merge."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    merge(base, adapter, whole)
    stopped_merge(base, adapter, out, 0.8)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert kept
    damaged = min(kept)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    half_written = [path for path in partial.iterdir() if path.name.startswith(".mmar-tmp-")]
    assert 1 == len(half_written)
    assert ExitCode.DONE == merge(base, adapter, out)
    assert merge_cases.all_bytes(whole) == merge_cases.all_bytes(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    for path, stamp in kept.items():
        assert (stamp == (out / path.name).stat().st_mtime_ns) == (path != damaged), path


def test_an_unfinished_merge_of_other_inputs_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Its files are of no use and may be somebody's: the folder is named, not overwritten."""
    stopped_merge(base, adapter, tmp_path / "out", 0.1)

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    assert "out.partial" in fails(ExitCode.SETTINGS, base, other, tmp_path / "out")
    (tmp_path / "out.partial" / ".mmar-merge.json").write_text("{")
    assert "damaged" in fails(ExitCode.DATA, base, adapter, tmp_path / "out")


def test_a_merge_killed_in_its_last_moment_keeps_every_file(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The manifest is there and the folder has not got its name yet: nothing is written again."""
    merge(base, adapter, tmp_path / "out")
    whole = merge_cases.all_bytes(tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.s*")}
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out")
    assert whole == merge_cases.all_bytes(tmp_path / "out")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.s*")}
    assert stamps == kept


def test_a_folder_of_somebody_elses_is_not_built_in(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """What would become part of the merged model without a word is refused."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    assert "no unfinished merge" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "out")
    assert "mine" == (tmp_path / "out.partial" / "notes.txt").read_text()


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A merge of 300 MB, killed at twelve moments, ends with the bytes of one left alone."""
    large = shutil.copytree(base, tmp_path / "base")
    shard = max(large.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    tensors = load_file(shard) | {"talker.ballast": torch.zeros(75_000_000)}
    (large / merge_cases.INDEX).unlink()
    save_file(tensors, shard)
    own = merge_cases.adapter_for(large, tmp_path / "adapter")
    merge(large, own, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmar_jobs", "merge", *map(str, (large, own, out))]
    num_killed = 0
    for _ in range(40):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (tmp_path / "out.partial").exists():
            time.sleep(0.005)
        time.sleep(0.03 * (num_killed % 12))
        child.kill()
        if child.wait() == 0:
            break
        num_killed += 1
        assert not out.exists()
        if num_killed == 12:
            merge(large, own, out)
            break
    assert num_killed >= 3
    assert merge_cases.all_bytes(tmp_path / "whole") == merge_cases.all_bytes(out)


def test_two_merges_into_one_cache_do_the_work_once(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Processes that start together end with one whole folder, and no litter."""
    command = [sys.executable, "-m", "mmar_jobs", "merge", str(base), str(adapter)]
    children = [
        subprocess.Popen(
            [*command, "--cache", str(tmp_path / "cache"), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    told = [child.communicate()[0] for child in children]
    assert [0, 0] == [child.returncode for child in children]
    paths = {json.loads(line)["path"] for line in told}
    assert [Path(path) for path in paths] == list((tmp_path / "cache").iterdir())
    assert [False, True] == sorted(json.loads(line)["was_finished"] for line in told)


def test_threads_that_merge_into_one_output_take_turns(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Eight at once: all succeed, the folder is that of one, lock and partial folder are gone."""
    codes: list[int] = []
    out = tmp_path / "out"
    threads = [
        threading.Thread(target=lambda: codes.append(merge(base, adapter, out))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ExitCode.DONE] * 8 == codes
    assert [out] == list(tmp_path.iterdir())
    assert ExitCode.DONE == merge(base, adapter, out)


def test_a_finished_merge_is_verified_and_kept(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call writes nothing, says so, and prints the same folder."""
    merge(base, adapter, tmp_path / "out")
    assert f"{tmp_path / 'out'}\n" == capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (str(tmp_path / "out"), True) == (told["path"], told["was_finished"])
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert ["out"] == [path.name for path in tmp_path.iterdir()]


def test_a_changed_output_is_noticed(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """One flipped byte of a finished folder is an error that names the file."""
    out = tmp_path / "out"
    merge(base, adapter, out)
    shard = sorted(out.glob("*.safetensors"))[2]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert shard.name in fails(ExitCode.DATA, base, adapter, out)


def test_other_inputs_in_the_output_are_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Another adapter, the same factors under another config, and a foreign folder are named."""
    merge(base, adapter, tmp_path / "out")

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    assert "adapter: " in fails(ExitCode.SETTINGS, base, other, tmp_path / "out")
    same = shutil.copytree(adapter, tmp_path / "same")
    config = json.loads((same / ADAPTER_CONFIG).read_text())
    (same / ADAPTER_CONFIG).write_text(json.dumps(config))
    assert "adapter_config: " in fails(ExitCode.SETTINGS, base, same, tmp_path / "out")
    assert "no finished merge" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "other")


def test_cache_is_named_by_the_models_hash(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen characters of the hash over base and adapter; other factors get another folder."""
    merge(base, adapter, "--cache", tmp_path, "--json")
    first = json.loads(capsys.readouterr().out)
    assert str(tmp_path / first["model_hash"][:16]) == first["path"]

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    merge(base, other, "--cache", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out)["path"] != first["path"]
