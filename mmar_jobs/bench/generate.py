"""The generation bench: questions about synthetic clips, asked as `generate` asks them.

Of servers, which it may start itself (node.py), or of vLLM in this process. Not here: flags
(cpu_command.py). All that a stage does is timed: reading and sending clips, checking replies,
records, the journal and the shards; what a server does is its own.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import structlog
from pydantic import ValidationError

from mmar_jobs.artifact import Draft, begin
from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, ClipReader, encode_wav
from mmar_jobs.base_model import check_config
from mmar_jobs.bench.gpus import Gpu, GpuUtilization, names_of, visible_gpus
from mmar_jobs.bench.node import layout_of, started_servers
from mmar_jobs.bench.result import Direction, Environment, Measurement
from mmar_jobs.bench.spent import peak_bytes
from mmar_jobs.engine import Sampling
from mmar_jobs.engine.open import open_engine
from mmar_jobs.engine.serving import Workload, serve_args
from mmar_jobs.engine.serving_command import read_shape, served_name
from mmar_jobs.errors import SettingsError
from mmar_jobs.manifest import sha256
from mmar_jobs.progress import no_bar
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate, Question
from mmar_jobs.stages import Edges
from mmar_jobs.stages.answering import Asker, summarise
from mmar_jobs.stages.asking import Asking
from mmar_jobs.store import Store, open_store

_QUESTIONS_PER_SHARD: Final = 32
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class GenerateBench:
    """What to ask of whom; `servers` and `model` are those of generate.

    With `num_gpus` servers are started first, as serve-args would, or over `tensor_parallel` GPUs
    each; with neither these nor `servers`, vLLM answers in this process. Both get `vllm_args`.

    `num_warm_up` questions of their own come first, untimed: a vLLM that has just started still
    compiles kernels. `logprobs`: what all objectives but rest ask for.

    `clip_s` is the length of every clip, seconds; two questions share one, as in the data sets.
    """

    servers: str
    model: str
    num_gpus: int = 0
    tensor_parallel: int = 0
    num_questions: int = 64
    num_warm_up: int = 0
    num_draws: int = 16
    max_tokens: int = 512
    clip_s: float = 10.0
    temperature: float = 0.9
    top_p: float = 0.95
    logprobs: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0
    media_dir: str = ""
    vllm_args: str = ""


def run_generate_bench(bench: GenerateBench, environment: Environment) -> Iterator[Measurement]:
    """Ask all questions once; yields the figures of that.

    Raises what generate raises: GateError for a server of another model, TryAgain for one that is
    gone.
    """
    gpus = _own_gpus(bench)
    if gpus:
        environment = replace(environment, device=names_of(gpus), driver=gpus[0].driver)
    with ExitStack() as stack:
        urls = stack.enter_context(_started(bench, gpus)) if bench.num_gpus else bench.servers
        utilization = stack.enter_context(GpuUtilization(gpus)) if gpus else None
        yield from _ask(bench, _chosen(bench, urls), environment, utilization)


def _ask(
    bench: GenerateBench,
    chosen: EngineSettings,
    environment: Environment,
    utilization: GpuUtilization | None,
) -> Iterator[Measurement]:
    with TemporaryDirectory(prefix="mmar-bench-") as folder:
        store = open_store(folder)
        questions = _write_questions(Path(folder) / "clips", bench)
        engine = open_engine(Path(bench.model), None, chosen)
        engine.canary()  # servers that are still starting are waited for outside of the measurement
        edges = Edges(store, open_engine, no_bar, structlog.get_logger())
        clips = _TimedClips(str(Path(folder) / "clips"))
        asker = Asker(engine, clips, edges, _asking(bench))
        if bench.num_warm_up:  # asking nothing would still probe the servers
            asker.ask(_draft(store, "warm-up", bench), questions[bench.num_questions :], "warm-up")
        draft = _draft(store, "candidates", bench)
        began_s, cpu_began_s = time.monotonic(), time.process_time()
        names = asker.ask(draft, questions[: bench.num_questions], "bench")
        ended_s, cpu_s = time.monotonic(), time.process_time() - cpu_began_s
        counts, _ = summarise(c for name in names for c in draft.read_records(name, Candidate))
    most_bytes = peak_bytes()

    def one(
        name: str, unit: str, direction: Direction, value: float, **detail: object
    ) -> Measurement:
        case = asdict(bench) | {"servers": len(chosen.server_urls), "model": Path(bench.model).name}
        return Measurement(f"generate/{name}", unit, direction, (value,), case, environment, detail)

    seconds, tail_s = ended_s - began_s, ended_s - clips.last_read_s
    per_thousand = cpu_s / counts["num_candidates"] * 1000
    yield one("output_tokens_per_s", "tokens/s", "higher", counts["num_tokens"] / seconds, **counts)
    yield one("seconds", "s", "lower", seconds)
    yield one("tail_seconds", "s", "lower", tail_s)
    for name, since_s in (
        ("gpu_utilization", began_s),
        ("gpu_utilization_in_tail", clips.last_read_s),
    ):
        share = None if utilization is None else utilization.mean(since_s, ended_s)
        if share is not None:
            yield one(name, "share", "higher", share)
    yield one("client_cpu_s_per_1000_candidates", "s", "lower", per_thousand, cpu_s=cpu_s)
    yield one("client_peak_memory_gib", "GiB", "lower", most_bytes / _GIB)


class _TimedClips(ClipReader):
    """Notes when the last question was sent: from then on an engine's queue only gets shorter."""

    last_read_s = 0.0

    def read(self, question: Question) -> Clip:
        """See ClipReader."""
        self.last_read_s = time.monotonic()
        return super().read(question)


