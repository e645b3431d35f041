"""The generation bench with servers of its own: how they are started, measured and ended.

Here `vllm` is a server of canned answers and `nvidia-smi` a script; tests/serve has the real one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.bench.gpus import Gpu, GpuUtilization, names_of, visible_gpus
from mmar_jobs.bench.node import layout_of
from mmar_jobs.engine.serving import USUAL_WORKLOAD, Shape
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.tiny import tiny_model_folder
from tests.engine.loopback import wait_until
from tests.fakes import fake_nvidia_smi

ROOT = Path(__file__).parents[2]
GPUS = ["0, GPU-a1, NVIDIA H200, 580.1, 143771", "1, GPU-b2, NVIDIA H200, 580.1, 143771"]
# Notes how it was started; ends as vLLM ends, with what it began.
VLLM = """\
import json, os, signal, subprocess, sys
if "--refused" in sys.argv:
    sys.stderr.write("vllm: error: unrecognized arguments: --refused\\n")
    sys.exit(2)
if "--dies" in sys.argv:
    sys.exit("no memory")
if "--stays" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
port = sys.argv[sys.argv.index("--port") + 1]
with open(os.environ["STARTS"], "a") as file:
    file.write(json.dumps([os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], sys.argv[1:]]) + "\\n")
command = [sys.executable, "-m", "tests.engine.canned", sys.argv[2], port]
with subprocess.Popen(command, stdin=subprocess.PIPE) as server:
    server.wait()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a vLLM and an nvidia-smi, which this process and its children find."""
    main = tmp_path / "vllm" / "entrypoints" / "cli" / "main.py"
    main.parent.mkdir(parents=True)
    for folder in list(main.parents)[:3]:
        (folder / "__init__.py").touch()
    main.write_text(VLLM)
    (tmp_path / "bin").mkdir()
    fake_nvidia_smi(tmp_path / "bin", GPUS, ["0, 50", "1, 100"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def start(*flags: str) -> "subprocess.Popen[str]":
    """The bench, a few small questions."""
    command = [sys.executable, "-m", "mmar_jobs", "bench", "generate"]
    few = ["--questions", "4", "--draws", "2", "--max-tokens", "8", "--clip-s", "1"]
    given = ["--model", str(tiny_model_folder()), *few, *flags]
    return subprocess.Popen(
        [*command, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


def starts(place: Path) -> list[tuple[int, str, list[str]]]:
    """Process, GPUs and arguments of each server, in the order of their GPUs."""
    lines = (place / "starts").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda start: str(start[1]))


def is_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_servers_are_started_asked_and_ended(place: Path) -> None:
    """One a GPU, by the options of serve-args; the figures name both and how busy they were."""
    code, said, complained = end(start("--gpus", "2", "--json", "-", "--vllm-args=--seed 3"))
    assert code == ExitCode.DONE, complained
    figures = {line["name"]: line for line in map(json.loads, said.splitlines())}
    found = figures["generate/gpu_utilization"]
    assert ("2 x NVIDIA H200", "580.1") == (
        found["environment"]["device"],
        found["environment"]["driver"],
    )
    assert found["case"]["servers"] == found["case"]["num_gpus"] == 2
    assert found["value"] == pytest.approx(0.75, abs=0.15)
    assert 0.5 <= figures["generate/gpu_utilization_in_tail"]["value"] <= 1
    assert figures["generate/output_tokens_per_s"]["detail"]["num_tokens"] == 4 * 2 * 8
    [(first, gpu, args), (second, other, _)] = starts(place)
    assert ("0", "1") == (gpu, other)
    assert ["serve", str(tiny_model_folder())] == args[:2]
    assert "1" == args[args.index("--tensor-parallel-size") + 1]
    assert ["--seed", "3"] == args[args.index("--seed") :][:2]
    assert not [pid for pid in (first, second) if Path(f"/proc/{pid}").exists()]
    assert not list(place.glob("mmar-*"))


def test_a_server_may_span_gpus(place: Path) -> None:
    """As many as are said, where heads split so."""
    code, said, complained = end(start("--gpus", "2", "--tensor-parallel", "2"))
    assert code == ExitCode.DONE, complained
    assert "2 x NVIDIA H200" in said
    [(_, gpus, args)] = starts(place)
    assert "0,1" == gpus
    assert "2" == args[args.index("--tensor-parallel-size") + 1]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--gpus", "3"), "--gpus 3: this process sees 2"),
        (("--gpus", "2", "--tensor-parallel", "3"), "this model on 2 GPUs takes 1 or 2"),
        (("--tensor-parallel", "2"), "give --gpus"),
        (("--gpus", "1", "--servers", "http://localhost:1"), "leave them or --servers out"),
        (("--gpus", "1", "--vllm-args=--refused"), "unrecognized arguments: --refused"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_cannot_be_served_is_one_line(flags: tuple[str, ...], line: str) -> None:
    """Exit code 2, and what to change."""
    code, _, complained = end(start(*flags))
    assert code == ExitCode.SETTINGS, complained
    assert line in complained.splitlines()[-1]
    assert "Traceback" not in complained


@pytest.mark.usefixtures("place")
def test_gpus_that_would_idle_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs are no two servers of two, and no one."""
    shape = Shape(10**9, num_layers=2, num_heads=32, num_kv_heads=4, head_dim=128)
    three = [Gpu(str(n), f"GPU-{n}", "a GPU", "1", 80) for n in range(3)]
    with pytest.raises(SettingsError, match=r"this model on 3 GPUs takes 1$"):
        layout_of(shape, three, USUAL_WORKLOAD, 2)
    large = replace(shape, weight_bytes=70 * 2**30, num_layers=48)
    with pytest.raises(SettingsError, match="servers over 2 GPUs each leave some over"):
        layout_of(large, three, USUAL_WORKLOAD, 0)


