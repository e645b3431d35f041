"""No tower hears a clip twice; what was kept of it is proven to be of that clip and that tower."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import CapturingLogger

from mmar_jobs.encode import load_processor
from mmar_jobs.errors import GateError, TryAgain
from mmar_jobs.manifest import sha256
from mmar_jobs.prompt import render
from mmar_jobs.qlora.audio_embeds import MelFeatures, embed_clips, tower_facts
from mmar_jobs.qlora.distributed import ALONE, Workers
from mmar_jobs.records import Example, Question, Zone
from mmar_jobs.stages.clip_embeds import ClipEmbeds
from mmar_jobs.stages.encoding import Encoding, Reader, map_ahead
from mmar_jobs.store import Store, open_store
from tests import qlora_cases as cases
from tests.fakes import PROMPT_VERSION, make_question, sound_bytes, think, tone

NUM_CLIPS = 5
FACTS = tower_facts("b" * 64, "float32", torch.device("cpu"))

BUILDING = threading.Lock()  # transformers builds one model at a time


class CountingTower(torch.nn.Module):
    """A model's tower that counts the clips it hears."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.num_clips = 0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    def forward(self, features_MF: Any, feature_lens: Any) -> Any:
        """Hear them."""
        self.num_clips += len(feature_lens)
        return self.tower(features_MF, feature_lens=feature_lens)


@dataclass
class World:
    """Clips, their questions, two examples of each, and the folder of a store."""

    folder: Path
    processor: Any
    questions: dict[str, Question]
    examples: list[Example]

    @property
    def store(self) -> Store:
        """Where embeddings are kept."""
        return open_store(str(self.folder / "store"))

    def encode(
        self,
        scratch: str,
        *,
        facts: dict[str, str] = FACTS,
        workers: Workers = ALONE,
        window_clips: int = 2,
    ) -> tuple[int, dict[str, torch.Tensor], CapturingLogger, Sequence[Any]]:
        """A stage's encoding; how many clips the tower heard, embeddings, logs, and rows."""
        with BUILDING:
            model = cases.thinker()
        tower = CountingTower(model.audio_tower)
        model.audio_tower = tower
        said = CapturingLogger()
        folder = self.folder / scratch
        folder.mkdir()
        reader = Reader(self.processor, str(self.folder), None, PROMPT_VERSION)
        kept = ClipEmbeds(self.store, facts, folder, said)
        encoding = Encoding(model, reader, kept, workers, window_clips)
        rows = encoding.rows(self.examples, self.questions, lambda _: None)
        return tower.num_clips, dict(kept.embeds), said, rows


@pytest.fixture(scope="module")
def processor(model_folder: Path) -> Any:
    """The tiny model's processor."""
    return load_processor(model_folder)


@pytest.fixture
def world(tmp_path: Path, processor: Any) -> World:
    """Clips of several lengths; the last two questions share one."""
    questions, examples = {}, []
    for index in range(NUM_CLIPS + 1):
        at = min(index, NUM_CLIPS - 1)
        data = sound_bytes(tone(pitch_hz=300 + 50 * at, seconds=0.5 + 0.2 * at), 16_000)
        (tmp_path / f"q{at}.wav").write_bytes(data)
        question = make_question(f"q{index}", audio=f"q{at}.wav", audio_sha256=sha256(data))
        questions[question.id] = question
        examples += [
            Example(
                question_id=question.id,
                draw=draw,
                completion=think("one"),
                weight=1.0,
                zone=Zone.HARD,
                rate=0.25,
                num_tokens=12,
                audio_sha256=question.audio_sha256,
                prompt_hash=render(question, PROMPT_VERSION).hash,
                model_hash="m" * 64,
            )
            for draw in range(2)
        ]
    return World(tmp_path, processor, questions, examples)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal clips with equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[clip], b[clip]) for clip in a)


def test_a_clip_is_heard_once_by_all_runs(world: World) -> None:
    """The second pass takes every embedding from the store, to the bit; rows are the same."""
    num_heard, first, _, rows = world.encode("a")
    assert num_heard == NUM_CLIPS
    assert [row.question_id for row in rows] == [one.question_id for one in world.examples]
    num_again, second, _, again = world.encode("b")
    assert num_again == 0
    assert same(first, second)
    assert all(torch.equal(a.input_ids_S, b.input_ids_S) for a, b in zip(rows, again, strict=True))


def test_kept_embeddings_are_the_towers(world: World) -> None:
    """What comes back for a clip is what the tower says of that clip alone."""
    _, found, _, _ = world.encode("a")
    question = world.questions["q2"]
    reader = Reader(world.processor, str(world.folder), None, PROMPT_VERSION)
    encoded = reader.encode(question)
    clip = MelFeatures(question.audio_sha256, encoded.features_MF)
    (expected,) = embed_clips(cases.thinker(), [clip], [encoded.num_audio_tokens])
    assert torch.equal(expected, found[question.audio_sha256])


