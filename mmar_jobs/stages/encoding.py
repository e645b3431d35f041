"""Examples as rows for the trainer, and the embeddings of their clips.

Mel features are made by a few threads ahead of the tower, so that a GPU does not wait for them; no
more than a window of clips is in memory. Not here: what a row is (qlora/encode.py), keeping
embeddings (clip_embeds.py).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeVar

from mmar_jobs.audio import ClipReader
from mmar_jobs.encode import EncodedPrompt, encode_prompt
from mmar_jobs.errors import GateError, TryAgain
from mmar_jobs.progress import Advance
from mmar_jobs.prompt import render
from mmar_jobs.qlora.audio_embeds import MelFeatures, embed_window
from mmar_jobs.qlora.distributed import Workers
from mmar_jobs.qlora.encode import encode_example, encode_policy_example
from mmar_jobs.qlora.foreign import Processor, Thinker
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.records import Example, PolicyExample, Question
from mmar_jobs.stages.clip_embeds import ClipEmbeds

T = TypeVar("T")
R = TypeVar("R")

WINDOW_CLIPS: Final = 256  # 10-s clips: 131 MB of features, 136 MB of embeddings in bf16
_MAX_THREADS: Final = 8


@dataclass(frozen=True)
class Reader:
    """What turns a question into an encoded prompt."""

    processor: Processor
    audio_root: str
    endpoint_url: str | None
    prompt_version: str

    def encode(self, question: Question) -> EncodedPrompt:
        """The prompt with its clip's mel features; called from several threads."""
        # A reader each: what it keeps of clips that were read before is no business of a thread.
        clip = ClipReader(self.audio_root, endpoint_url=self.endpoint_url).read(question)
        prompt = render(question, self.prompt_version)
        return encode_prompt(self.processor, prompt, clip, question_id=question.id)


@dataclass
class Encoding:
    """One pass over the examples; `workers` share the clips that no shard has yet."""

    model: Thinker
    reader: Reader
    clip_embeds: ClipEmbeds
    workers: Workers
    window_clips: int = WINDOW_CLIPS
    _available: dict[str, int] = field(default_factory=dict)
    _window: dict[str, tuple[MelFeatures, int]] = field(default_factory=dict)
    _num_windows: int = 0

    def rows(
        self, examples: Sequence[Example], questions: Mapping[str, Question], advance: Advance
    ) -> list[TrainRow]:
        """Encode every example, in order; afterwards `clip_embeds.embeds` has all their clips."""
        groups = [
            (_asked(questions, group, self.reader.prompt_version), group)
            for _, members in groupby(examples, lambda example: example.question_id)
            for group in [list(members)]
        ]
        clips = {question.audio_sha256 for question, _ in groups}
        self._load(clips)
        rows: list[TrainRow] = []
        prompts = map_ahead(self.reader.encode, [question for question, _ in groups])
        for (question, group), prompt in zip(groups, prompts, strict=True):
            self._note(question.audio_sha256, prompt)
            for example in group:
                rows.append(self._encode(example, prompt))
                advance(1)
        self._flush()
        lacking = self.workers.gather(clips - set(self.clip_embeds.embeds))  # all shards are there
        self._load(set().union(*lacking))
        if missing := clips - set(self.clip_embeds.embeds):
            raise TryAgain(
                f"embeddings of {len(missing)} clips were made and are gone from "
                f"{self.clip_embeds.key} again: run the same command again"
            )
        return rows

    def _encode(self, example: Example, prompt: EncodedPrompt) -> TrainRow:
        if isinstance(example, PolicyExample):
            return encode_policy_example(self.reader.processor, prompt, example)
        return encode_example(
            self.reader.processor,
            prompt,
            example.completion,
            question_id=example.question_id,
            audio_sha256=example.audio_sha256,
            weight=example.weight,
        )

    def _load(self, clips: set[str]) -> None:
        """Make those of `clips` available that some shard holds; the same ones on all workers."""
        kept = self.clip_embeds
        first = self.workers.is_first
        good = [shard for shard in kept.find(clips) if kept.load(shard)] if first else []
        for shard in self.workers.share(good):
            is_here = first or shard.num_tokens.keys() <= kept.embeds.keys()
            if not (is_here or kept.load(shard)):
                raise TryAgain(
                    f"{kept.key}/{shard.name} changed while it was read: run the same command again"
                )
            self._available |= shard.num_tokens

    def _note(self, clip: str, prompt: EncodedPrompt) -> None:
        """Put a clip into the window unless its embeddings are there and as many as its tokens."""
        if self._available.get(clip) == prompt.num_audio_tokens or clip in self._window:
            return
        self._window[clip] = (MelFeatures(clip, prompt.features_MF), prompt.num_audio_tokens)
        if len(self._window) == self.window_clips:
            self._flush()

    def _flush(self) -> None:
        """Embed the window if it is this worker's turn."""
        window, self._window = self._window, {}
        is_mine = self._num_windows % self.workers.num == self.workers.rank
        self._num_windows += 1
        if window and is_mine:
            clips, num_tokens = zip(*window.values(), strict=True)
            self.clip_embeds.save(embed_window(self.model, clips, num_tokens))
        self._available |= {clip: count for clip, (_, count) in window.items()}


def map_ahead(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`function` of each item, in order, computed by threads that stay a few items ahead.

    The first item is done alone: what a library sets up at its first call is then there.
    """
    if not items:
        return
    yield function(items[0])
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="encode") as pool:
        try:
            for item in items[1:]:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 4 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _asked(questions: Mapping[str, Question], group: Sequence[Example], version: str) -> Question:
    """The examples' question; GateError unless its prompt and clip are those that were answered."""
    first = group[0]
    question = questions.get(first.question_id)
    if question is None:
        raise GateError(
            f"example of unknown question {first.question_id}: it is not in the training split"
        )
    hashes = {example.prompt_hash for example in group}
    if hashes != {render(question, version).hash}:
        raise GateError(
            f"question {question.id}: training would render another prompt ({version}) than "
            "the one that was answered: use the prompt version of generate"
        )
    if any(question.audio_sha256 != example.audio_sha256 for example in group):
        raise GateError(f"question {question.id}: its clip is not the one that was answered")
    return question
