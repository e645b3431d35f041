"""Every error a user can cause, with the exit code that argo and Kubernetes act on.

    MmarError                 1   a defect of ours when raised bare
    ├── SettingsError         2   a setting is wrong: change it and start again
    ├── DataError             3   an input is not what it must be: nothing will help but other data
    │   ├── GateError         3   a check of this project caught a fault: names what and where
    │   └── NothingToLearn    3   no candidate became an example: the loop ends here, well or not
    ├── PromotionRefused      4   the child is not better and the caller asked to fail on that
    └── TryAgain             75   the world was at fault (preempted, store or server gone)

Messages are one line: what is wrong, where, and what to do.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The contract with argo's retryStrategy and the Jobs' podFailurePolicy."""

    DONE = 0
    BUG = 1
    SETTINGS = 2
    DATA = 3
    PROMOTION_REFUSED = 4
    TRY_AGAIN = 75


class MmarError(Exception):
    """Base of all expected errors; printed as one line, never as a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class SettingsError(MmarError):
    """A setting, flag or environment variable is wrong, or contradicts what a run already holds."""

    exit_code = ExitCode.SETTINGS


class DataError(MmarError):
    """A question, clip, artifact or model file is missing, broken or not what it claims to be."""

    exit_code = ExitCode.DATA


class GateError(DataError):
    """A check caught a fault that would have produced a wrong result without a sound."""


class NothingToLearn(DataError):
    """No candidate of an iteration became an example.

    In the first iteration something is wrong; later a promoted model may just have learned it all.
    """


class PromotionRefused(MmarError):
    """The child was not measurably better and the caller asked for that to be an error."""

    exit_code = ExitCode.PROMOTION_REFUSED


class TryAgain(MmarError):
    """Something outside failed in a way that may pass: run the same command again."""

    exit_code = ExitCode.TRY_AGAIN
