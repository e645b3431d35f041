"""The words of the synthetic world, which its sounds, questions and traces share.

Not here: how a word sounds (world.py) or is asked about (questions.py).
"""

from typing import Final

TIMBRES: Final = ("tone", "buzz", "noise")
PITCHES: Final = ("low", "mid", "high")
DURATIONS: Final = ("short", "long")
LEVELS: Final = ("soft", "loud")
NUMBERS: Final = ("none", "one", "two", "three", "four")
