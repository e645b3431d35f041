"""A comparison as one HTML page that loads nothing but, at most, clips that lie beside it.

Not here: numbers (compare.py), words (text.py), pictures (plots.py). Everything that comes from
data is escaped by jinja, and the page's content policy allows neither scripts nor the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from mmar_jobs.analysis import plots, text
from mmar_jobs.analysis.compare import Comparison, Finding, Pair, cross
from mmar_jobs.analysis.items import Items
from mmar_jobs.analysis.outcomes import Outcomes
from mmar_jobs.analysis.sound import Sound, Sounds
from mmar_jobs.records import Question
from mmar_jobs.report import page as report_page

TEMPLATES: Final = (Path(__file__).parent, Path(report_page.__file__).parent)
MAX_PAIRS: Final = 12  # with a section of their own; the table at the top has all
MAX_SHOWN_CHARACTERS: Final = 10_000
_TONES: Final = {Finding.BETTER: "good", Finding.WORSE: "bad", Finding.NO_DIFFERENCE: "open"}
_MAX_COLUMNS: Final = 12


@dataclass(frozen=True)
class Reply:
    """One model's prediction of one question."""

    thinking: str
    answer: str
    is_right: bool


@dataclass(frozen=True)
class Flip:
    """A question that one file of a pair answered right and the other wrong."""

    question: Question
    is_won: bool
    sound: Sound
    before: Reply
    after: Reply


@dataclass(frozen=True)
class Section:
    """One pair with its words, pictures and flipped questions; `num_hidden` flips are left out."""

    key: str
    pair: Pair
    tone: str
    headline: str
    evidence: str
    where_worse: str
    plots: list[tuple[str, Markup]]
    cross: Markup | None
    flips: list[Flip]
    num_hidden: int


def render_comparison(
    comparison: Comparison,
    items: Items,
    files: Sequence[Outcomes],
    *,
    sounds: Sounds,
    max_items: int,
) -> str:
    """The whole page; equal files and clips give equal text."""
    by_name = {file.name: file for file in files}
    sections = [
        _section(f"pair{i}", pair, items, (by_name[pair.baseline], by_name[pair.name]))
        for i, pair in enumerate(comparison.pairs[:MAX_PAIRS])
    ]
    for section in sections:
        pair_files = by_name[section.pair.baseline], by_name[section.pair.name]
        section.flips.extend(_flips(section.pair, items, pair_files, sounds, max_items))
    environment = report_page.open_templates(*TEMPLATES)
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        sections=sections,
        tones={finding.value: tone for finding, tone in _TONES.items()},
        names=text.DIMENSION_NAMES,
        files_plot=_files_plot(comparison),
    )


def _section(key: str, pair: Pair, items: Items, files: tuple[Outcomes, Outcomes]) -> Section:
    pictures = []
    by_height = sorted(pair.dimensions.items(), key=lambda item: len(item[1]))
    for dimension, rows in by_height:
        title = f"Change by {text.DIMENSION_NAMES[dimension]}"
        if len(rows) > 1:
            svg = plots.changes(rows, f"{key}-{dimension}", title)
            pictures.append((title, Markup(svg)))  # noqa: S704 - matplotlib escapes its texts
    num_flips = len(pair.lost_ids) + len(pair.won_ids)
    return Section(
        key=key,
        pair=pair,
        tone=_TONES[pair.finding],
        headline=text.headline(pair),
        evidence=text.evidence(pair),
        where_worse=text.where_worse(pair),
        plots=pictures,
        cross=_cross_plot(key, items, files),
        flips=[],
        num_hidden=num_flips,
    )


def _cross_plot(key: str, items: Items, files: tuple[Outcomes, Outcomes]) -> Markup | None:
    dimensions = ("sub_category", "modality")
    rows, columns = (items.groups[name].names for name in dimensions)
    if len(rows) * len(columns) < 2 or len(columns) > _MAX_COLUMNS:
        return None
    gains, ns = cross(items, dimensions, *files)
    cells = [
        [
            plots.Cell(float(gain) / int(n), int(n)) if n else None
            for gain, n in zip(gain_line, n_line, strict=True)
        ]
        for gain_line, n_line in zip(gains, ns, strict=True)
    ]
    svg = plots.heat_map(cells, ("sub-category", "modality"), (rows, columns), f"{key}-cross")
    return Markup(svg)  # noqa: S704 - see _section


def _files_plot(comparison: Comparison) -> Markup | None:
    """Groups against files, where there is more than one file to compare with one baseline."""
    pairs = [pair for pair in comparison.pairs if pair.baseline == comparison.files[0].name]
    if not 1 < len(pairs) <= _MAX_COLUMNS:
        return None
    rows = [
        (dimension, i, row.name)
        for dimension, found in pairs[0].dimensions.items()
        for i, row in enumerate(found)
        if len(found) > 1
    ]
    cells = [
        [
            plots.Cell(pair.dimensions[dimension][i].gain, pair.dimensions[dimension][i].n)
            for pair in pairs
        ]
        for dimension, i, _ in rows
    ]
    names = ([name for _, _, name in rows], [pair.name for pair in pairs])
    svg = plots.heat_map(cells, ("group", "file"), names, "files")
    return Markup(svg)  # noqa: S704 - see _section


def _flips(
    pair: Pair, items: Items, files: tuple[Outcomes, Outcomes], sounds: Sounds, max_items: int
) -> list[Flip]:
    """Lost ones first: they say where it got worse; half of the places are for those won."""
    num_won = min(len(pair.won_ids), max(max_items // 2, max_items - len(pair.lost_ids)))
    chosen = [(key, False) for key in pair.lost_ids[: max_items - num_won]]
    chosen += [(key, True) for key in pair.won_ids[:num_won]]
    found = []
    for key, is_won in chosen:
        i = items.place[key]
        question = items.question(i)
        before, after = (read_reply(file, i) for file in files)
        found.append(Flip(question, is_won, sounds.find(question), before, after))
    return found


def read_reply(file: Outcomes, i: int) -> Reply:
    """The prediction at a place, its thinking cut where a page would become too long."""
    row = file.row(i)
    thinking = row.get("thinking_prediction") or ""
    if len(thinking) > MAX_SHOWN_CHARACTERS:
        thinking = f"{thinking[:MAX_SHOWN_CHARACTERS]} […]"
    return Reply(thinking, row.get("answer_prediction") or "", bool(file.right_Q[i]))
