"""What exceptions that no stage expected mean to the user, where they have a known meaning.

Not here: the store's and the settings' own errors, which are explained where they arise; printing.
"""

import errno
from typing import Final

from mmar_jobs.errors import MmarError, SettingsError, TryAgain

_REFUSED: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# torch has no type of its own for a failed allocation on the CPU.
_ALLOCATORS: Final = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")


def explain(error: BaseException) -> MmarError | None:
    """The error to end with, or None: then `error` is a defect and deserves its traceback.

    Out of memory is a SettingsError: the same command would need as much memory again.
    """
    if isinstance(error, MemoryError) or _is_failed_allocation(error):
        if "CUDA" in str(error):
            return SettingsError(
                "the GPU is out of memory: free it of other processes (nvidia-smi), or lower "
                "--hardware.memory-gb, for training to keep less, or --optim.token-budget"
            )
        return SettingsError("out of memory: lower --engine.rows-per-batch or --optim.token-budget")
    return _explain_os(error) if isinstance(error, OSError) else None


def _is_failed_allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def _explain_os(error: OSError) -> MmarError | None:
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in _FULL:
        return TryAgain(
            f"disk full ({error.filename}): free space, then run the same command again, finished "
            "work is kept"
        )
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno == errno.EIO:
        return TryAgain(f"{where}{reason}: check the disk, then run the same command again")
    if error.errno in _REFUSED:
        return SettingsError(f"{where}{reason}: correct the path or its permissions")
    return None
