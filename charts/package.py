"""Copies of what charts must carry: `python charts/package.py` writes them anew.

Helm reads nothing outside a chart's folder. The sources are k8s/jobs, argo/templates and
`mmar-jobs serve-args`; a test holds the copies to them. Not here: templates and values.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "charts" / "mmar-jobs" / "files"


def copies() -> dict[Path, str]:
    """What each packaged file must hold."""
    sources = {
        FILES / "jobs": sorted((ROOT / "k8s" / "jobs").glob("*.yaml")),
        FILES / "workflowtemplates": sorted((ROOT / "argo" / "templates").glob("*.yaml")),
    }
    return {
        folder / path.name: path.read_text(encoding="utf-8")
        for folder, paths in sources.items()
        for path in paths
        if path.stem != "kustomization"
    }


def main() -> None:
    """Write all copies."""
    for path, text in copies().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
