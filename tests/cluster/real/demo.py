"""`make cluster-demo`: the whole job on a Kubernetes node of this machine, with the tiny model.

What `argo submit` would start is done step by step; each command is shown with how it ended.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.real.argo import RunPod, Workflow
from tests.cluster.real.loop import RUN_ID, Loop
from tests.cluster.real.machine import new_namespace, running_node, running_s3, small_world
from tests.cluster.real.s3 import BUCKET

NAMESPACE = "mmar-jobs"


def main() -> None:
    """Leave world, submission.zip and report.html in the folder that is given."""
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("work", "world"):
        (folder / name).mkdir(parents=True)
    _say("starting etcd, the control plane, a kubelet and an S3 server")
    with (
        running_node() as node,
        running_s3() as s3,
        new_namespace(node, NAMESPACE, folder / "work") as namespace,
    ):
        loop = Loop(namespace, s3, small_world(folder / "world", s3))
        loop.prepare()
        workflow = loop.workflow()
        workflow.run_pod = _shown(workflow)
        workflow.run()
        (folder / "submission.zip").write_bytes(loop.submission())
        key = f"{NAMESPACE}/store/runs/{RUN_ID}/report/report.html"
        s3.client.download_file(BUCKET, key, str(folder / "report.html"))
        sys.stdout.write(namespace.run("status", RUN_ID).out)
    shutil.rmtree(folder / "work")
    _say(f"{folder}/submission.zip and {folder}/report.html")


def _shown(workflow: Workflow) -> RunPod:
    run_pod = workflow.run_pod

    def shown(command: Sequence[str]) -> tuple[int, dict[str, str]]:
        _say(f"$ {' '.join(command)}")
        began = time.monotonic()
        code, outputs = run_pod(command)
        took = f"{time.monotonic() - began:.0f} s"
        _say(f"  exit code {code} after {took}{f', {outputs}' if outputs else ''}")
        return code, outputs

    return shown


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
