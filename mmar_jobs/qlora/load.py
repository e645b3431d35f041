"""Loading a frozen thinker from a folder in the original file layout, every weight accounted for.

Not here: naming the folder (base_model.py), the processor, quantising the experts, saving.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from mmar_jobs.base_model import check_config
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.qlora.foreign import Thinker

# Never fed, so it may be cut off; by its names in the class and in the original's files.
_VISION: Final = ("visual.", "thinker.visual.")
# What the original holds beyond the thinker.
_SPEECH: Final = ("talker.", "code2wav.")
_NUM_SHOWN: Final = 3


def load_thinker(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Thinker:
    """Load text part and towers of a Qwen3-Omni folder: eval mode, every parameter frozen.

    Raises DataError when the folder holds no such model or its files are damaged, and GateError
    when a weight is missing, of another shape or not known: transformers would go on with random
    numbers instead.
    """
    check_config(folder)
    disable_progress_bar()  # type: ignore[no-untyped-call] # it would break through our bars
    set_verbosity_error()  # type: ignore[no-untyped-call] # its report is checked here
    foreign: Any = Qwen3OmniMoeThinkerForConditionalGeneration
    try:
        model, report = foreign.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, so that they are named below
        )
    except SafetensorError as error:
        raise DataError(
            f"{folder} holds a damaged .safetensors file ({_first_line(error)}): copy it again"
        ) from error
    except RuntimeError as error:
        if "allocate" in str(error):
            raise MemoryError(_first_line(error)) from error
        # Experts that cannot be fused; the message points to a log and names none of them.
        raise GateError(
            f"{folder}: expert weights are missing or of other shapes than config.json says: copy "
            "the model again, weights and config.json of one release"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder} cannot be loaded as a Qwen3-Omni thinker: {_first_line(error)}"
        ) from error
    _check_complete(folder, report)
    model.requires_grad_(requires_grad=False)
    thinker: Thinker = model.to(device).eval()
    return thinker


def _check_complete(folder: Path, report: Mapping[str, Iterable[Any]]) -> None:
    """Raise GateError unless the files fill the thinker, no more and no less."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    wrong = {
        "missing": _named(report["missing_keys"], _VISION),
        "of another shape than config.json says": _named(mismatched, _VISION),
        "not part of the model": _named(report["unexpected_keys"], (*_VISION, *_SPEECH)),
    }
    said = [
        f"{len(names)} weights are {what}, first {', '.join(names[:_NUM_SHOWN])}"
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise GateError(
            f"{folder}: {'; '.join(said)}: copy the model again, weights and config.json of one "
            "release"
        )


def _named(names: Iterable[str], but: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if not name.startswith(but))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
