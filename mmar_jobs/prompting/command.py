"""The command `mmar-jobs prompts`: list the variants, compare them, search for a better one.

Not here: what these do (run.py), and the texts (prompt.py).
"""

import sys
from collections.abc import Sequence
from typing import Final

from mmar_jobs.errors import ExitCode, SettingsError

_USAGE: Final = """usage: mmar-jobs prompts {list,compare,search} [--setting value ...]

  list      print every known variant with its text
  compare   ask a model held-out questions with several variants: paired statistics
  search    try recombinations and proposals of your own by successive halving

`mmar-jobs prompts compare --help` lists its settings. The benchmark's questions are refused.
"""


def prompts(arguments: Sequence[str]) -> int:
    """Run `prompts list`, `prompts compare` or `prompts search`."""
    kind, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if kind in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return ExitCode.DONE
    if kind not in ("list", "compare", "search"):
        raise SettingsError("give list, compare or search; see mmar-jobs prompts --help")
    from mmar_jobs.prompting import run  # noqa: PLC0415 - pydantic, rich

    commands = {"list": run.show_variants, "compare": run.compare, "search": run.search_better}
    sys.stdout.write(f"{commands[kind](rest)}\n")
    return ExitCode.DONE
