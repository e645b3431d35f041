"""The whole loop of a small run as Argo would run it, its pods disturbed or left alone."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmar_jobs.layout import run_key
from mmar_jobs.store.base import lease_key
from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.argo import Workflow
from tests.cluster.real.namespace import Namespace, Said, bucket_uri, said
from tests.cluster.real.s3 import BUCKET, S3
from tests.cluster.real.stages import fitted_jobs, server

# One turn of the tiny model over few questions: seconds of computing a stage.
SETTINGS = {
    "MMAR_PROMPT__VERSION": "baseline",
    "MMAR_SAMPLING__NUM_CANDIDATES": "4",
    "MMAR_SAMPLING__MAX_TOKENS": "96",
    "MMAR_FILTER__WEIGHTS__MASTERED": "0.5",
    "MMAR_LORA__QUANTIZATION": "none",
    "MMAR_OPTIM__TOKEN_BUDGET": "2048",
    "MMAR_ENGINE__THREADS": "1",
    "MMAR_LOG_FORMAT": "json",
}
RUN_ID = "r"
STAGES = ["ingest", "generate", "filter", "train", "evaluate", "infer", "submit", "report"]

# What befalls a stage while its command runs.
Disturb = Callable[[str, subprocess.Popen[str]], None]


@dataclass
class Loop:
    """One run in one namespace."""

    namespace: Namespace
    s3: S3
    world: TinyWorld
    disturb: Disturb = lambda stage, program: None
    jobs: Path = Path()  # manifests of the stages
    said: dict[str, Said] = field(default_factory=dict)  # the last word of each stage's command

    def prepare(self, **settings: str) -> None:
        """What charts and an admin provide, and the stages as they are."""
        given = SETTINGS | settings
        self.namespace.add_settings(self.store, MMAR_MODEL="/models/base", **given)
        self.namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
        self.namespace.make("apps/v1/statefulsets", server())
        self.jobs = fitted_jobs(self.namespace)

    def submit(self) -> Workflow:
        """Run argo/rest-workflow.yaml to its end, by commands as Argo's leaves give them."""
        workflow = self.workflow()
        workflow.run()
        return workflow

    def workflow(self) -> Workflow:
        """The same, not begun."""
        parameters = {
            "run-id": RUN_ID,
            **self._files,
            "iterations": "1",
            "servers": "",  # the stages answer in process: no vLLM on this node
        }
        return Workflow("rest-workflow", parameters, self._run_pod)

    def run_stage(self, stage: str, *flags: str) -> int:
        """One stage by hand, as without Argo; its exit code."""
        command = ("run-job", stage, f"--run-id={RUN_ID}", f"--jobs={self.jobs}", "--", *flags)
        program = self.namespace.start(*command)
        self.disturb(stage, program)
        self.said[stage] = said(program, 600)
        return self.said[stage].code

    @property
    def questions(self) -> list[str]:
        """The flags of ingest."""
        return [f"--{name}={uri}" for name, uri in self._files.items()]

    @property
    def _files(self) -> dict[str, str]:
        world = self.world
        files = {"questions": world.train, "benchmark": world.benchmark, "heldout": world.heldout}
        return {name: f"{bucket_uri('world')}/{path.name}" for name, path in files.items()}

    def _run_pod(self, command: Sequence[str]) -> tuple[int, dict[str, str]]:
        assert ["mmar-jobs", "cluster"] == list(command[:2])
        outputs = self.namespace.folder / "outputs" / command[3]
        own = {"--jobs=": f"--jobs={self.jobs}", "--outputs=": f"--outputs={outputs}"}
        words = [own.get(f"{word.partition('=')[0]}=", word) for word in command[2:]]
        program = self.namespace.start(*words)
        if words[0] == "run-job":
            self.disturb(words[1], program)
        done = self.said[words[1]] = said(program, 600)
        assert done.code in (0, 75), f"{words}\n{done.out[-3000:]}\n{done.err[-3000:]}"
        return done.code, _outputs(outputs)

    def holds_lease(self) -> bool:
        """Whether a stage of the run is past its start: no other may write now."""
        key = f"{self._prefix}/{lease_key(run_key(RUN_ID))}"
        return "Contents" in self.s3.client.list_objects_v2(Bucket=BUCKET, Prefix=key)

    @property
    def store(self) -> str:
        """Its address."""
        return bucket_uri(self._prefix)

    @property
    def _prefix(self) -> str:
        return f"{self.namespace.name}/store"

    def submission(self) -> bytes:
        """The one that it made."""
        key = f"{self._prefix}/{run_key(RUN_ID)}/submission"
        found = self.s3.client.list_objects_v2(Bucket=BUCKET, Prefix=key)["Contents"]
        [zipped] = [each["Key"] for each in found if each["Key"].endswith("submission.zip")]
        made: bytes = self.s3.client.get_object(Bucket=BUCKET, Key=zipped)["Body"].read()
        return made


def _outputs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
