"""The lines that tell how the runs of a table end."""

import math
import statistics
import sys
from collections.abc import Sequence

from grid import Metric, Run


class Progress:
    """Prints a line for each run that ends, and counts those that failed.

    Args:
        count: Number of runs.
        jobs: Number of runs at the same time.
        metrics: Figures of the table.
    """

    def __init__(self, count: int, jobs: int, metrics: Sequence[Metric]) -> None:
        self.count = count
        self.jobs = jobs
        self.metrics = metrics
        self.done = 0
        self.failed = 0
        self.durations: list[float] = []

    def add(self, run: Run, record: dict | None, error: str | None = None) -> None:
        """Print how a run ended.

        Args:
            run: The run.
            record: Its record; None if another process trains it or there is an error.
            error: What went wrong outside of the training.
        """
        self.done += 1
        if error:  # for example, the disk is full
            self.failed += 1
            result = f'failed: {error}'
        elif record is None:
            result = 'is being trained by another process'
        else:
            self.failed += record['outcome'].startswith('failed')
            self.durations.append(record['minutes'])
            result = describe(record, self.metrics)
        line = f'[{self.done}/{self.count}] {run.folder} {run.name}: {result}'
        left = self.count - self.done
        if self.durations and left:
            about = math.ceil(left / self.jobs) * statistics.median(self.durations)
            line += f'; {left} left, about {about:.0f} min'
        print(line, flush=True)

    def end(self) -> int:
        """Say what to do about failed runs; return their number."""
        if self.failed:
            print(
                f'{self.failed} runs failed. See their console.log for the reason. The '
                'same command tries them again.',
                file=sys.stderr,
            )
        return self.failed


def describe(record: dict, metrics: Sequence[Metric]) -> str:
    """Return the outcome of a run, its figures and its time."""
    figures = ''
    if record['outcome'] == 'finished':
        values = {m.name: m.of(record['metrics']) for m in metrics}
        figures = ''.join(
            f', {name} ' + (f'{value:.1f}' if math.isfinite(value) else 'NaN')
            for name, value in values.items()
        )
    return f'{record["outcome"]}{figures} ({record["minutes"]} min)'
