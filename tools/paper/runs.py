"""List or train the runs of a table."""

import math
import shlex
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from grid import Metric, Run, Table
from records import read_records

if TYPE_CHECKING:
    from training import Plan, Trainer


def list_runs(runs: Sequence[Run], out: Path) -> list[str]:
    """Return a line for each run: the arguments of tools/train.py and the state."""
    files = {run.record_file(out) for run in runs}
    records = {path: read_records(path)[0] for path in files}
    lines = []
    for run in runs:
        record = records[run.record_file(out)].get(run.name)
        started = (out / run.folder / run.name).is_dir()
        state = record['outcome'] if record else 'begun' if started else 'missing'
        lines.append(f'{shlex.join(run.arguments())}  # {run.name}: {state}')
    return lines


def run_table(
    table: Table,
    runs: Sequence[Run],
    out: str | Path,
    jobs: int = 1,
    gpus: int = 1,
    data: str | None = None,
) -> int:
    """Train the runs that have no result yet, and write their records.

    An interrupted run continues from its last checkpoint, and so does a failed one.

    Args:
        table: The table.
        runs: Runs of the table.
        out: Folder of the records and the work_dirs.
        jobs: Number of runs at the same time.
        gpus: Number of processes of each run. They share its batch.
        data: Folder of the data set; None for the folder that the configs name.

    Returns:
        The number of runs that failed.

    Raises:
        FileNotFoundError: If data is missing.
        ImportError, RuntimeError: If a package is missing.
        ValueError: If the processes cannot share a batch.
        KeyboardInterrupt: If the process gets SIGINT or SIGTERM.
    """
    from training import Trainer  # imports torch, and --dry-run does not need it

    trainer = Trainer(Path(out), jobs, gpus, data)
    missing = [run for run in runs if not trainer.is_done(run)]
    print(f'{len(runs)} runs, {len(runs) - len(missing)} of them done', flush=True)
    plans = {run: trainer.plan(run) for run in missing}

    def interrupt(signum, frame):
        trainer.stop()
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    return train_all(trainer, plans, table.metrics)


def train_all(
    trainer: 'Trainer', plans: 'Mapping[Run, Plan]', metrics: Sequence[Metric]
) -> int:
    """Train runs, and print a line for each; return the number that failed."""
    count = len(plans)
    failed, durations = 0, []
    with ThreadPoolExecutor(trainer.jobs) as pool:
        futures = {
            pool.submit(trainer.train, run, plan): run for run, plan in plans.items()
        }
        for done, future in enumerate(as_completed(futures), 1):
            run, error = futures[future], future.exception()
            if trainer.stopped:
                continue
            record = None if error else future.result()
            if error:  # this program failed, for example because the disk is full
                failed += 1
                result = f'failed: {type(error).__name__}: {error}'
            elif record is None:
                result = 'is being trained by another process'
            else:
                failed += record['outcome'].startswith('failed')
                durations.append(record['minutes'])
                result = describe(record, metrics)
            line = f'[{done}/{count}] {run.folder} {run.name}: {result}'
            if durations and done < count:
                rounds = math.ceil((count - done) / trainer.jobs)
                about = rounds * statistics.median(durations)
                line += f'; {count - done} left, about {about:.0f} min'
            print(line, flush=True)
    if failed:
        print(
            f'{failed} runs failed. See their console.log for the reason. The same '
            'command tries them again.',
            file=sys.stderr,
        )
    return failed


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