def _own_gpus(bench: GenerateBench) -> list[Gpu]:
    """The GPUs that what is started here will use; SettingsError where there are too few."""
    if bench.servers:
        if bench.num_gpus or bench.tensor_parallel or bench.vllm_args:
            raise SettingsError(
                "--gpus, --tensor-parallel and --vllm-args are for a vLLM that is started here: "
                "leave them or --servers out"
            )
        return []
    gpus = visible_gpus()
    if bench.num_gpus > len(gpus):
        raise SettingsError(f"--gpus {bench.num_gpus}: this process sees {len(gpus)}")
    if bench.tensor_parallel and not bench.num_gpus:
        raise SettingsError("--tensor-parallel is for servers that are started here: give --gpus")
    num_used = bench.num_gpus
    if gpus and not num_used:  # vLLM in this process takes what one server can span
        check_config(Path(bench.model))
        num_used = read_shape(Path(bench.model)).widest_split(len(gpus))
    return gpus[:num_used]


@contextmanager
def _started(bench: GenerateBench, gpus: Sequence[Gpu]) -> Iterator[str]:
    """Addresses of servers on these GPUs."""
    folder = Path(bench.model)
    check_config(folder)
    workload = Workload(bench.max_tokens, bench.max_tokens, bench.num_draws)
    layout = layout_of(read_shape(folder), gpus, workload, bench.tensor_parallel)
    name = served_name(folder)
    args = serve_args(layout, bench.model, name, dtype=bench.dtype, media_dir=bench.media_dir)
    with started_servers(layout, [*args, *shlex.split(bench.vllm_args)], gpus) as urls:
        yield ",".join(urls)


def _chosen(bench: GenerateBench, servers: str) -> EngineSettings:
    try:
        return EngineSettings(
            servers=servers,
            backend="transformers" if servers else "vllm",
            media_dir=bench.media_dir,
            vllm_args="" if servers else bench.vllm_args,
            dtype=bench.dtype,
        )
    except ValidationError as error:
        raise SettingsError(f"--servers {servers}: {error.errors()[0]['msg']}") from None


def _draft(store: Store, name: str, bench: GenerateBench) -> Draft:
    draft = begin(store, f"bench/{name}", stage="bench", recipe=asdict(bench), inputs={})
    assert isinstance(draft, Draft), "the store is new"
    return draft


def _asking(bench: GenerateBench) -> Asking:
    sampling = Sampling(
        temperature=bench.temperature,
        top_p=bench.top_p,
        top_k=0,
        repetition_penalty=1,
        max_tokens=bench.max_tokens,
        seed=bench.seed,
        logprobs=bench.logprobs,
    )
    draws = tuple(range(bench.num_draws))
    return Asking("v9", sampling, (draws,), questions_per_shard=_QUESTIONS_PER_SHARD)


def _write_questions(folder: Path, bench: GenerateBench) -> list[Question]:
    """Noise in files, and questions about it; no clip is like another, or a server would see it."""
    folder.mkdir()
    chance = np.random.default_rng(bench.seed)
    questions: list[Question] = []
    for number in range(bench.num_questions + bench.num_warm_up):
        if number % 2 == 0:
            noise = chance.standard_normal(round(bench.clip_s * SAMPLE_RATE_HZ), dtype=np.float32)
            data = encode_wav(Clip(0.1 * noise, bench.clip_s, SAMPLE_RATE_HZ, 1))
            name = f"{number:06d}.wav"
            (folder / name).write_bytes(data)
        questions.append(
            Question(
                id=f"q{number}",
                audio=name,
                text=f"Which of these is heard first in recording {number}?",
                choices=("a dog", "a bell", "rain"),
                audio_sha256=sha256(data),
                audio_s=bench.clip_s,
            )
        )
    return questions
