"""Tests of the plan: its arithmetic, its words, and the report's comparison with what was."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_html import tags_of, words_of
from report_questions import Plan as Fabricated
from report_run import RUN_ID, build_run

from mmar_jobs.cli import run_command
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.layout import estimate_key
from mmar_jobs.planning.assumptions import ASSUMPTIONS, with_changes
from mmar_jobs.planning.estimate import Job, Plan, StagePlan, checkpoint_bytes, estimate
from mmar_jobs.planning.prices import read_prices
from mmar_jobs.planning.shape import REFERENCE, read_shape
from mmar_jobs.planning.text import duration, size
from mmar_jobs.report import write_report
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails

COUNT = st.integers(1, 100_000)
JOBS = st.builds(
    Job,
    num_train=COUNT,
    num_heldout=COUNT,
    num_benchmark=COUNT,
    iterations=st.integers(1, 5),
    questions_per_iteration=st.integers(0, 2000),
    num_candidates=st.integers(1, 64),
    max_tokens=st.integers(1, 8000),
    questions_per_shard=st.integers(1, 64),
    adaptive=st.booleans(),
    audio_dependence=st.booleans(),
    muted_control=st.booleans(),
    top_k=st.none() | st.integers(1, 16),
    objective=st.sampled_from(["rest", "grpo", "rest+grpo"]),
    num_scorings=st.integers(0, 2),
    num_epochs=st.integers(1, 3),
    rank=st.integers(1, 128),
    optimizer=st.sampled_from(["adamw", "adamw8bit"]),
    examples_per_step=st.integers(1, 64),
    checkpoint_every_steps=st.integers(1, 100),
    votes=st.integers(1, 16),
)


def plan_of(job: Job, **values: float) -> Plan:
    """A plan with the default prices and some assumptions replaced."""
    changes = [f"{name}={value}" for name, value in values.items()]
    return estimate(job, REFERENCE, with_changes(changes), read_prices(None))


@given(JOBS, st.sampled_from(["num_train", "num_heldout", "num_benchmark", "iterations"]))
def test_more_is_never_cheaper(job: Job, name: str) -> None:
    """One more question, or iteration, takes no less of anything."""
    more = job.model_copy(update={name: getattr(job, name) + 1})
    less_plan, more_plan = plan_of(job), plan_of(more)
    for field in ("wall_s", "gpu_hours", "storage_bytes", "num_writes", "num_reads"):
        assert getattr(less_plan, field) <= getattr(more_plan, field)
    assert less_plan.price["total"] <= more_plan.price["total"]


@given(JOBS)
def test_sums_add_up(job: Job) -> None:
    """Totals are those of the stages, the price that of its parts, all finite and not negative."""
    plan = plan_of(job)
    prices = plan.prices
    assert sum(made.seconds for made in plan.stages) == pytest.approx(plan.wall_s)
    hours = sum(made.seconds * made.num_gpus for made in plan.stages) / 3600
    assert hours == pytest.approx(plan.gpu_hours)
    assert sum(made.storage_bytes for made in plan.stages) == plan.storage_bytes
    parts = [value for name, value in plan.price.items() if name != "total"]
    assert sum(parts) == pytest.approx(plan.price["total"])
    assert min(parts) >= 0
    assert plan.gpu_hours * prices.gpu_hour == pytest.approx(plan.price["gpu"])
    assert plan.peak_bytes == plan.storage_bytes + checkpoint_bytes(job, REFERENCE)
    assert plan == Plan.model_validate_json(plan.model_dump_json())


JOB = Job(
    num_train=3600,
    num_heldout=400,
    num_benchmark=1000,
    iterations=1,
    questions_per_iteration=0,
    num_candidates=16,
    max_tokens=6000,
    questions_per_shard=32,
    adaptive=False,
    audio_dependence=False,
    muted_control=True,
    top_k=3,
    objective="rest",
    num_scorings=0,
    num_epochs=1,
    rank=64,
    optimizer="adamw8bit",
    examples_per_step=8,
    checkpoint_every_steps=20,
    votes=1,
)


def test_units_are_right() -> None:
    """A hand-made example: 3,600 questions x 16 answers x 100 tokens at 1,600 tokens/s is 1 h."""
    plan = plan_of(
        JOB, generate_tokens_per_s=1600, completion_tokens=100, server_start_s=0, servers=1
    )
    generate = next(made for made in plan.stages if made.stage == "generate")
    assert (57_600, 5_760_000, 3600) == (
        generate.num_answers,
        generate.num_tokens,
        generate.seconds,
    )
    assert 1.0 == generate.gpu_hours
    train = next(made for made in plan.stages if made.stage == "train")
    num_examples = 3600 * 0.4 * 3
    assert num_examples == train.num_examples
    assert num_examples * (250 + 15 * 13 + 100) == train.num_tokens
    clips = next(made for made in plan.stages if made.stage == "clips")
    assert 5000 * 15 * 32_000 == clips.storage_bytes


def test_a_policy_gradient_learns_all_candidates_and_scores_them_first() -> None:
    """Right and wrong ones, twice, and once or twice as a forward pass alone."""
    values = {"completion_tokens": 55, "train_tokens_per_s": 1000, "trainer_start_s": 0}
    policy = {"objective": "grpo", "num_epochs": 2, "num_scorings": 1}
    once = train_of(JOB.model_copy(update=policy), **values)
    num_candidates = 3600 * 0.4 * 16
    assert num_candidates == once.num_examples
    assert num_candidates * (250 + 15 * 13 + 55) * 2 == once.num_tokens
    assert once.num_tokens / 1000 * (1 + 1 / (2 * 3)) == pytest.approx(once.seconds)
    twice = train_of(JOB.model_copy(update=policy | {"num_scorings": 2}), **values)
    assert once.num_tokens / 1000 / 6 == pytest.approx(twice.seconds - once.seconds)
    halved = policy | {"adaptive": True}
    adaptive = train_of(JOB.model_copy(update=halved), adaptive_share=0.5, **values)
    assert num_candidates / 2 == adaptive.num_examples


def train_of(job: Job, **values: float) -> StagePlan:
    """The training of the first iteration."""
    return next(made for made in plan_of(job, **values).stages if made.stage == "train")


def test_servers_divide_time_and_not_gpu_hours() -> None:
    """Two servers answer in half the time and cost the same, but for their start."""
    one = plan_of(JOB, server_start_s=0)
    two = plan_of(JOB, server_start_s=0, servers=2)
    assert two.wall_s < one.wall_s
    assert one.gpu_hours == pytest.approx(two.gpu_hours)


def test_shape_is_that_of_the_30b_model(model_folder: Path) -> None:
    """3.38 B trained and 30.5 B stored parameters, 3 B a token; a folder's own shape is smaller."""
    assert 3.38 == pytest.approx(REFERENCE.trained_parameters(64) / 1e9, abs=0.01)
    assert 30.5 == pytest.approx(REFERENCE.parameters / 1e9, abs=0.1)
    assert 3.0 == pytest.approx(REFERENCE.active_parameters / 1e9, abs=0.1)
    tiny = read_shape(model_folder)
    assert tiny.parameters < 2e6
    fast = estimate(JOB, tiny, with_changes([]), read_prices(None))
    assert fast.gpu_hours < plan_of(JOB).gpu_hours


