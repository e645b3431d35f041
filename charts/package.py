"""Copies of what charts must carry: `python -m charts.package` writes them anew.

Helm reads nothing outside a chart's folder. The sources are k8s/jobs, k8s/benchmark,
argo/templates, `mmar-jobs serve-args` and the comments of values.yaml; a test holds the copies to
them. Not here: templates and values.
"""

import json
from pathlib import Path
from typing import Final

from charts.readme import readme
from mmar_jobs.engine.serving import Node, Shape, Workload, serve_args, spread

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "charts" / "mmar-jobs" / "files"
SERVE_ARGS = ROOT / "charts" / "vllm" / "files" / "serve-args.json"

# Qwen3-Omni-30B-A3B-Thinking in bfloat16, and the run's default settings.
_SHAPE: Final = Shape(
    weight_bytes=61 * 10**9, num_layers=48, num_heads=32, num_kv_heads=4, head_dim=128
)
_WORK: Final = Workload(max_tokens=6000, mean_tokens=1500)
_MEMORIES_GIB: Final = (40, 80, 141)


def presets() -> dict[str, list[str]]:
    """Arguments of `vllm serve` by memory of a GPU and GPUs of a server, where the model fits."""
    found = {}
    for memory_gib in _MEMORIES_GIB:
        for size in _SHAPE.splits:
            layout = spread(_SHAPE, Node(size, memory_gib), _WORK, size)
            if layout.kv_tokens >= layout.max_model_len:
                # Model and name are the run's: `mmar-jobs serve-config` writes them.
                _model, _flag, _name, *args = serve_args(
                    layout, "", "", dtype="bfloat16", media_dir=""
                )
                found[f"{memory_gib}GiB-tp{size}"] = args
    return found


def copies() -> dict[Path, str]:
    """What each packaged file must hold."""
    sources = {
        ROOT / "k8s" / "jobs": FILES / "jobs",
        ROOT / "k8s" / "benchmark": FILES / "jobs",
        ROOT / "argo" / "templates": FILES / "workflowtemplates",
    }
    found = {
        copy / path.name: path.read_text(encoding="utf-8")
        for source, copy in sources.items()
        for path in sorted(source.glob("*.yaml"))
        if path.stem != "kustomization"
    }
    readmes = {
        chart / "README.md": readme(chart) for chart in (FILES.parent, SERVE_ARGS.parents[1])
    }
    return found | readmes | {SERVE_ARGS: f"{json.dumps(presets(), indent=2)}\n"}


def main() -> None:
    """Write all copies."""
    for path, text in copies().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
