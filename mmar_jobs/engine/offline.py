"""The engine over vLLM in this process: no server, the same prompts, checks and records.

For a Job that owns its GPUs. vLLM is started as `mmar-jobs serve-args` would start one server over
as many GPUs as heads split over, and hears the samples that servers are sent. Not here: installing
vLLM, whose torch is another than the trainer's (images/serve).
"""

import asyncio
import gc
import os
import shlex
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog

from mmar_jobs.audio import SAMPLE_RATE_HZ, num_audio_tokens, whole_frames
from mmar_jobs.base_model import model_digest
from mmar_jobs.chat import load_tokenizer
from mmar_jobs.engine import (
    CANARY_REQUEST,
    CANARY_SAMPLING,
    Completion,
    Listener,
    Request,
    Sampling,
    answer_all,
)
from mmar_jobs.engine.fleet import Dispatcher, ticking
from mmar_jobs.engine.prompt_tokenizer import PromptTokenizer
from mmar_jobs.engine.serving import GIB, USUAL_WORKLOAD, Node, engine_args, one_server
from mmar_jobs.engine.serving_command import read_shape, served_name
from mmar_jobs.engine.wire import (
    Choice,
    Reply,
    check_room,
    completions,
    first_seed,
)
from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.manifest import sha256
from mmar_jobs.recipes import EngineSettings

# Sequences given to vLLM for each that it decodes at a time: the next ones wait where it can see
# them, and no more clips are held than that.
_AHEAD: Final = 1.5


class OfflineEngine:
    """Answers with an AsyncLLM of vLLM that has loaded exactly `identity`; see StreamingEngine.

    Not with an LLMEngine: when its core dies, vLLM 0.32 leaves it waiting for ever.
    """

    def __init__(self, identity: ModelIdentity, tokenizer: Any, vllm: Any) -> None:
        self.identity = identity
        self._tokenizer = PromptTokenizer(tokenizer)
        self.prompt_opens_thinking = self._tokenizer.opens_thinking
        self._vllm = vllm
        config = vllm.vllm_config
        self._max_model_len: int = config.model_config.max_model_len
        self._most_sequences = round(_AHEAD * config.scheduler_config.max_num_seqs)
        self._num_asked = 0
        # vLLM lives in one event loop, from its first request to its last.
        self._runner = asyncio.Runner()
        # Another engine may need the GPUs as soon as nobody holds this one.
        weakref.finalize(self, _end, vllm, self._runner)

    def canary(self) -> Canary:
        """Greedy tokens and their logprobs for the canary prompt and sound."""
        prompt_ids = self._tokenizer.prompt_ids(CANARY_REQUEST.prompt)
        reply = self._runner.run(self._reply(CANARY_REQUEST, prompt_ids, CANARY_SAMPLING))
        [choice] = reply.choices
        return Canary(token_ids=tuple(choice.token_ids), logprobs=tuple(choice.logprobs))

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """See Engine.answer."""
        return answer_all(self, requests, sampling, on_answer)

    def stream(self, requests: Iterable[Request], sampling: Sampling, listener: Listener) -> None:
        """See StreamingEngine.stream; TryAgain where vLLM ends in the middle."""
        dispatcher = Dispatcher[Request, list[Completion]](
            lambda under_way: sum(len(each.draws) for each in under_way) < self._most_sequences,
            lambda request: self._ask(request, sampling),
        )
        work = dispatcher.run(requests, listener.answered)
        self._runner.run(ticking(work, listener.waiting))

    async def _ask(self, request: Request, sampling: Sampling) -> list[Completion]:
        prompt_ids = self._tokenizer.prompt_ids(request.prompt)
        reply = await self._reply(request, prompt_ids, sampling)
        return completions(reply, request, prompt_ids, self._tokenizer.vocabulary)

    async def _reply(self, request: Request, prompt_ids: list[int], sampling: Sampling) -> Reply:
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 - not everywhere

        waveform = whole_frames(request.clip)
        num_tokens = len(prompt_ids) + num_audio_tokens(len(waveform))
        check_room("vLLM", self._max_model_len, num_tokens, sampling)
        prompt = {
            "prompt_token_ids": prompt_ids,
            "multi_modal_data": {"audio": [(waveform, SAMPLE_RATE_HZ)]},
            # Questions that share a clip share its embeddings.
            "multi_modal_uuids": {"audio": [sha256(waveform.tobytes())]},
        }
        self._num_asked += 1
        name = str(self._num_asked)
        try:
            [rendered] = await self._vllm.renderer.render_cmpl_async([prompt])
            outputs = self._vllm.generate(rendered, _sampling_params(request, sampling), name)
            [output] = [output async for output in outputs]
        except EngineDeadError:
            raise TryAgain(
                "vLLM ended in the middle, its log above says why: what was answered is kept, run "
                "the same command again"
            ) from None
        except ValueError as error:
            message = " ".join(str(error).split())
            raise DataError(f"question {request.question_id}: vLLM refuses it: {message}") from None
        return _reply(output, sampling)