def test_exported_parameters_are_those_of_a_real_adapter(
    model_folder: Path, tmp_path: Path
) -> None:
    """The formula against the tensors that an export of the tiny model writes."""
    import torch
    from safetensors.torch import load_file

    from mmar_jobs.qlora.export import export_adapter
    from mmar_jobs.qlora.load import load_thinker
    from mmar_jobs.qlora.lora import attach_lora
    from mmar_jobs.qlora.recipes import LoraRecipe

    model = load_thinker(model_folder, dtype=torch.float32, device=torch.device("cpu"))
    lora = attach_lora(model, LoraRecipe(4, 8.0, 0.0), seed=0)
    shape = read_shape(model_folder)
    assert shape.trained_parameters(4) == sum(f.numel() for f in lora.factors().values())
    export_adapter(lora, tmp_path, "tiny")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert shape.exported_parameters(4) == sum(tensor.numel() for tensor in tensors.values())


@given(st.sampled_from(ASSUMPTIONS), st.floats(0, 10))
def test_assumptions_can_be_replaced(assumption: Any, factor: float) -> None:
    """Within its limits any is taken, and says that it is the user's own."""
    value = min(max(assumption.value * factor, assumption.low), assumption.high)
    found = with_changes([f"{assumption.name}={value!r}"])[assumption.name]
    assert value == found.value
    assert "your own" in found.source
    assert assumption.unit == found.unit


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--questions or --num-train is needed"),
        (("--num-train", "0"), "--num-train '0'"),
        (("--num-train", "1"), "a run needs both"),
        (("--num-train", "-5"), "--num-train '-5'"),
        (("--num-train", "9", "--assume", "server=2"), "did you mean servers"),
        (("--num-train", "9", "--assume", "servers"), "give servers=NUMBER, 1 or more servers"),
        (("--num-train", "9", "--assume", "servers=nan"), "give servers=NUMBER"),
        (("--num-train", "9", "--assume", "learning_share=2"), "0 to 1"),
        (("--num-train", "9", "--assume", "completion_tokens=inf"), "give completion_tokens"),
        (("--num-train", "99", "--keep"), "--keep needs --store and --run-id"),
        (("--num-train", "99", "--prices", "nowhere.toml"), "nowhere.toml cannot be read"),
        (("--num-train", "99", "--sampling.num-candidates", "0"), "--sampling.num-candidates '0'"),
    ],
)
def test_nonsense_is_refused_in_one_line(flags: tuple[str, ...], said: str, fails: Fails) -> None:
    """Exit 2, with what to give instead."""
    assert said in fails(ExitCode.SETTINGS, "plan", *flags)