def test_a_killed_pass_is_gone_on_with_to_the_same_bits(world: World) -> None:
    """Shards that were durable are used, the others made again; nothing depends on the kill."""
    _, expected, _, _ = world.encode("a")
    shards = sorted(key for key in world.store.list("clip-embeds/") if key.endswith(".json"))
    assert len(shards) == 3
    world.store.delete(shards[1])
    num_heard, found, _, _ = world.encode("b")
    assert 0 < num_heard <= 2
    assert same(expected, found)


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(data) // 2],
        lambda _: b"",
    ],
    ids=["one bit", "half", "nothing"],
)
def test_a_damaged_shard_is_made_again(
    world: World, ending: str, damage: Callable[[bytes], bytes]
) -> None:
    """Neither one bit nor half a file is ever used; the next pass has whole ones again."""
    _, expected, _, _ = world.encode("a")
    key = next(key for key in world.store.list("clip-embeds/") if key.endswith(ending))
    world.store.write(key, damage(world.store.read(key)))
    num_heard, found, said, _ = world.encode("b")
    assert 0 < num_heard <= 2
    assert same(expected, found)
    if ending == ".safetensors":
        assert [call.method_name for call in said.calls] == ["warning"]
    assert world.encode("c")[0] == 0


def test_a_shard_that_lost_its_file_is_made_again(world: World) -> None:
    """An index alone is no shard."""
    world.encode("a")
    for key in world.store.list("clip-embeds/"):
        if key.endswith(".safetensors"):
            world.store.delete(key)
    assert world.encode("b")[0] == NUM_CLIPS


@pytest.mark.parametrize("fact", sorted(FACTS))
def test_another_tower_hears_for_itself(world: World, fact: str) -> None:
    """Other weights, precision, device or code: nothing of the one is used for the other."""
    world.encode("a")
    assert world.encode("b", facts=FACTS | {fact: "other"})[0] == NUM_CLIPS


def test_an_index_of_another_tower_in_the_wrong_place_is_not_read(world: World) -> None:
    """Shards copied to where another tower's lie are foreign, whatever their digests."""
    world.encode("a")
    store, other = world.store, FACTS | {"base_digest": "c" * 64}
    place = ClipEmbeds(store, other, world.folder, CapturingLogger()).key
    for key in store.list("clip-embeds/"):
        store.write(f"{place}/{key.rpartition('/')[2]}", store.read(key))
    assert world.encode("b", facts=other)[0] == NUM_CLIPS


def test_a_count_that_is_not_the_clips_is_not_used(world: World) -> None:
    """An index that promises other numbers of tokens than the prompts have is made again."""
    _, expected, _, _ = world.encode("a")
    for key in world.store.list("clip-embeds/"):
        if key.endswith(".json"):
            index = json.loads(world.store.read(key))
            index["num_tokens"] = dict.fromkeys(index["num_tokens"], 3)
            world.store.write(key, json.dumps(index).encode())
    num_heard, found, _, _ = world.encode("b")
    assert num_heard == NUM_CLIPS
    assert same(expected, found)


class Threads(Workers):
    """Workers that are threads of this process: each exchange is a barrier and a list."""

    box: dict[int, Any] = {}  # noqa: RUF012 - shared on purpose, one test at a time
    barrier = threading.Barrier(2)

    def gather(self, value: Any) -> list[Any]:
        """What all said, once all have."""
        self.box[self.rank] = value
        self.barrier.wait(timeout=60)
        found = [self.box[rank] for rank in range(self.num)]
        self.barrier.wait(timeout=60)
        return found

    def share(self, value: Any) -> Any:
        """What the first said."""
        return self.gather(value)[0]


def test_workers_share_the_clips_and_all_have_them_all(world: World) -> None:
    """Each hears some windows, no clip is heard twice, and both end with one worker's bits."""
    results: dict[int, Any] = {}

    def work(rank: int) -> None:
        results[rank] = world.encode(f"rank{rank}", workers=Threads(rank, 2), window_clips=1)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = [results[rank][0] for rank in range(2)]
    assert sum(heard) == NUM_CLIPS
    assert min(heard) >= 2
    assert same(results[0][1], results[1][1])
    for key in world.store.list("clip-embeds/"):
        world.store.delete(key)
    assert same(world.encode("alone")[1], results[0][1])


def test_examples_of_other_prompts_or_clips_are_refused(world: World) -> None:
    """What was answered is what is trained on; each fault names its question."""
    faults = [
        ({"question_id": "q9"}, "unknown question q9"),
        ({"prompt_hash": "0" * 64}, "q0: training would render another prompt"),
        ({"audio_sha256": "0" * 64}, "q0: its clip is not the one"),
    ]
    for number, (fault, message) in enumerate(faults):
        first, *rest = world.examples
        broken = replace(world, examples=[first.model_copy(update=fault), *rest])
        with pytest.raises(GateError, match=message):
            broken.encode(f"fault{number}")


def test_map_ahead_keeps_order_and_stays_bounded() -> None:
    """Results come in order, an error comes at its item, and little is computed ahead."""
    started: list[int] = []

    def double(number: int) -> int:
        started.append(number)
        time.sleep(0.001 * (number % 3))
        if number == 300:
            raise TryAgain("at 300")
        return 2 * number

    found = map_ahead(double, range(1000))
    for number in range(300):
        assert next(found) == 2 * number
        assert len(started) <= number + 4 * 8 + 2
    with pytest.raises(TryAgain, match="at 300"):
        next(found)
    assert len(started) < 400
    assert [] == list(map_ahead(double, []))
