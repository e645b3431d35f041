"""Names for what other libraries leave untyped, so that signatures say what is meant.

Not here: any behaviour.
"""

from typing import Any, TypeAlias

# transformers' Qwen3OmniMoeThinkerForConditionalGeneration and Qwen3OmniMoeProcessor.
Thinker: TypeAlias = Any
Processor: TypeAlias = Any
# torch.autograd.Function's context: attributes are set on it at will.
Context: TypeAlias = Any
