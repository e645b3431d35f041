"""The command `cluster scale`.

Not here: scaling (scale.py).
"""

import argparse
from collections.abc import Sequence
from typing import Final

import httpx2

from mmar_jobs import logs
from mmar_jobs.arguments import not_negative, whole_number
from mmar_jobs.cluster.run_job_command import add_namespace, run_id
from mmar_jobs.errors import ExitCode, SettingsError, TryAgain
from mmar_jobs.settings import server_key

WORDS: Final = ("base", "parent", "child", "best")
_TIMEOUT_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("server", metavar="NAME", help="the StatefulSet, as the Helm release")
    parser.add_argument("--replicas", type=whole_number(0), required=True, help="0 is down")
    parser.add_argument("--run-id", type=run_id, help="who wants it; needed to bring it up")
    parser.add_argument(
        "--iteration", type=whole_number(1), default=1, help="turn of the loop, from 1"
    )
    parser.add_argument(
        "--models",
        type=_models,
        default=("parent",),
        help="a word a server (base, parent, child, best), the last for all that follow",
    )
    parser.add_argument(
        "--lease-s", type=not_negative, default=43200.0, help="after this the reaper may stop it"
    )
    parser.add_argument("--url", type=_urls, default=(), help="the servers' addresses, to be asked")
    parser.add_argument("--deadline-s", type=not_negative, default=3600.0, help="longest wait")
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 when the server is as asked, or another run's where it was to go down; else 75."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.scale import Server, Wanted, check_served  # noqa: PLC0415 - --help needs no client

    log = logs.configure("auto").bind(command="scale")
    cluster = open_cluster(arguments.namespace)
    server = Server(cluster, arguments.server, log, arguments.deadline_s)
    if arguments.replicas == 0:
        server.down(arguments.run_id)
        return int(ExitCode.DONE)
    if arguments.run_id is None:
        raise SettingsError("--run-id is needed to bring a server up: the lease carries its name")
    wanted = Wanted(
        arguments.run_id,
        arguments.iteration,
        arguments.models,
        arguments.replicas,
        arguments.lease_s,
    )
    server.up(wanted)
    if arguments.url:
        names = check_served(arguments.url, arguments.models, _ask)
        log.info("models_served", server=arguments.server, models=names)
    return int(ExitCode.DONE)


def _models(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(WORDS)}")
    return words


def _urls(text: str) -> tuple[str, ...]:
    return tuple(url.rstrip("/") for url in text.split(",") if url)


def _ask(url: str) -> Sequence[str]:
    """The models that a server says it serves."""
    key = server_key()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        response = httpx2.get(f"{url}/v1/models", headers=headers, timeout=_TIMEOUT_S)
        response.raise_for_status()
        return [str(model["id"]) for model in response.json()["data"]]
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        raise TryAgain(f"{url} is ready but does not say what it serves ({error})") from None
