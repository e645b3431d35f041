"""An inspection as one HTML page that needs nothing else.

Not here: any number. Everything that comes from data is escaped by jinja, and the page's content
policy allows neither scripts nor the network.
"""

from pathlib import Path
from typing import Final

from markupsafe import Markup

from mmar_jobs.inspection.look import Inspection
from mmar_jobs.inspection.mel import TOKENS_PER_S, describe, mel_svg
from mmar_jobs.inspection.tokens import Piece, least_likely
from mmar_jobs.prompt import variant_name
from mmar_jobs.report.cases import embed_clip
from mmar_jobs.report.page import open_templates

TEMPLATE: Final = "inspect.html.j2"
_NUM_HESITATIONS: Final = 5
_SURE: Final = 0.9
_HALF: Final = 0.5


def render_page(seen: Inspection) -> str:
    """The whole page; equal inspections give equal text."""
    folder = Path(__file__).parent
    environment = open_templates(folder, folder.parent / "report")
    environment.filters.update(visible=_visible, doubt=_doubt)
    return environment.get_template(TEMPLATE).render(
        seen=seen,
        prompt_name=variant_name(seen.version),
        mel=Markup(mel_svg(seen.mel_MF, alt=describe(seen.mel_MF))),  # noqa: S704 - our own SVG
        sound=embed_clip(seen.clip),
        tokens_per_s=TOKENS_PER_S,
        num_prompt_tokens=sum(len(piece.token_ids) for piece in seen.prompt),
        doubts=lambda reply: least_likely(reply.pieces, _NUM_HESITATIONS),
    )


def _visible(piece: Piece) -> str:
    """A piece's text with its line breaks marked."""
    return piece.text.replace("\n", "↵\n")


def _doubt(piece: Piece) -> str:
    """The class of a drawn piece by its probability."""
    if piece.probability is None or piece.probability >= _SURE:
        return ""
    return "unsure" if piece.probability >= _HALF else "doubtful"
