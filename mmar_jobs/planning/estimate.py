"""From a job, a shape and assumptions to hours, bytes, requests and a price; pure arithmetic.

Not here: where the numbers come from (command.py) and how they read (text.py).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mmar_jobs.planning.assumptions import Assumption
from mmar_jobs.planning.prices import Prices
from mmar_jobs.planning.shape import REFERENCE, Shape
from mmar_jobs.recipes import Objective
from mmar_jobs.records import Record

CLIPS: Final = "clips"  # stands among the stages for the sound, which no stage makes
AUDIO_TOKENS_PER_S: Final = 13
_WAV_BYTES_PER_S: Final = 32_000  # 16 kHz, mono, 16 bits
_MULTIPART_BYTES: Final = 32 << 20  # what store/s3.py uploads at a time
_ADAPTER_BYTES: Final = 2  # bf16
_MASTER_BYTES: Final = 4  # fp32 factors while training
_MOMENT_BYTES: Final = {"adamw": 8, "adamw8bit": 2}
_EXAMPLE_BYTES: Final = 200  # of a row beside its completion
_QUESTION_BYTES: Final = 200


class Job(Record):
    """What a run will do, as its settings and files say it; `top_k` None keeps all right ones.

    `num_scorings`: forward passes over all candidates before a policy gradient's first step.
    """

    num_train: int
    num_heldout: int
    num_benchmark: int
    iterations: int
    questions_per_iteration: int
    num_candidates: int
    max_tokens: int
    questions_per_shard: int
    adaptive: bool
    audio_dependence: bool
    muted_control: bool
    top_k: int | None
    objective: Objective
    num_scorings: int
    num_epochs: int
    rank: int
    optimizer: str
    examples_per_step: int
    checkpoint_every_steps: int
    votes: int


class StagePlan(Record):
    """One stage of one iteration, 0 outside of the loop; `num_tokens` drawn or trained."""

    stage: str
    iteration: int
    seconds: float
    num_gpus: int
    num_answers: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    storage_bytes: int = 0
    num_writes: int = 0
    num_reads: int = 0

    @property
    def gpu_hours(self) -> float:
        """GPUs held by the stage, in hours; 0 for what runs on CPUs."""
        return self.seconds * self.num_gpus / 3600


class Plan(Record):
    """A whole run; `price` has its parts and `total`."""

    job: Job
    shape: Shape
    assumptions: tuple[Assumption, ...]
    prices: Prices
    stages: tuple[StagePlan, ...]
    wall_s: float
    gpu_hours: float
    storage_bytes: int
    peak_bytes: int
    num_writes: int
    num_reads: int
    price: dict[str, float]


def estimate(job: Job, shape: Shape, assumptions: Mapping[str, Assumption], prices: Prices) -> Plan:
    """Add up the stages of a run in which every child is promoted: the longest one."""
    stages = tuple(_Estimator(job, shape, assumptions).stages())
    storage = sum(stage.storage_bytes for stage in stages)
    gpu_hours = sum(stage.gpu_hours for stage in stages)
    num_writes = sum(stage.num_writes for stage in stages)
    num_reads = sum(stage.num_reads for stage in stages)
    parts = {
        "gpu": gpu_hours * prices.gpu_hour,
        "storage": storage / 1e9 * assumptions["storage_months"].value * prices.storage_gb_month,
        "requests": (num_writes * prices.writes_per_1000 + num_reads * prices.reads_per_1000)
        / 1000,
    }
    return Plan(
        job=job,
        shape=shape,
        assumptions=tuple(assumptions.values()),
        prices=prices,
        stages=stages,
        wall_s=sum(stage.seconds for stage in stages),
        gpu_hours=gpu_hours,
        storage_bytes=storage,
        peak_bytes=storage + checkpoint_bytes(job, shape),
        num_writes=num_writes,
        num_reads=num_reads,
        price={**parts, "total": sum(parts.values())},
    )


def checkpoint_bytes(job: Job, shape: Shape) -> int:
    """Factors in fp32 and the optimiser's moments; one is kept, and only while training."""
    per_parameter = _MASTER_BYTES + _MOMENT_BYTES[job.optimizer]
    return per_parameter * shape.trained_parameters(job.rank)


