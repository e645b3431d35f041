"""How clips travel: once, by address where client and server share a folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmar_jobs.engine import Completion, Request
from tests.engine.cases import GREEDY, Connect, ask, requests
from tests.engine.loopback import LoopbackVllm


def test_a_clip_travels_once(vllm: LoopbackVllm, connect: Connect) -> None:
    """The second question about a clip names it; a server that forgot it gets it again."""
    question = requests((0,))[2]
    asked = [replace(question, question_id=f"again-{index}") for index in range(3)]
    engine = connect(vllm.url)
    expected = ask(engine, [question], GREEDY)[0]

    class Chain:
        """Asks one after the other, so that each finds the clip at the server."""

        def __init__(self) -> None:
            self.left = list(asked)
            self.found: list[Sequence[Completion]] = []

        def answered(self, request: Request, found: Sequence[Completion]) -> Request | None:
            self.found.append(found)
            if len(self.left) == 1:
                vllm._sounds.clear()
            return self.left.pop(0) if self.left else None

        def waiting(self) -> None:
            """Nothing to do."""

    chain = Chain()
    engine.stream([question], GREEDY, chain)
    assert [expected] * 4 == [list(one) for one in chain.found]
    sent = [body["messages"][1]["content"][0]["audio_url"] is not None for body in vllm.bodies[1:]]
    assert [True, False, False, False, True] == sent


def test_clips_on_the_node_travel_by_address(
    vllm: LoopbackVllm, connect: Connect, tmp_path: Path
) -> None:
    """With a media folder the server reads the very samples from a file that any user may read."""
    engine = connect(vllm.url, media_dir=tmp_path)
    by_file = ask(engine, requests(), GREEDY)
    assert ask(connect(vllm.url), requests(), GREEDY) == by_file
    urls = [body["messages"][1]["content"][0]["audio_url"]["url"] for body in vllm.bodies[:4]]
    assert all(url.startswith(tmp_path.as_uri()) for url in urls)
    assert [0o644] * 4 == [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()]
