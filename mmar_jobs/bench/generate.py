"""The generation bench: questions about synthetic clips, asked as `generate` asks them.

Of servers, or of vLLM in this process. Not here: the servers, flags (cpu_command.py). All that a
stage does is timed: reading and sending clips, checking replies, records, the journal and the
shards; what a server does is its own.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import structlog
from pydantic import ValidationError

from mmar_jobs.artifact import Draft, begin
from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, ClipReader, encode_wav
from mmar_jobs.bench.result import Direction, Environment, Measurement
from mmar_jobs.bench.spent import peak_bytes
from mmar_jobs.engine import Sampling
from mmar_jobs.engine.open import open_engine
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

    Without servers vLLM answers in this process, with `vllm_args`. `num_warm_up` questions of their
    own come first, untimed: a vLLM that has just started still compiles kernels. `logprobs`: what
    all objectives but rest ask for.

    `clip_s` is the length of every clip, seconds; two questions share one, as in the data sets.
    """

    servers: str
    model: str
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
    chosen = _chosen(bench)
    with TemporaryDirectory(prefix="mmar-bench-") as folder:
        store = open_store(folder)
        questions = _write_questions(Path(folder) / "clips", bench)
        engine = open_engine(Path(bench.model), None, chosen)
        engine.canary()  # servers that are still starting are waited for outside of the measurement
        edges = Edges(store, open_engine, no_bar, structlog.get_logger())
        asker = Asker(engine, ClipReader(str(Path(folder) / "clips")), edges, _asking(bench))
        if bench.num_warm_up:  # asking nothing would still probe the servers
            asker.ask(_draft(store, "warm-up", bench), questions[bench.num_questions :], "warm-up")
        draft = _draft(store, "candidates", bench)
        began_s, cpu_began_s = time.monotonic(), time.process_time()
        names = asker.ask(draft, questions[: bench.num_questions], "bench")
        seconds, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_began_s
        counts, _ = summarise(c for name in names for c in draft.read_records(name, Candidate))
    most_bytes = peak_bytes()

    def one(
        name: str, unit: str, direction: Direction, value: float, **detail: object
    ) -> Measurement:
        case = asdict(bench) | {"servers": len(chosen.server_urls), "model": Path(bench.model).name}
        return Measurement(f"generate/{name}", unit, direction, (value,), case, environment, detail)

    per_thousand = cpu_s / counts["num_candidates"] * 1000
    yield one("output_tokens_per_s", "tokens/s", "higher", counts["num_tokens"] / seconds, **counts)
    yield one("seconds", "s", "lower", seconds)
    yield one("client_cpu_s_per_1000_candidates", "s", "lower", per_thousand, cpu_s=cpu_s)
    yield one("client_peak_memory_gib", "GiB", "lower", most_bytes / _GIB)


def _chosen(bench: GenerateBench) -> EngineSettings:
    if bench.servers and bench.vllm_args:
        raise SettingsError("--vllm-args is for vLLM in this process: leave it or --servers out")
    try:
        return EngineSettings(
            servers=bench.servers,
            backend="transformers" if bench.servers else "vllm",
            media_dir=bench.media_dir,
            vllm_args=bench.vllm_args,
            dtype=bench.dtype,
        )
    except ValidationError as error:
        raise SettingsError(f"--servers {bench.servers}: {error.errors()[0]['msg']}") from None


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