def test_a_server_that_dies_is_one_line_with_its_log(place: Path) -> None:
    """Not its options' fault: exit code 75, and the log is kept."""
    code, _, complained = end(start("--gpus", "2", "--vllm-args=--dies"))
    assert code == ExitCode.TRY_AGAIN, complained
    [logs] = place.glob("mmar-vllm-*")
    assert "a server ended before it answered, with 1 (no memory)" in complained
    assert str(logs) in complained
    assert "no memory" in (logs / "server-0.log").read_text()


@pytest.mark.parametrize(("options", "num_signals"), [("--seed 1", 1), ("--stays", 3)])
def test_a_stopped_bench_leaves_no_server(place: Path, options: str, num_signals: int) -> None:
    """Where a server does not end by itself, that takes 20 s, however often it is asked."""
    process = start("--gpus", "1", "--questions", "100000", f"--vllm-args={options}")
    wait_until(lambda: (place / "starts").exists() and bool(starts(place)), timeout_s=30)
    for _ in range(num_signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    code, _, complained = end(process)
    assert code == ExitCode.TRY_AGAIN, complained
    [(pid, _, _)] = starts(place)
    wait_until(lambda: not is_alive(pid), timeout_s=5)  # whoever adopts what it began reaps it


def test_gpus_are_those_that_are_visible(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they are named; what is hidden is not counted."""
    assert ["0", "1"] == [gpu.index for gpu in visible_gpus()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert ["1", "0"] == [gpu.index for gpu in visible_gpus()]
    assert "2 x NVIDIA H200" == names_of(visible_gpus())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    [one] = visible_gpus()
    assert Gpu("1", "GPU-b2", "NVIDIA H200", "580.1", 143771 / 1024) == one
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert [one] == visible_gpus()
    with GpuUtilization([one]) as sampled:
        began_s = time.monotonic()
        wait_until(lambda: sampled.mean(began_s, began_s + 60) is not None)
    assert 1.0 == sampled.mean(began_s, began_s + 60)
    assert 1.0 == sampled.mean(time.monotonic(), time.monotonic() + 60)
    assert sampled.mean(0, 1) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    fake_nvidia_smi(
        place / "bin", [GPUS[0], "1, GPU-c3, a part, 580.1, [N/A]"], ["0, [N/A]", "0, 7"]
    )
    [whole] = visible_gpus()
    with GpuUtilization([whole]) as sampled:
        wait_until(lambda: sampled.mean(0, began_s + 60) is not None)
    assert pytest.approx(0.07) == sampled.mean(0, began_s + 60)
    monkeypatch.setenv("PATH", str(place))
    assert [] == visible_gpus()
