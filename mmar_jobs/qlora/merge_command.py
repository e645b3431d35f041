"""`mmar-jobs merge`: a base and an adapter become one model folder that a server loads.

Not here: merging (merge_run.py).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mmar_jobs import logs
from mmar_jobs.arguments import Parser
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.progress import bars, no_bar

_BYTES_PER_MB: Final = 1e6


def merge(arguments: Sequence[str]) -> int:
    """Merge an adapter into its base, or verify what is merged already; prints the folder."""
    chosen = _parse(arguments)
    log = logs.configure("auto").bind(command="merge")
    # --help and a wrong flag need no torch.
    import torch  # noqa: PLC0415

    from mmar_jobs.qlora.merge_run import Placement, find_adapter, merge_model  # noqa: PLC0415

    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no GPU here; use --device cpu")
    console = Console(stderr=True)
    began = time.monotonic()
    merged = merge_model(
        Path(chosen.base),
        find_adapter(chosen.adapter, endpoint_url=chosen.endpoint_url),
        output=chosen.output,
        cache=chosen.cache,
        placement=Placement(
            chosen.device, chosen.threads, bars(console) if console.is_terminal else no_bar
        ),
    )
    seconds = time.monotonic() - began
    result = {
        "path": str(merged.path),
        "model_hash": merged.identity.hash,
        "base_digest": merged.identity.base_digest,
        "adapter_digest": merged.identity.adapter_digest,
        "was_finished": merged.was_finished,
        "size_bytes": merged.size_bytes,
        "seconds": round(seconds, 3),
        "mb_per_s": round(merged.size_bytes / _BYTES_PER_MB / seconds, 1),
    }
    log.info(logs.FINISHED, **result)
    sys.stdout.write(f"{json.dumps(result) if chosen.json else merged.path}\n")
    return ExitCode.DONE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "mmar-jobs merge",
        description="Merge an adapter into its base, in the base's own file layout. What is merged "
        "already is verified and kept; what a killed merge finished is, too.",
    )
    parser.add_argument("base", metavar="BASE", help="folder of the base model")
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder, or s3:// address, of an adapter that train made"
    )
    parser.add_argument(
        "output", metavar="OUTPUT", nargs="?", type=Path, help="folder to make (or give --cache)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="make it in DIR under the model's hash and print where (default: OUTPUT)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what computes (default: cpu)"
    )
    num_cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=_positive, default=num_cores, help="files at a time (default: all cores)"
    )
    parser.add_argument(
        "--endpoint-url", metavar="URL", help="S3 server other than AWS (default: AWS)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: the folder)"
    )
    chosen: Any = parser.parse_args(arguments)
    if (chosen.output is None) == (chosen.cache is None):
        raise SettingsError("give either OUTPUT or --cache DIR; see mmar-jobs merge --help")
    return chosen  # type: ignore[no-any-return]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
