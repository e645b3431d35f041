"""`mmar-jobs serve-args`: the vLLM command lines for a model folder and a node.

Not here: the memory model (serving.py), starting anything.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmar_jobs.arguments import Parser, not_negative, whole_number
from mmar_jobs.artifact import MANIFEST
from mmar_jobs.base_model import check_config, model_digest
from mmar_jobs.engine.serving import (
    USUAL_WORKLOAD,
    Node,
    Shape,
    Workload,
    lay_out,
    lora_args,
    serve_args,
    servers,
)
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.manifest import Manifest


def serve_args_command(arguments: Sequence[str]) -> int:
    """Print one line a server, or one JSON object."""
    chosen = _parse(arguments)
    folder = Path(chosen.model)
    check_config(folder)
    layout = lay_out(
        read_shape(folder),
        Node(chosen.gpus, chosen.gpu_memory_gib),
        Workload(chosen.max_tokens, chosen.mean_tokens, chosen.draws),
    )
    name = served_name(folder)
    args = serve_args(
        layout,
        chosen.model,
        name,
        dtype=chosen.dtype,
        media_dir=chosen.media_dir,
        thinking_budget=chosen.thinking_budget,
    )
    if chosen.adapter:
        args += _adapter_args(folder, Path(chosen.adapter))
    found = servers(layout, args, chosen.port)
    if chosen.json:
        told = {"model": name, "servers": [asdict(server) for server in found]}
        sys.stdout.write(f"{json.dumps(told)}\n")
        return int(ExitCode.DONE)
    for server in found:
        gpus = ",".join(map(str, server.gpus))
        line = shlex.join(["vllm", "serve", *server.args])
        sys.stdout.write(f"CUDA_VISIBLE_DEVICES={gpus} {line}\n")
    return int(ExitCode.DONE)


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weight_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Shape.parse(config, weight_bytes)


def served_name(folder: Path) -> str:
    """The name under which the client finds the model: it ends in the first 16 of its hash.

    A merged folder says what it was merged from; any other is a base.
    """
    path = folder / MANIFEST
    if not path.is_file():
        identity = ModelIdentity(base_digest=model_digest(folder))
    else:
        try:
            inputs = Manifest.model_validate_json(path.read_bytes()).inputs
            identity = ModelIdentity(base_digest=inputs["base"], adapter_digest=inputs["adapter"])
        except (ValidationError, KeyError):
            raise DataError(
                f"{path} is not the manifest of a merge: give a base folder, or one that "
                "mmar-jobs merge made"
            ) from None
    return _name(identity)


def _name(identity: ModelIdentity) -> str:
    return f"mmar-{identity.hash[:16]}"


def _adapter_args(base: Path, folder: Path) -> list[str]:
    """What serves an adapter beside the base that it was trained on, by the hash of both."""
    # torch, which whoever serves has; the base alone needs none.
    from mmar_jobs.qlora.merge_run import find_adapter  # noqa: PLC0415

    adapter = find_adapter(str(folder))
    digest = model_digest(base)
    if adapter.trained_on not in (None, digest):
        raise DataError(f"{folder} was trained on another base than {base}: give that one")
    identity = ModelIdentity(base_digest=digest, adapter_digest=adapter.digests[ADAPTER_WEIGHTS])
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank = max(config["r"], *config.get("rank_pattern", {}).values())
    return lora_args(_name(identity), str(folder), rank)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "mmar-jobs serve-args",
        description="Print how to serve a model on one node: one vLLM command line a server.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a base, or of a finished merge")
    parser.add_argument(
        "--adapter",
        default="",
        metavar="DIR",
        help="adapter to serve beside its base, unmerged, by vLLM >= 0.29 (default: none)",
    )
    parser.add_argument("--gpus", type=whole_number(1), default=1, help="GPUs (default: 1)")
    parser.add_argument(
        "--gpu-memory-gib",
        type=not_negative,
        default=80.0,
        metavar="GIB",
        help="memory of one GPU (default: 80)",
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(1),
        default=USUAL_WORKLOAD.max_tokens,
        help="longest completion, as --sampling.max-tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--mean-tokens",
        type=whole_number(1),
        default=USUAL_WORKLOAD.mean_tokens,
        help="mean completion; decides how many run at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--draws",
        type=whole_number(1),
        default=USUAL_WORKLOAD.num_draws,
        help="draws of a question, which share its prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="as --engine.dtype (default: bfloat16)",
    )
    parser.add_argument(
        "--media-dir", default="", help="as --engine.media-dir (default: clips travel in requests)"
    )
    parser.add_argument(
        "--thinking-budget",
        action="store_true",
        help="serve so that --sampling.thinking-token-budget works (default: it does not)",
    )
    parser.add_argument(
        "--port", type=whole_number(1), default=8000, help="of the first server (default: 8000)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: command lines)"
    )
    chosen: Any = parser.parse_args(arguments)
    return chosen  # type: ignore[no-any-return]
