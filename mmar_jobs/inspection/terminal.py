"""An inspection on a terminal: tokens coloured by what they are, the mel picture as characters.

Not here: the page (page.py). Without colours every mark is still readable: special tokens keep
their brackets, labelled text stands between bars.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmar_jobs.inspection.look import Inspection, Labels, Reply, Variant
from mmar_jobs.inspection.mel import FRAMES_PER_S, TOKENS_PER_S, mel_shades
from mmar_jobs.inspection.tokens import Piece, least_likely
from mmar_jobs.prompt import variant_name

_SPECIAL: Final = "bold magenta"
_AUDIO: Final = "bold yellow"
_LABEL: Final = "green"
_MEL_HEIGHT: Final = 12
_MEL_MARGIN: Final = 8
_NUM_HESITATIONS: Final = 4


def render_inspection(seen: Inspection, *, width: int) -> Group:
    """Everything in one column of `width` characters."""
    return Group(
        _question(seen),
        _panel("what it hears", Group(_hearing(seen), _mel(seen, width=width - 4))),
        _panel(f"what it reads: prompt {variant_name(seen.version)}", prompt_text(seen.prompt)),
        _panel("what it is taught", _labels(seen.labels)),
        *(_reply(reply) for reply in seen.replies),
        *([_panel("other prompts", _variants(seen.variants))] if seen.variants else []),
    )


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=Text(title), title_align="left", border_style="dim")


def _question(seen: Inspection) -> Panel:
    text = Text(printable(seen.question.text), style="bold")
    for choice in seen.question.choices:
        is_gold = choice == seen.question.answer
        text.append(
            f"\n  {'✓' if is_gold else '-'} {printable(choice)}", style=_LABEL if is_gold else ""
        )
    return _panel(f"question {printable(seen.question.id)}", text)


def _hearing(seen: Inspection) -> Text:
    heard = seen.hearing
    mark = "✓ the whole clip" if heard.is_whole else "✗ NOT the whole clip"
    channels = "mono" if heard.num_channels == 1 else f"{heard.num_channels} channels"
    return Text.assemble(
        f"{heard.duration_s:.2f} s, {channels} at {heard.file_rate_hz:,} Hz → 16 kHz mono → "
        f"{heard.num_mel_frames} mel frames\n",
        (f"{heard.num_audio_tokens} audio tokens", _AUDIO),
        f", expected {heard.expected_audio_tokens} for {heard.duration_s:.2f} s at "
        f"{TOKENS_PER_S}/s: ",
        (mark, _LABEL if heard.is_whole else "bold red"),
    )


def _mel(seen: Inspection, *, width: int) -> Text:
    lines = mel_shades(seen.mel_MF, width=width - _MEL_MARGIN, height=_MEL_HEIGHT)
    names = {0: "8 kHz", len(lines) // 2: "mel", len(lines) - 1: "0 Hz"}
    rows = [f"{names.get(place, ''):>6} │{line}" for place, line in enumerate(lines)]
    end = f"{seen.mel_MF.shape[1] / FRAMES_PER_S:.2f} s"
    axis = f"{'':>6} └0 s{end:─>{max(len(lines[0]) - 3, len(end))}}"
    return Text("\n" + "\n".join([*rows, axis]), no_wrap=True, overflow="crop")


def printable(text: str) -> str:
    """The text with control characters as their pictures: what a model says moves no cursor."""
    return "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if letter == "\n":
        return letter
    if letter < " ":
        return chr(0x2400 + ord(letter))
    return "\u2421" if "\x7f" <= letter <= "\x9f" else letter


def prompt_text(pieces: Iterable[Piece]) -> Text:
    """Tokens as text: special ones coloured, a run of audio tokens as one mark with its number."""
    text = Text()
    for piece in pieces:
        if piece.kind == "audio":
            count = len(piece.token_ids)
            text.append(f"{piece.text} x {count} = {count / TOKENS_PER_S:.2f} s", style=_AUDIO)
        elif piece.kind == "special":
            text.append(printable(piece.text), style=_SPECIAL)
        else:
            text.append(printable(piece.text), style=_LABEL if piece.is_label else "")
    return text


def _labels(labels: Labels) -> RenderableType:
    told = Text(f"{labels.source}, as the trainer encodes it\n", style="dim")
    if labels.problem:
        return told.append(f"✗ no training row: {labels.problem}", style="bold red")
    pieces = labels.pieces
    first = next(place for place, piece in enumerate(pieces) if piece.is_label)
    num_tokens = sum(len(piece.token_ids) for piece in pieces)
    told.append(f"{num_tokens - labels.num_labels} tokens without a label, then ", style="dim")
    told.append(f"{labels.num_labels} labelled", style=_LABEL)
    told.append(":\n… ")
    told.append_text(prompt_text(pieces[max(0, first - 3) : first]))
    told.append("▏", style="bold")
    told.append_text(prompt_text(pieces[first:]))
    return told.append("▕", style="bold")


def _reply(reply: Reply) -> Panel:
    text = Text()
    for piece in reply.pieces:
        style = _SPECIAL if piece.kind == "special" else _shade(piece.probability)
        text.append(printable(piece.text), style=style)
    mark = {"correct": "✓ ", "": ""}.get(reply.grade, "✗ ")
    text.append(f"\n{mark}{reply.grade or 'not graded'}: ", style="bold")
    text.append(printable(reply.answer) or "no answer that can be read", style="bold")
    text.append(
        f"   {reply.num_tokens} tokens, ended by {reply.finish}, {reply.probability:.1%} a token",
        style="dim",
    )
    doubts = least_likely(reply.pieces, _NUM_HESITATIONS)
    if doubts:
        shown = ", ".join(f"{piece.text.strip()!r} {piece.probability:.0%}" for piece in doubts)
        text.append(f"\nleast sure of: {shown}", style="dim")
    return _panel(f"{reply.model}, {reply.how}", text)


def _shade(probability: float | None) -> str:
    if probability is None or probability >= 0.9:
        return ""
    return "yellow" if probability >= 0.5 else "red"


def _variants(variants: Sequence[Variant]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("prompt")
    table.add_column("tokens", justify="right")
    for reply in variants[0].replies:
        table.add_column(Text(f"{reply.model} says"))
    for variant in variants:
        table.add_row(
            Text(variant.name), str(variant.num_prompt_tokens), *map(_said, variant.replies)
        )
    return table


def _said(reply: Reply) -> Text:
    mark = {"correct": "✓ ", "": ""}.get(reply.grade, "✗ ")
    style = {"correct": _LABEL, "": ""}.get(reply.grade, "red")
    return Text(
        f"{mark}{printable(reply.answer) or 'no answer'} ({reply.num_tokens} tokens)", style=style
    )