@dataclass(frozen=True)
class _Estimator:
    """The stages one after the other."""

    job: Job
    shape: Shape
    assumptions: Mapping[str, Assumption]

    def stages(self) -> Iterator[StagePlan]:
        yield self._clips()
        yield self._ingest()
        for iteration in range(1, self.job.iterations + 1):
            yield self._generate(iteration)
            yield self._filter(iteration)
            yield self._train(iteration)
            yield self._evaluate(iteration)
        yield self._infer()
        yield StagePlan(
            stage="submit",
            iteration=0,
            seconds=0,
            num_gpus=0,
            storage_bytes=math.ceil(self.job.num_benchmark * self._answer_bytes),
            num_writes=3,
            num_reads=3,
        )

    def _of(self, name: str) -> float:
        return self.assumptions[name].value

    @property
    def _slowness(self) -> float:
        """How much slower than the measured shape: by the parameters that a token meets."""
        return self.shape.active_parameters / REFERENCE.active_parameters

    @property
    def _completion_tokens(self) -> float:
        return min(self._of("completion_tokens"), self.job.max_tokens)

    @property
    def _token_bytes(self) -> float:
        """Of a candidate's token itself, which is kept where a policy learns from it."""
        return 0 if self.job.objective == "rest" else self._of("drawn_token_bytes")

    @property
    def _answer_bytes(self) -> float:
        return self._completion_tokens * self._of("candidate_bytes")

    @property
    def _num_asked(self) -> int:
        wanted = self.job.questions_per_iteration
        return min(wanted, self.job.num_train) if wanted else self.job.num_train

    @property
    def _num_clips(self) -> int:
        return self.job.num_train + self.job.num_heldout + self.job.num_benchmark

    @property
    def _num_draws(self) -> float:
        """Candidates of a question."""
        return self.job.num_candidates * (self._of("adaptive_share") if self.job.adaptive else 1)

    @property
    def _num_examples(self) -> int:
        right = self.job.num_candidates * self._of("correct_share")
        kept = right if self.job.top_k is None else min(right, self.job.top_k)
        if self.job.objective != "rest":  # a policy learns from the wrong ones as well
            kept = self._num_draws
        return math.ceil(self._num_asked * self._of("learning_share") * kept)

    def _clips(self) -> StagePlan:
        """The sound itself, which somebody has put into the store."""
        num_bytes = self._num_clips * self._of("clip_s") * _WAV_BYTES_PER_S
        return StagePlan(
            stage=CLIPS,
            iteration=0,
            seconds=0,
            num_gpus=0,
            storage_bytes=math.ceil(num_bytes),
            num_writes=self._num_clips,
        )

    def _ingest(self) -> StagePlan:
        return StagePlan(
            stage="ingest",
            iteration=0,
            seconds=self._num_clips * self._of("decode_s"),
            num_gpus=0,
            storage_bytes=self._num_clips * _QUESTION_BYTES,
            num_writes=6,
            num_reads=3 + self._num_clips,
        )

    def _generate(self, iteration: int) -> StagePlan:
        drawn = self._answers("generate", iteration, self._num_asked, draws=self._num_draws)
        num_bytes = drawn.storage_bytes + math.ceil(drawn.num_tokens * self._token_bytes)
        drawn = drawn.model_copy(update={"storage_bytes": num_bytes})
        if not self.job.audio_dependence:
            return drawn
        muted = self._answers("generate", iteration, self._num_asked, draws=1, is_running=True)
        return _joined(drawn, muted)

    def _filter(self, iteration: int) -> StagePlan:
        num_shards = math.ceil(self._num_asked / self.job.questions_per_shard)
        row_bytes = self._answer_bytes + _EXAMPLE_BYTES
        row_bytes += self._completion_tokens * self._token_bytes
        return StagePlan(
            stage="filter",
            iteration=iteration,
            seconds=0,
            num_gpus=0,
            num_examples=self._num_examples,
            storage_bytes=math.ceil(self._num_examples * row_bytes),
            num_writes=3,
            num_reads=3 + num_shards,
        )

    def _train(self, iteration: int) -> StagePlan:
        job = self.job
        heard = self._of("clip_s") * AUDIO_TOKENS_PER_S
        row_tokens = self._of("prompt_text_tokens") + heard + self._completion_tokens
        num_once = math.ceil(self._num_examples * row_tokens)
        num_tokens = num_once * job.num_epochs
        work_tokens = num_tokens + num_once * job.num_scorings / self._of("scoring_speed")
        num_gpus = math.ceil(self._of("train_gpus"))
        speed = self._of("train_tokens_per_s") * num_gpus
        adapter = _ADAPTER_BYTES * self.shape.exported_parameters(job.rank)
        num_steps = math.ceil(self._num_examples / job.examples_per_step) * job.num_epochs
        num_saves = num_steps // job.checkpoint_every_steps
        saved = checkpoint_bytes(job, self.shape)
        num_learned = math.ceil(self._num_asked * self._of("learning_share"))
        embeds = num_learned * heard * self.shape.hidden * _ADAPTER_BYTES
        return StagePlan(
            stage="train",
            iteration=iteration,
            seconds=self._of("trainer_start_s") + work_tokens * self._slowness / speed,
            num_gpus=num_gpus,
            num_examples=self._num_examples,
            num_tokens=num_tokens,
            storage_bytes=math.ceil(adapter + embeds),
            num_writes=5 + _num_parts(adapter) + num_saves * _num_parts(saved),
            num_reads=6 + num_learned,
        )

    def _evaluate(self, iteration: int) -> StagePlan:
        """The child, muted where asked for; the base once, as a promoted child answered before."""
        num = self.job.num_heldout
        made = self._answers("evaluate", iteration, num, draws=1)
        if self.job.muted_control:
            muted = self._answers("evaluate", iteration, num, draws=1, is_running=True)
            made = _joined(made, muted)
        if iteration == 1:
            made = _joined(made, self._answers("evaluate", iteration, num, draws=1))
        return made

    def _infer(self) -> StagePlan:
        return self._answers("infer", 0, self.job.num_benchmark, draws=self.job.votes)

    def _answers(
        self,
        stage: str,
        iteration: int,
        num_questions: int,
        *,
        draws: float,
        is_running: bool = False,
    ) -> StagePlan:
        """One model asked `draws` answers a question; its servers start unless they run already."""
        num_answers = math.ceil(num_questions * draws)
        num_tokens = math.ceil(num_answers * self._completion_tokens)
        num_servers = math.ceil(self._of("servers"))
        speed = self._of("generate_tokens_per_s") * num_servers
        if draws == 1:
            speed *= self._of("greedy_speed_share")
        num_shards = math.ceil(num_questions / self.job.questions_per_shard)
        start_s = 0.0 if is_running else self._of("server_start_s")
        return StagePlan(
            stage=stage,
            iteration=iteration,
            seconds=start_s + num_tokens * self._slowness / speed,
            num_gpus=math.ceil(self._of("gpus_per_server")) * num_servers,
            num_answers=num_answers,
            num_tokens=num_tokens,
            storage_bytes=math.ceil(num_tokens * self._of("candidate_bytes")),
            num_writes=2 + num_shards,
            num_reads=4 + num_questions,
        )


def _joined(one: StagePlan, other: StagePlan) -> StagePlan:
    """Two askings of one stage as one."""
    names = ("seconds", "num_answers", "num_tokens", "storage_bytes", "num_writes", "num_reads")
    return one.model_copy(update={n: getattr(one, n) + getattr(other, n) for n in names})


def _num_parts(num_bytes: float) -> int:
    """Requests of one upload in parts, with its beginning and end."""
    return math.ceil(num_bytes / _MULTIPART_BYTES) + 2
