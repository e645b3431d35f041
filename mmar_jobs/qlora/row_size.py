"""The few sizes that packed rows are padded to, so that kernels can be captured for each.

Not here: capturing (graphs.py), packing (packing.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NUM_SIZES: Final = 16
_TOKENS_APART: Final = 256
# Generous, so that most rows of one number of tokens are of one size; flash attention's grid is as
# large as both together, and what of it has nothing to do ends at once.
_SEQUENCES: Final = 16
_LONGEST: Final = 2048


@dataclass(frozen=True, slots=True)
class RowSize:
    """All that a captured row is fixed to.

    Tokens with padding, room for sequences and for the longest of them, and dropout's threshold.
    """

    tokens: int
    num_sequences: int
    longest: int
    threshold: int

    @classmethod
    def of(cls, lengths: Sequence[int], *, token_budget: int, threshold: int) -> "RowSize":
        """The smallest size that takes sequences of these lengths; padding is one more."""
        tokens = padded_tokens(sum(lengths), token_budget)
        longest = max(*lengths, tokens - sum(lengths))
        return cls(
            tokens,
            max(_SEQUENCES, _power_of_two(len(lengths) + 1)),
            min(tokens, max(_LONGEST, _power_of_two(longest))),
            threshold,
        )


def padded_tokens(tokens: int, token_budget: int) -> int:
    """Tokens of a row of so many real ones."""
    apart = _apart(token_budget)
    return -(-tokens // apart) * apart


def row_tokens(token_budget: int) -> range:
    """All that rows of at most `token_budget` tokens are padded to: at most 16 numbers."""
    apart = _apart(token_budget)
    return range(apart, padded_tokens(token_budget, token_budget) + 1, apart)


def _apart(token_budget: int) -> int:
    return max(_TOKENS_APART, _power_of_two(token_budget) // NUM_SIZES)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
