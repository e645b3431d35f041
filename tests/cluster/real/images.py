"""Images that need no registry: built on the machine, brought to the node as archives."""

import shutil
import subprocess
from pathlib import Path

BASE = "mmar-jobs.test/base:1"
HERE = Path(__file__).parent


def build_base(folder: Path) -> Path:
    """The archive of the image that has busybox; `folder` is for buildah's storage."""
    context = folder / "context"
    context.mkdir(parents=True)
    shutil.copy("/bin/busybox", context / "busybox")
    buildah = ["buildah", "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
    buildah += ["--storage-driver", "vfs"]
    archive = folder / "base.tar"
    build = [
        "build",
        "--isolation",
        "chroot",
        "--tag",
        BASE,
        "--file",
        f"{HERE}/base.Containerfile",
    ]
    for command in (
        [*buildah, *build, str(context)],
        [*buildah, "push", BASE, f"docker-archive:{archive}:{BASE}"],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert 0 == done.returncode, done.stderr
    return archive
