"""What a browser and a reader make of the report's page.

Not here: what it should be (test_report.py).
"""

import html
import re
from html.parser import HTMLParser


def words_of(page: str) -> str:
    """What a reader sees: no styles, no tags, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class _Tags(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open_tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """All elements with their attributes; asserts that every one is closed."""
    parser = _Tags()
    parser.feed(page)
    assert parser.open_tags == []
    return parser.tags
