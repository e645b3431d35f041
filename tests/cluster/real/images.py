"""Images that need no registry: built on the machine, brought to the node as archives."""

import shutil
import subprocess
from pathlib import Path

BASE = "mmar-jobs.test/base:1"
STAND_IN = "mmar-jobs.test/stand-in:1"
HERE = Path(__file__).parent


class Builder:
    """Buildah with storage of its own; nothing outlives the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def build_base(self) -> Path:
        """The archive of the image that has busybox."""
        context = self._folder / "base"
        context.mkdir()
        shutil.copy("/bin/busybox", context / "busybox")
        return self._build(BASE, HERE / "base.Containerfile", context)

    def build_stand_in(self) -> Path:
        """The archive of the image that plays ours in the pods of the charts."""
        return self._build(STAND_IN, HERE / "stand_in/Containerfile", HERE / "stand_in")

    def _build(self, name: str, file: Path, context: Path) -> Path:
        archive = self._folder / f"{name.partition('/')[2].replace(':', '-')}.tar"
        build = ("build", "--isolation", "chroot", "--pull-never", "--tag", name)
        self._buildah(*build, "--file", str(file), str(context))
        self._buildah("push", name, f"docker-archive:{archive}:{name}")
        return archive

    def _buildah(self, *arguments: str) -> None:
        places = ("--root", f"{self._folder}/storage", "--runroot", f"{self._folder}/run")
        done = subprocess.run(
            ["buildah", *places, "--storage-driver", "vfs", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert 0 == done.returncode, done.stderr
