"""The benches that need no GPU: their flags, and running them.

Not here: what is measured (generate.py, pipeline.py, filter.py, store.py, accuracy.py,
objectives.py, cold_start.py, pod_start.py).
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmar_jobs.bench.flags import add_flag, add_result_flags, count, positive, positive_real
from mmar_jobs.bench.reporting import check_writable, report
from mmar_jobs.errors import SettingsError

if TYPE_CHECKING:
    from mmar_jobs.bench.result import Environment, Measurement

Add = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]
Measure = Callable[[argparse.Namespace, "Environment"], "Iterable[Measurement]"]


def _running(measure: Measure) -> Run:
    """A command out of a function from flags and environment to figures."""

    def run(chosen: argparse.Namespace) -> int:
        # torch takes seconds that --help must not pay.
        import torch  # noqa: PLC0415

        from mmar_jobs.bench.environment import read_environment  # noqa: PLC0415

        check_writable(chosen.json)
        cpu = torch.device("cpu")
        environment = read_environment(cpu, commit=chosen.commit, image=chosen.image)
        return report(measure(chosen, environment), chosen.json)

    return run


def _add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    flag("--train", "train questions, all asked in each turn", type=positive, default=200)
    flag("--heldout", "held-out questions", type=positive, default=60)
    flag("--benchmark", "benchmark questions", type=positive, default=20)
    flag("--iterations", "turns of the loop", type=positive, default=1)
    flag("--repeats", "whole runs that are timed", type=positive, default=3)
    flag("--seed", "of the synthetic world", type=count, default=0)
    add_result_flags(parser)


def _pipeline(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.pipeline import PipelineBench, run_pipeline_bench  # noqa: PLC0415

    bench = PipelineBench(
        num_train=chosen.train,
        num_heldout=chosen.heldout,
        num_benchmark=chosen.benchmark,
        iterations=chosen.iterations,
        repeats=chosen.repeats,
        seed=chosen.seed,
    )
    return run_pipeline_bench(bench, environment)


def _add_filter_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    flag("--candidates", "candidates, 16 a question", type=positive, default=50_000)
    flag("--repeats", "runs that are timed", type=positive, default=6)
    add_result_flags(parser)


def _filter(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.filter import FilterBench, run_filter_bench  # noqa: PLC0415

    return run_filter_bench(FilterBench(chosen.candidates, chosen.repeats), environment)


def _add_store_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    flag("--store", "folder or s3://bucket/prefix", default="", shown="a folder, deleted again")
    flag("--endpoint-url", "S3 endpoint, for servers other than AWS", shown="AWS")
    flag("--object-mb", "size of an object, 10^6 bytes", type=positive, default=64)
    flag("--objects", "objects of a round", type=positive, default=4)
    flag("--repeats", "rounds", type=positive, default=6)
    add_result_flags(parser)


def _store(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.store import StoreBench, run_store_bench  # noqa: PLC0415

    bench = StoreBench(
        uri=chosen.store,
        endpoint_url=chosen.endpoint_url,
        object_mb=chosen.object_mb,
        num_objects=chosen.objects,
        repeats=chosen.repeats,
    )
    return run_store_bench(bench, environment)


def _add_accuracy_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", help="submission zip or JSONL rows, path or URI")
    parser.add_argument("--meta", required=True, help="the questions, path or URI (required)")
    add_result_flags(parser)


def _accuracy(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.accuracy import measure_accuracy  # noqa: PLC0415
    from mmar_jobs.prediction_file import read_rows  # noqa: PLC0415
    from mmar_jobs.question_file import read_question_file  # noqa: PLC0415

    rows = read_rows(chosen.predictions)
    answers = {key: row.get("answer_prediction") for key, row in rows.items()}
    return measure_accuracy(answers, read_question_file(chosen.meta), environment)


def _add_objectives_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    parser.add_argument(
        "--folder", type=Path, required=True, help="keeps all stores, to go on from (required)"
    )
    flag("--seeds", "worlds, 1 to this", type=positive, default=5)
    flag("--train", "train questions of a world; 500 are asked", type=positive, default=1500)
    flag("--heldout", "held-out questions of a world", type=positive, default=600)
    flag("--html", "page with the plot of all objectives", type=Path, shown="none")
    add_result_flags(parser)


def _objectives(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench import objectives, objectives_page  # noqa: PLC0415 - matplotlib
    from mmar_jobs.output import write_output  # noqa: PLC0415

    bench = objectives.ObjectivesBench(
        chosen.folder, chosen.seeds, num_train=chosen.train, num_heldout=chosen.heldout
    )
    learned = objectives.learn_all(bench)
    if chosen.html is not None:
        page = objectives_page.render_objectives(objectives.standings(learned))
        write_output(chosen.html, page.encode())
    return objectives.measure(bench, learned, environment)


def _add_cold_start_flags(parser: argparse.ArgumentParser) -> None:
    add_flag(parser)("--repeats", "starts that are timed", type=positive, default=10)
    add_result_flags(parser)


def _cold_start(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.cold_start import run_cold_start_bench  # noqa: PLC0415

    return run_cold_start_bench(chosen.repeats, environment)


def _add_pod_start_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    parser.add_argument(
        "--nodes", required=True, help="kind of the nodes, as m7i.2xlarge, to record (required)"
    )
    flag("--namespace", "where pods are started", shown="the kubeconfig's")
    flag("--repeats", "pods that are timed", type=positive, default=10)
    add_result_flags(parser)


def _pod_start(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.pod_start import PodStartBench, run_pod_start_bench  # noqa: PLC0415
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415

    if not chosen.image:
        raise SettingsError("--image is missing: say which image pods are to start")
    bench = PodStartBench(chosen.image, chosen.nodes, chosen.repeats)
    return run_pod_start_bench(bench, open_cluster(chosen.namespace), environment)


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    flag("--servers", "vLLM servers, URL,URL", default="", shown="vLLM in this process")
    flag(
        "--gpus",
        "start vLLM servers on so many GPUs here, as serve-args lays them out",
        type=positive,
        default=0,
        shown="none",
    )
    flag(
        "--tensor-parallel",
        "GPUs of each of those",
        type=positive,
        default=0,
        shown="what serve-args says",
    )
    parser.add_argument("--model", required=True, help="folder of the model (required)")
    flag("--questions", "questions, two about each clip", type=positive, default=64)
    flag("--warm-up", "questions that are asked before these, untimed", type=count, default=0)
    flag("--draws", "draws of each question", type=positive, default=16)
    flag("--max-tokens", "longest completion", type=positive, default=512)
    flag("--clip-s", "length of a clip, seconds", type=positive_real, default=10.0)
    flag("--temperature", "of the draws", type=positive_real, default=0.9)
    flag(
        "--logprobs",
        "a log-probability for every token, as objectives other than rest need",
        action="store_true",
        shown="no",
    )
    flag("--dtype", "of the servers", choices=("float32", "bfloat16"), default="bfloat16")
    flag("--media-dir", "folder for clips that the servers read too", default="")
    flag("--vllm-args", "further options of a vLLM that is started here, as one text", default="")
    flag("--seed", "of clips and draws", type=count, default=0)
    add_result_flags(parser)


def _generate(chosen: argparse.Namespace, environment: "Environment") -> "Iterable[Measurement]":
    from mmar_jobs.bench.generate import GenerateBench, run_generate_bench  # noqa: PLC0415

    bench = GenerateBench(
        servers=chosen.servers,
        model=chosen.model,
        num_gpus=chosen.gpus,
        tensor_parallel=chosen.tensor_parallel,
        num_questions=chosen.questions,
        num_warm_up=chosen.warm_up,
        num_draws=chosen.draws,
        max_tokens=chosen.max_tokens,
        clip_s=chosen.clip_s,
        temperature=chosen.temperature,
        logprobs=chosen.logprobs,
        dtype=chosen.dtype,
        seed=chosen.seed,
        media_dir=chosen.media_dir,
        vllm_args=chosen.vllm_args,
    )
    return run_generate_bench(bench, environment)


CPU_BENCHES: Final[Mapping[str, tuple[str, Add, Run]]] = {
    "generate": ("client and servers on synthetic clips", _add_generate_flags, _running(_generate)),
    "pipeline": ("a whole run with the tiny model", _add_pipeline_flags, _running(_pipeline)),
    "filter": ("candidates a second of the filter", _add_filter_flags, _running(_filter)),
    "store": ("bytes and requests of a store", _add_store_flags, _running(_store)),
    "accuracy": ("predictions, item by item", _add_accuracy_flags, _running(_accuracy)),
    "objectives": (
        "rest, grpo and both on the same candidates",
        _add_objectives_flags,
        _running(_objectives),
    ),
    "cold-start": ("what every command pays", _add_cold_start_flags, _running(_cold_start)),
    "pod-start": ("what a cluster takes before", _add_pod_start_flags, _running(_pod_start)),
}
