"""Structured logs on standard error: JSON lines for machines, short lines on a terminal.

Not here: progress bars (progress.py). Exceptions are logged without local variables, which could
hold secrets.
"""

import logging
import sys
from typing import Any, Final, Literal

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer

FINISHED: Final = "job_finished"  # the event of a command that has made what it is for


def configure(log_format: Literal["auto", "json", "console"]) -> Any:
    """Set structlog up for this process and return the logger of the stages."""
    to_terminal = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if to_terminal:
        shared.append(structlog.dev.ConsoleRenderer(pad_event_to=26))
    else:
        shared.append(ExceptionRenderer(ExceptionDictTransformer(show_locals=False)))
        shared.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()
