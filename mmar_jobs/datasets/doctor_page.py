"""A diagnosis as one HTML page that needs nothing else.

Not here: any number (doctor.py), words for a terminal (doctor_command.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from markupsafe import Markup

from mmar_jobs.datasets.clip_facts import FLOOR_DBFS, QUIET_DBFS, ClipFacts
from mmar_jobs.datasets.doctor import FATAL, Diagnosis
from mmar_jobs.report.page import open_templates
from mmar_jobs.report.svg import AFTER, GRID, SOFT, figure, to_svg

TEMPLATE: Final = "doctor.html.j2"
MAX_REMARKS: Final = 500
_NUM_BINS: Final = 30


class _Picture(NamedTuple):
    """A histogram: its key on the page, title, axis with unit, and a limit to mark or None."""

    key: str
    title: str
    label: str
    of: Callable[[ClipFacts], float]
    limit: float | None


_PICTURES: Final = (
    _Picture("length", "Length", "length, s", lambda clip: clip.duration_s, None),
    _Picture("tokens", "What a model hears", "audio tokens", lambda clip: clip.audio_tokens, None),
    _Picture("level", "Level", "level (RMS), dBFS", lambda clip: clip.rms_dbfs, QUIET_DBFS),
    _Picture(
        "silence", "Silence", "part below -60 dBFS, %", lambda clip: 100 * clip.silent_share, None
    ),
)


def render_diagnosis(found: Diagnosis, clips: Sequence[ClipFacts]) -> str:
    """The whole page; equal diagnoses give equal text."""
    here = Path(__file__).parent
    pictures = [
        (picture.title, Markup(_histogram(picture, clips)))  # noqa: S704 - matplotlib escapes
        for picture in (_PICTURES if clips else ())
    ]
    return (
        open_templates(here, here.parent / "report", here.parent / "analysis")
        .get_template(TEMPLATE)
        .render(
            found=found,
            fatal=FATAL,
            remarks=found.ranked[:MAX_REMARKS],
            pictures=pictures,
            quiet_dbfs=QUIET_DBFS,
        )
    )


def _histogram(picture: _Picture, clips: Sequence[ClipFacts]) -> str:
    values = np.array([picture.of(clip) for clip in clips])
    low, high = float(values.min()), float(values.max())
    if picture.limit is not None:
        low = max(FLOOR_DBFS, min(low, picture.limit))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=_NUM_BINS, range=(low, high))
    with figure(5.4, 2.6) as (made, (axes,)):
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=AFTER)
        if picture.limit is not None:
            axes.axvline(picture.limit, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.grid(visible=True, axis="y")
        axes.spines["bottom"].set_color(GRID)
        axes.set_xlabel(picture.label)
        axes.set_ylabel("clips")
        axes.locator_params(axis="y", integer=True)
        told = (
            f"{picture.title} of {len(clips)} clips as a histogram, {picture.label}: from "
            f"{values.min():.1f} to {values.max():.1f}, median {np.median(values):.1f}."
        )
        return to_svg(made, f"doctor-{picture.key}", told)