def _end(vllm: Any, runner: asyncio.Runner) -> None:
    vllm.shutdown()
    runner.close()


def _sampling_params(request: Request, sampling: Sampling) -> Any:
    """The options that a server is sent (wire.request_body), for this process."""
    from vllm import SamplingParams  # noqa: PLC0415 - not everywhere
    from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind  # noqa: PLC0415

    detection = sampling.repetition_detection
    return SamplingParams(
        n=len(request.draws),
        seed=first_seed(sampling, request),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
        thinking_token_budget=sampling.thinking_token_budget,
        repetition_detection=None
        if detection is None
        else RepetitionDetectionParams(**asdict(detection)),
        logprobs=0 if sampling.logprobs else None,
        flat_logprobs=sampling.logprobs,
        # Text is made of the ids that count, by the project's own tokenizer.
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _reply(output: Any, sampling: Sampling) -> Reply:
    """What a server would have answered; see wire.Reply."""
    choices = [
        Choice(
            finish_reason=one.finish_reason,
            token_ids=list(one.token_ids),
            logprobs=list(one.logprobs.logprobs) if sampling.logprobs else (),
        )
        for one in sorted(output.outputs, key=lambda one: one.index)
    ]
    assert all(
        len(one.logprobs) == (len(one.token_ids) if sampling.logprobs else 0) for one in choices
    ), "logprobs=0 is one a token"
    return Reply(prompt_token_ids=list(output.prompt_token_ids), choices=choices)


def open_offline_engine(
    base: Path, adapter: Path | None, settings: EngineSettings
) -> OfflineEngine:
    """Start vLLM with a base, or with base and adapter merged into `settings.merged_dir`.

    Raises SettingsError where vLLM is not installed, or does not start with these options.
    """
    # An engine that nobody holds any more still has its GPUs where a cycle holds it.
    gc.collect()
    folder, identity = base, ModelIdentity(base_digest=model_digest(base))
    if adapter is not None:
        folder, identity = _merge(base, adapter, settings)
    return OfflineEngine(identity, load_tokenizer(base), _start(folder, settings))


def _merge(base: Path, adapter: Path, settings: EngineSettings) -> tuple[Path, ModelIdentity]:
    if not settings.merged_dir:
        raise SettingsError(
            "vLLM loads base and adapter merged: give --engine.merged-dir, a folder with room for "
            "a copy of the base"
        )
    from mmar_jobs.qlora.merge_run import (  # noqa: PLC0415 - a base needs no merge
        Placement,
        find_adapter,
        merge_model,
    )

    merged = merge_model(
        base,
        find_adapter(str(adapter)),
        output=None,
        cache=Path(settings.merged_dir),
        placement=Placement(num_threads=len(os.sched_getaffinity(0))),
    )
    return merged.path, merged.identity


def _start(folder: Path, settings: EngineSettings) -> Any:
    """An AsyncLLM over the GPUs of this process, by the options of `serve-args`."""
    # Standard output is the command's own; vLLM reads this when it is imported.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        from vllm import AsyncEngineArgs  # noqa: PLC0415 - in few environments
        from vllm.platforms import current_platform  # noqa: PLC0415 - the same
        from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415 - the same
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415 - the same
    except ImportError as error:
        raise SettingsError(
            f"--engine.backend vllm: vLLM is not installed here ({error}): run in the image "
            "`serve`, or give --engine.servers"
        ) from None
    num_gpus = 1 if current_platform.is_cpu() else _num_gpus(current_platform)
    node = Node(num_gpus, current_platform.get_device_total_memory() / GIB)
    layout = one_server(read_shape(folder), node, USUAL_WORKLOAD)
    if layout.tensor_parallel < num_gpus:
        structlog.get_logger().warning(
            "gpus_idle", used=layout.tensor_parallel, visible=num_gpus, why="heads split no further"
        )
    args = engine_args(
        layout, str(folder), served_name(folder), dtype=settings.dtype, thinking_budget=True
    )
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="--engine.vllm-args"))
    try:
        chosen = parser.parse_args(["--model", *args, *shlex.split(settings.vllm_args)])
        return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(chosen))
    except (SystemExit, ValueError) as error:
        reason = "" if isinstance(error, SystemExit) else f" ({' '.join(str(error).split())[:300]})"
        raise SettingsError(
            f"vLLM refuses its options{reason}: correct --engine.vllm-args; it was started with "
            f"{shlex.join(args)}"
        ) from None
    except RuntimeError as error:
        # The core died on the way: of memory that another process still holds, or of its options.
        raise TryAgain(
            f"vLLM did not start ({' '.join(str(error).split())[:300]}), its log above says why: "
            "run the same command again, or correct --engine.vllm-args"
        ) from None


def _num_gpus(platform: Any) -> int:
    count = platform.device_count
    # vLLM's platform of a machine without devices has no count at all.
    if count is None or not count():
        raise SettingsError(
            "--engine.backend vllm: no GPU is visible to this process; ask for one, or give "
            "--engine.servers"
        )
    return int(count())
