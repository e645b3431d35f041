"""Loading a frozen thinker from a folder in the original file layout, and naming what was loaded.

Not here: the processor, quantisation of the experts, saving.
"""

import hashlib
from pathlib import Path

import torch
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from mmar_jobs.errors import DataError
from mmar_jobs.qlora.foreign import Thinker

_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
_BLOCK_BYTES = 1 << 22


def load_thinker(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Thinker:
    """Load text part and towers of a Qwen3-Omni folder: eval mode, every parameter frozen.

    Raises DataError when the folder holds no such model.
    """
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no model: config.json is missing; give a model folder")
    disable_progress_bar()  # type: ignore[no-untyped-call] # it would break through our bars
    try:
        model: Thinker = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder} cannot be loaded as a Qwen3-Omni thinker: {reason}") from error
    model.requires_grad_(requires_grad=False)
    return model.to(device).eval()


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all weight, config, tokenizer and chat template files.

    Files are taken in the order of their names, so the digest is the same on every machine; a file
    that is renamed, added or changed in one byte changes it.
    """
    paths = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in paths):
        raise DataError(f"{folder} holds no .safetensors file: give a model folder")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
