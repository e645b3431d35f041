"""The words of the synthetic world, which its sounds, questions and traces share.

Not here: how a word sounds (world.py) or is asked about (questions.py), the prompts (prompt.py).
"""

from typing import Final

TIMBRES: Final = ("tone", "buzz", "noise")
PITCHES: Final = ("low", "mid", "high")
DURATIONS: Final = ("short", "long")
LEVELS: Final = ("soft", "loud")
NUMBERS: Final = ("none", "one", "two", "three", "four")

_LISTEN: Final = "Listen to the audio. Think, then answer with exactly one of the choices."
_ONE_CHOICE: Final = (
    "After thinking, reply with the text of one choice, copied word for word, and nothing else. "
    "Never combine choices, never invent one, never answer with a letter or a number of a choice."
)
_COUNT: Final = (
    "When the question asks how many, go through the audio from start to end, note each event with "
    "its time, then count the notes. Do not prefer yes over no: look for evidence against each "
    "choice."
)
_CUES: Final = (
    "In your thinking, first name every cue that you hear (sounds, voices, words, music, places), "
    "then say what each cue means for the question, then compare the choices one by one."
)
# What the tokenizer learns instructions from. Prompts may change, this may not: other words make
# other token ids, and the committed weights were trained with these.
INSTRUCTIONS: Final = (
    _LISTEN,
    f"{_LISTEN} {_ONE_CHOICE}",
    f"{_LISTEN} {_ONE_CHOICE} {_COUNT}",
    f"{_LISTEN} {_ONE_CHOICE} {_COUNT} {_CUES}",
)
