"""The embedded default: a small Qwen3-Omni and a synthetic benchmark with real WAV files."""

from importlib.resources import files
from pathlib import Path


def tiny_model_folder() -> Path:
    """Folder of the trained tiny model in the package; its `card.json` says how good it is."""
    return Path(str(files(__name__) / "weights"))
