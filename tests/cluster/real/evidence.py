"""All that is told of a run: objects, events, logs, what commands said, the bucket."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

from tests.cluster.real.loop import Loop
from tests.cluster.real.s3 import BUCKET

KINDS = ("pods", "events", "configmaps", "batch/v1/jobs", "apps/v1/statefulsets")


def evidence(loop: Loop) -> dict[str, str]:
    """Text by where it stands; no Secret, for that is where a secret belongs."""
    namespace = loop.namespace
    found = {kind: json.dumps(namespace.find(kind)) for kind in KINDS}
    found["logs"] = "".join(namespace.log(pod["metadata"]["name"]) for pod in namespace.pods())
    found["commands"] = "".join(f"{each.out}{each.err}" for each in loop.said.values())
    found["bucket"] = "".join(_texts(loop.s3.client, f"{namespace.name}/"))
    return found


def _texts(client: Any, prefix: str) -> Iterator[str]:
    """Every object below a prefix, what is packed unpacked; bytes as they are, one a character."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for item in page["Contents"]:
            data = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            yield data.decode("latin-1")
            if item["Key"].endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    yield from (archive.read(name).decode("latin-1") for name in archive.namelist())
