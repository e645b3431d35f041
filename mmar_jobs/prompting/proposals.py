"""New prompts to try: known instructions in other choices and orders, and a user's own texts.

Not here: whether they are any good (search.py).
"""

import random
from typing import Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import BLOCKS, SYSTEM_BY_VERSION, system_text

_FIRST: Final = "base"
SEPARATOR: Final = "---"


def recombine(count: int, *, seed: int) -> list[str]:
    """Up to `count` texts that are no known variant: some blocks after the first, in some order.

    Each number of blocks is as likely as any other. Equal arguments give equal texts; there are
    325 in all, so a larger `count` gives fewer.
    """
    dice = random.Random(seed)  # noqa: S311 - proposals, not secrets
    names = [name for name in BLOCKS if name != _FIRST]
    found: dict[str, None] = {}
    known = set(SYSTEM_BY_VERSION.values())
    for _ in range(50 * count):
        chosen = dice.sample(names, dice.randint(1, len(names)))
        text = " ".join(BLOCKS[name] for name in (_FIRST, *chosen))
        if text not in known:
            found[text] = None
        if len(found) == count:
            break
    return list(found)


def parse_proposals(content: str, where: str) -> list[str]:
    """The texts in a file, parted by lines of `---`; SettingsError for one that cannot be asked."""
    parts: list[list[str]] = [[]]
    for line in content.splitlines():
        if line.strip() == SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(line)
    texts = [text for part in parts if (text := "\n".join(part).strip())]
    if not texts:
        raise SettingsError(f"{where} holds no proposal: write texts, parted by lines of ---")
    for number, text in enumerate(texts, 1):
        try:
            system_text(text)
        except SettingsError as error:
            raise SettingsError(f"{where}, proposal {number}: {error}") from None
    return list(dict.fromkeys(texts))
