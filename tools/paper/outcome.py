"""How a training ended, read from its logs."""

import datetime
import itertools
import re
import textwrap
from pathlib import Path

from pws_mmdet.analysis.scalars import read_scalars, scalar_files

DIVERGED = re.compile(r'Training diverged at (iteration \d+)')
# The last line of a traceback. ChildFailedError is the launcher's; it says only that a
# process failed.
EXCEPTION = re.compile(
    r'(?!\S*ChildFailedError)\w[\w.]*(Error|Exception|Interrupt)(:|$)'
)
AFTER_EXCEPTION = re.compile(r'\s*$|Traceback |[EWI]\d{4} ')
RANK = re.compile(r'\[rank\d+\]: ?')


def read_outcome(
    work_dir: Path, code: int, log: str, max_epochs: int
) -> tuple[str, list[dict], float]:
    """Read how a training ended.

    Args:
        work_dir: Its work_dir.
        code: Its exit status.
        log: All that it printed.
        max_epochs: The epoch whose validation is the result.

    Returns:
        The outcome, and what ``read_curve`` returns.
    """
    curve, seconds = read_curve(work_dir)
    if diverged := DIVERGED.search(log):
        outcome = f'diverged at {diverged[1]}'
    elif code != 0:
        outcome = f'failed with exit status {code}: {find_reason(log)}'
    elif not curve or curve[-1]['epoch'] != max_epochs:
        outcome = 'failed: no validation of the last epoch'
    else:
        outcome = 'finished'
    return outcome, curve, seconds


def find_reason(log: str) -> str:
    """Return the last exception of a log with its message, or else the last line."""
    lines = [RANK.sub('', line, count=1).rstrip() for line in log.splitlines()]
    for i in reversed(range(len(lines))):
        if EXCEPTION.match(lines[i]):
            rest = itertools.takewhile(
                lambda line: not AFTER_EXCEPTION.match(line), lines[i + 1 :]
            )
            reason = ' '.join([lines[i], *rest])
            break
    else:
        reason = next(filter(None, reversed(lines)), 'no output')
    return textwrap.shorten(reason, 300, placeholder=' ...')


def read_curve(work_dir: Path) -> tuple[list[dict], float]:
    """Read the validations of a training from MMEngine's logs.

    Returns:
        The metrics of each validated epoch with the epoch and the training step, and
        the seconds that the training ran, summed over all attempts.
    """
    paths = scalar_files(work_dir)
    if not paths:
        return [], 0.0
    scalars = read_scalars(work_dir)
    curve = [
        dict(epoch=epoch, step=scalars.validated_at[epoch], **metrics)
        for epoch, metrics in sorted(scalars.validations.items())
    ]
    return curve, sum(map(_duration, paths))


def _duration(path: Path) -> float:
    """Return the seconds from the start of an attempt to its last log entry."""
    started = datetime.datetime.strptime(path.parts[-3], '%Y%m%d_%H%M%S')
    return max(0.0, path.stat().st_mtime - started.timestamp())
