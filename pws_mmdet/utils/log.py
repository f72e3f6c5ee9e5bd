"""Messages in the log of a run."""

import logging

from mmengine.logging import print_log


def inform(text: str) -> None:
    """Log a message through MMEngine, so that it is in the log file of the run."""
    print_log(text, logger='current')


def warn(text: str) -> None:
    """Log a warning through MMEngine, so that it is in the log file of the run."""
    print_log(text, logger='current', level=logging.WARNING)
