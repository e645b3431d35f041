"""The README of a chart out of its Chart.yaml and the comments of its values.

Comments are those that helm-docs reads: `# -- text` above a value, `# @default -- text` below that.
Not here: writing the files (package.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

_KEY: Final = re.compile(r"^( *)([\w.-]+):(.*)$")
_TEXT: Final = re.compile(r"^ *# -- (?:\(\w+\) )?(.*)$")
_DEFAULT: Final = re.compile(r"^ *# @default -- (.*)$")
_MORE: Final = re.compile(r"^ *# (.*)$")


@dataclass
class Value:
    """One documented value: its path from the top, its default as people read it, its meaning."""

    path: tuple[str, ...]
    default: str
    text: str


@dataclass
class _Comment:
    text: list[str] = field(default_factory=list)
    default: str = ""


def values(path: Path) -> list[Value]:
    """Every documented value of a values.yaml, in its order."""
    return list(_walk(path.read_text(encoding="utf-8")))


def _walk(text: str) -> Iterator[Value]:
    known: Any = yaml.safe_load(text)
    stack: list[tuple[int, str]] = []
    comment: _Comment | None = None
    for line in text.splitlines():
        if match := _TEXT.match(line):
            comment = _Comment([match[1]])
        elif (match := _DEFAULT.match(line)) and comment:
            comment.default = match[1]
        elif (match := _MORE.match(line)) and comment:
            comment.text.append(match[1])
        elif match := _KEY.match(line):
            indent = len(match[1])
            stack = [item for item in stack if item[0] < indent]
            stack.append((indent, match[2]))
            if comment:
                names = tuple(name for _, name in stack)
                default = comment.default or f"`{_shown(_at(known, names))}`"
                yield Value(names, default, " ".join(comment.text))
            comment = None
        else:
            comment = None


def _at(known: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        known = known[name]
    return known


def _shown(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    )


def readme(chart: Path) -> str:
    """The text of a chart's README.md."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    intro = (chart / "README.intro.md").read_text(encoding="utf-8").strip("\n")
    rows = [
        f"| `{'.'.join(value.path)}` | {value.default} | {value.text} |"
        for value in values(chart / "values.yaml")
    ]
    return "\n".join(
        [
            f"# {about['name']}",
            "",
            f"{about['description']}.",
            f"Chart {about['version']}, for Kubernetes {about['kubeVersion']}.",
            "",
            intro,
            "",
            "## Values",
            "",
            "| value | default | |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