@pytest.mark.parametrize(
    ("content", "said"),
    [("gpu_hour = -1", "Field required"), ("= x", "not TOML"), ("{full}\nmore = 1", "more")],
)
def test_wrong_price_list_is_named(tmp_path: Path, content: str, said: str, fails: Fails) -> None:
    """Missing, negative, misspelt or unreadable prices are no prices."""
    path = tmp_path / "prices.toml"
    full = read_prices(None)
    lines = [f"{name} = {json.dumps(value)}" for name, value in full.model_dump().items()]
    path.write_text(content.format(full="\n".join(lines)) if "{" in content else content)
    flags = ("--num-train", "99", "--prices", str(path))
    assert said in fails(ExitCode.SETTINGS, "plan", *flags)


def test_plan_takes_the_objectives_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Passes and step sizes of the policy gradient, and a pass by the base that holds it back."""
    flags = ["--num-train", "99", "--json", "--objective", "grpo", "--grpo.num-epochs", "3"]
    flags += ["--grpo.kl-weight", "0.1", "--reward.audio-dependence", "0.5"]
    assert ExitCode.DONE == run_command("plan", flags)
    job = json.loads(capsys.readouterr().out)["job"]
    found = [job[name] for name in ("num_epochs", "examples_per_step", "num_scorings")]
    assert [3, 64, 2] == found
    assert job["audio_dependence"]


def test_plan_reads_what_run_reads(
    world: TinyWorld, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are counted, the config file is the run's own, flags win."""
    config = tmp_path / "run.toml"
    config.write_text(
        f'questions = "{world.train}"\nbenchmark = "{world.benchmark}"\n'
        f'model = "{model_folder}"\niterations = 2\n[sampling]\nnum_candidates = 4\n'
    )
    command = ["--config", str(config), "--heldout", str(world.heldout), "--json"]
    assert ExitCode.DONE == run_command("plan", command)
    plan = json.loads(capsys.readouterr().out)
    job = plan["job"]
    assert (12, 8, 6) == (job["num_train"], job["num_heldout"], job["num_benchmark"])
    assert (2, 4) == (job["iterations"], job["num_candidates"])
    assert read_shape(model_folder).model_dump() == plan["shape"]
    split = ["--num-train", "1000", "--data.heldout-fraction", "0.2", "--json"]
    assert ExitCode.DONE == run_command("plan", split)
    job = json.loads(capsys.readouterr().out)["job"]
    assert (800, 200, 1000) == (job["num_train"], job["num_heldout"], job["num_benchmark"])


def test_table_shows_every_assumption_and_the_prices(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that the figures rest on is hidden."""
    assert ExitCode.DONE == run_command("plan", ["--num-train", "4000", "--assume", "servers=4"])
    said = capsys.readouterr().out
    for assumption in ASSUMPTIONS:
        assert assumption.name in said
        assert assumption.unit in said
    assert "your own (--assume)" in said
    for part in ("example prices", read_prices(None).date, "GPU hours", "3.38 B trained"):
        assert part in said


def test_words_of_amounts() -> None:
    """Decimal units, and times as people say them."""
    assert ["999 B", "1.5 kB", "2.0 GB"] == [size(999), size(1500), size(2e9)]
    said = [duration(seconds) for seconds in (40, 720, 18_600, 273_600)]
    assert ["40 s", "12 min", "5 h 10 min", "3 d 4 h"] == said


def test_plan_is_kept_only_before_the_run(
    tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be replaced until the run has an artifact; afterwards it would be no plan."""
    store = open_store(str(tmp_path / "store"))
    keep = ("--num-train", "400", "--store", str(tmp_path / "store"), "--run-id", RUN_ID, "--keep")
    assert ExitCode.DONE == run_command("plan", keep)
    assert ExitCode.DONE == run_command("plan", (*keep, "--iterations", "2"))
    capsys.readouterr()
    kept = Plan.model_validate_json(store.read(estimate_key(RUN_ID)))
    assert 2 == kept.job.iterations
    (tmp_path / "audio").mkdir()
    build_run(store, tmp_path / "audio", Fabricated())
    assert "has begun" in fails(ExitCode.SETTINGS, "plan", *keep)
    page = write_report(store, RUN_ID).decode()
    assert page.encode() == write_report(store, RUN_ID)
    words = words_of(page)
    for part in (
        "Plan and actual",
        "Time, generate",
        "GPU hours",
        "Training tokens",
        "not an offer",
    ):
        assert part in words
    assert {"id": "plan"} in [given for tag, given in tags_of(page) if tag == "section"]


def test_report_without_a_plan_has_no_such_section(tmp_path: Path) -> None:
    """Nothing is planned after the fact."""
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "audio").mkdir()
    build_run(store, tmp_path / "audio", Fabricated())
    assert "Plan and actual" not in words_of(write_report(store, RUN_ID).decode())


def test_damaged_plan_is_named(tmp_path: Path) -> None:
    """The report says which file to delete."""
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "audio").mkdir()
    build_run(store, tmp_path / "audio", Fabricated())
    store.write(estimate_key(RUN_ID), b"{}")
    with pytest.raises(DataError, match=r"estimate\.json"):
        write_report(store, RUN_ID)
