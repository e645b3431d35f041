"""Write a Thinker in the original Qwen3-Omni file layout, which vLLM and transformers read.

Not here: loading (transformers does it), adapters and merging (qlora/). The original layout has
`thinker.` names and one gate_proj, up_proj, down_proj per expert; transformers holds the experts as
two fused parameters and its save_pretrained drops the prefix and renames the architecture, so what
it writes is no longer the model that a server expects.
"""

# Shapes: E experts, I expert width, H hidden width.

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors.torch import save_file

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_FILE: Final = "model.safetensors"
_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<which>gate_up_proj|down_proj)")
_WEIGHT_SUFFIXES: Final = (".safetensors", ".safetensors.index.json", ".bin", ".pt")


def original_layout_state(model: "nn.Module") -> "dict[str, torch.Tensor]":
    """Tensors of a `Qwen3OmniMoeThinkerForConditionalGeneration` under their original names.

    All tensors are contiguous copies, experts un-fused: gate rows come first in gate_up_proj_E2IH.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        fused = _FUSED.fullmatch(name)
        if fused is None:
            state[f"thinker.{name}"] = _copy(tensor)
            continue
        for expert, expert_tensor in enumerate(tensor):
            stem = f"thinker.{fused['experts']}.{expert}"
            if fused["which"] == "down_proj":
                state[f"{stem}.down_proj.weight"] = _copy(expert_tensor)
                continue
            gate_IH, up_IH = expert_tensor.chunk(2, dim=0)
            state[f"{stem}.gate_proj.weight"] = _copy(gate_IH)
            state[f"{stem}.up_proj.weight"] = _copy(up_IH)
    return state


def save_original_layout(model: "nn.Module", source_folder: Path, folder: Path) -> None:
    """Save `model` as a complete folder; what is not weights is copied from `source_folder`.

    The weights file is renamed into place last, so a folder that has it is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source_folder.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and path.parent != folder:
            shutil.copyfile(path, folder / path.name)
    partial = folder / f"{WEIGHTS_FILE}.partial"
    save_file(original_layout_state(model), partial, metadata={"format": "pt"})
    partial.rename(folder / WEIGHTS_FILE)


def _copy(tensor: "torch.Tensor") -> "torch.Tensor":
    # Fresh row-major memory: safetensors refuses shared storage and channels_last strides.
    return tensor.detach().cpu().contiguous().clone()
