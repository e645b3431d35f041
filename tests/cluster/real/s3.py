"""A real S3 server, versitygw over a folder, and clients of it."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx2

from tests.cluster.real.node import ADDRESS, BIN

PORT = 7070
URL = f"http://{ADDRESS}:{PORT}"
KEYS = {
    "AWS_ACCESS_KEY_ID": "the-tests-own-name",
    "AWS_SECRET_ACCESS_KEY": "a-key-of-the-tests-alone",
}
REGION = "us-east-1"
BUCKET = "runs"


@dataclass
class S3:
    """The server; stopped and started again it has what it had."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"],
        }
        address = f"{ADDRESS}:{PORT}"
        with (self.folder / "s3.log").open("ab") as log:
            self.process = subprocess.Popen(
                [f"{BIN}/versitygw", "--port", address, "--region", REGION, "posix", str(data)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(100):
            try:
                httpx2.get(URL, timeout=1)
            except httpx2.HTTPError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError((self.folder / "s3.log").read_text()[-2000:])

    def stop(self) -> None:
        """Without a warning, as a machine that fails."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def client(self) -> Any:
        """Boto3's."""
        return boto3.client(
            "s3",
            endpoint_url=URL,
            region_name=REGION,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
