"""The command `mmar-jobs tiny`: makes the embedded benchmark, or trains the embedded model again.

Not here: what the world is made of (world.py, questions.py), how the model learns (warmstart.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmar_jobs.arguments import Parser
from mmar_jobs.errors import ExitCode
from mmar_jobs.store.disk import explained


def tiny(arguments: Sequence[str]) -> int:
    """Run `tiny world` or `tiny model`."""
    parser = Parser("mmar-jobs tiny", description="The embedded benchmark and model.")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    world = kinds.add_parser("world", help="write questions and clips, the same on every machine")
    world.add_argument("folder", type=Path)
    world.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    for name, default in (("train", 1500), ("heldout", 600), ("benchmark", 200)):
        text = f"{name} questions (default: %(default)s)"
        world.add_argument(f"--num-{name}", type=int, default=default, help=text)
    model = kinds.add_parser("model", help="train the model from random weights")
    model.add_argument("folder", type=Path)
    model.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    model.add_argument("--num-steps", type=int, default=1000, help="(default: %(default)s)")
    chosen = parser.parse_args(arguments)
    with explained("write", str(chosen.folder)):
        return _world(chosen) if chosen.kind == "world" else _model(chosen)


def _world(chosen: argparse.Namespace) -> int:
    from mmar_jobs.tiny.build import build_world  # noqa: PLC0415 - numpy

    made = build_world(
        chosen.folder,
        seed=chosen.seed,
        num_train=chosen.num_train,
        num_heldout=chosen.num_heldout,
        num_benchmark=chosen.num_benchmark,
    )
    for path in (made.train, made.heldout, made.benchmark):
        sys.stdout.write(f"{path}\n")
    return ExitCode.DONE


def _model(chosen: argparse.Namespace) -> int:
    from mmar_jobs.tiny.warmstart import train_warmstart  # noqa: PLC0415 - torch

    chosen.folder.mkdir(parents=True, exist_ok=True)  # refused now, not after minutes of training
    card = train_warmstart(chosen.folder, seed=chosen.seed, num_steps=chosen.num_steps)
    sys.stdout.write(f"{json.dumps(card)}\n")
    return ExitCode.DONE
