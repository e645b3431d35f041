"""The words of the synthetic world, which its questions, its traces and the tokenizer share.

Not here: how a word sounds (world.py) or is asked about (questions.py).
"""

from typing import Final

TIMBRES: Final = ("tone", "buzz", "noise")
PITCHES: Final = ("low", "mid", "high")
DURATIONS: Final = ("short", "long")
LEVELS: Final = ("soft", "loud")
NUMBERS: Final = ("none", "one", "two", "three", "four")
PLACES: Final = ("first", "second", "third", "last")

QUESTION_TEXTS: Final = (
    "How many sounds are there?",
    "How many sounds are {value}?",
    "What kind of sound comes {place}?",
    "Which sound is higher, the first or the last?",
    "Which sound is longer, the first or the last?",
    "Which sound is louder, the first or the last?",
    "Which kind of sound is missing?",
    "Which kinds of sound come first and second?",
)
_GLUE: Final = (
    " is are has the a an and or then but so not same equal only both each sound sounds kind kinds",
    " first second third fourth last before after between Choices: - , . ; : ?\n\n <think></think>",
    " higher lower longer shorter louder softer missing present count counts total pitch length level",
)


def corpus() -> list[str]:
    """Texts from which the tokenizer learns; every word occurs with and without a leading space."""
    words = (*TIMBRES, *PITCHES, *DURATIONS, *LEVELS, *NUMBERS, *PLACES, "equal")
    texts = [*QUESTION_TEXTS, *_GLUE, *words, *(f" {word}" for word in words)]
    # Twice: a pair of letters must occur at least twice to be merged.
    return [*texts, *texts]
