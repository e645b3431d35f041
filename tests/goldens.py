"""Expected outputs that are long: `python tests/goldens.py --write` renews them, but never in CI.

Not here: the tests, which compare with what is written.
"""

import io
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden"
FLAGS = FOLDER / "cli_flags.txt"
CHARTS = FOLDER / "charts"
_OPTION = re.compile(r"^  (?:-\w, )?(--[\w.-]+)(?:, --no-[\w.-]+)?(.*)")


def help_of(command: str) -> str:
    """The text of one command's --help."""
    from mmar_jobs.cli import run_command

    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        run_command(command, ["--help"])
    return text.getvalue()


def options_of(help_text: str) -> dict[str, str]:
    """What --help says of each flag, on one line however wide the terminal was."""
    found: dict[str, list[str]] = {}
    flag = ""
    for line in help_text.partition("\noptions:")[2].splitlines():
        match = _OPTION.match(line)
        if match:
            flag = match.group(1)
            found[flag] = [match.group(2)]
        elif line.startswith("   ") and flag:
            found[flag].append(line)
        else:
            flag = ""
    return {flag: " ".join(" ".join(lines).split()) for flag, lines in found.items()}


def cli_flags() -> str:
    """Every flag of every command with its meaning and default, one a line."""
    from mmar_jobs.__main__ import COMMANDS

    lines = [
        f"{command} {flag} {meaning}".rstrip()
        for command in COMMANDS
        for flag, meaning in sorted(options_of(help_of(command)).items())
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite all goldens; refuses in CI, where a golden is what the change must match."""
    if sys.argv[1:] != ["--write"]:
        sys.stderr.write("usage: python tests/goldens.py --write\n")
        return 2
    if os.environ.get("CI"):
        sys.stderr.write("goldens are not rewritten in CI: run this at your desk and review it\n")
        return 2
    FOLDER.mkdir(exist_ok=True)
    FLAGS.write_text(cli_flags(), encoding="utf-8")
    if not write_charts():
        sys.stderr.write("charts were left as they are: no helm here (make deploy-tools)\n")
    return 0


def write_charts() -> bool:
    """What Helm makes of each case of values; False where there is no Helm."""
    from tests.deploy.charts import CASES, find_tool, rendered_text

    if find_tool("helm") is None:
        return False
    CHARTS.mkdir(exist_ok=True)
    for case in CASES:
        (CHARTS / f"{case}.yaml").write_text(rendered_text(case), encoding="utf-8")
    return True


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
