"""List or train the runs of a table."""

import shlex
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import Cluster
from grid import Metric, Run, Table
from jobs import find_jobs, run_jobs, state_of
from progress import Progress
from records import is_done, read_records

if TYPE_CHECKING:
    from training import Plan, Trainer


def list_runs(runs: Sequence[Run], out: Path) -> list[str]:
    """Return a line for each run: the arguments of tools/train.py and the state."""
    files = {run.record_file(out) for run in runs}
    records = {path: read_records(path)[0] for path in files}
    found = {run: records[run.record_file(out)].get(run.name) for run in runs}
    jobs = find_jobs([run for run in runs if not is_done(found[run])], out)
    lines = []
    for run in runs:
        record = found[run]
        started = (out / run.folder / run.name).is_dir()
        state = record['outcome'] if record else 'begun' if started else 'missing'
        if job := jobs.get(run):
            state = f'{state_of(job)} as job {job.job_id}'
        lines.append(f'{shlex.join(run.arguments())}  # {run.name}: {state}')
    return lines


def run_table(
    table: Table,
    runs: Sequence[Run],
    out: str | Path,
    jobs: int | None = None,
    gpus: int = 1,
    data: str | None = None,
    cluster: Cluster | None = None,
) -> int:
    """Train the runs that have no result yet, and write their records.

    An interrupted run continues from its last checkpoint, and so does a failed one.

    Args:
        table: The table.
        runs: Runs of the table.
        out: Folder of the records and the work_dirs.
        jobs: Number of runs at the same time. By default one; on Slurm, all.
        gpus: Number of processes of each run. They share its batch.
        data: Folder of the data set; None for the folder that the configs name.
        cluster: Where each run is a job; None to train them in this process.

    Returns:
        The number of runs that failed.

    Raises:
        FileNotFoundError: If data is missing.
        ImportError, RuntimeError: If a package is missing, or Slurm refuses a job.
        ValueError: If the processes cannot share a batch.
        KeyboardInterrupt: If the process gets SIGINT or SIGTERM.
    """
    from training import Trainer  # imports torch, and --dry-run does not need it

    trainer = Trainer(Path(out), jobs or 1, gpus, data)
    missing = [run for run in runs if not trainer.is_done(run)]
    print(f'{len(runs)} runs, {len(runs) - len(missing)} of them done', flush=True)
    plans = {run: trainer.plan(run) for run in missing}
    if cluster:
        return run_jobs(cluster, trainer, list(plans), table.metrics, jobs)

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
    progress = Progress(len(plans), trainer.jobs, metrics)
    with ThreadPoolExecutor(trainer.jobs) as pool:
        futures = {
            pool.submit(trainer.train, run, plan): run for run, plan in plans.items()
        }
        for future in as_completed(futures):
            run, error = futures[future], future.exception()
            if trainer.stopped:
                continue
            if error:  # this program failed, for example because the disk is full
                progress.add(run, None, f'{type(error).__name__}: {error}')
            else:
                progress.add(run, future.result())
    return progress.end()
