"""Submit the runs of a table as jobs, and follow them."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import Cluster
from grid import Metric, Run
from job import TrainJob
from progress import Progress

if TYPE_CHECKING:
    from training import Trainer

# Until Slurm's accounting knows a job, submitit calls its state UNKNOWN.
QUEUED = ('PENDING', 'REQUEUED', 'PREEMPTED', 'READY', 'UNKNOWN')


def run_jobs(
    cluster: Cluster,
    trainer: 'Trainer',
    runs: Sequence[Run],
    metrics: Sequence[Metric],
    limit: int | None = None,
) -> int:
    """Submit runs as jobs, and print a line whenever the state of one changes.

    Jobs on Slurm that an earlier call submitted are followed, not submitted again.

    Args:
        cluster: Where the jobs run.
        trainer: What to train with.
        runs: Runs without a result.
        metrics: Figures of the table.
        limit: Number of jobs at the same time. By default, all on Slurm, one here.

    Returns:
        The number of runs that failed.

    Raises:
        RuntimeError: If Slurm refuses a job.
        KeyboardInterrupt: If the process gets SIGINT or SIGTERM. Jobs on Slurm go on;
            those on this machine are ended.
    """
    on_slurm = cluster.partition is not None
    limit = limit or (max(1, len(runs)) if on_slurm else 1)
    progress = Progress(len(runs), limit, metrics)
    jobs = find_jobs(runs, trainer.out) if on_slurm else {}
    slots = {run: slot for slot, run in enumerate(jobs)}
    waiting = [run for run in runs if run not in jobs]
    states: dict[Run, str] = {}

    def show(run: Run, state: str) -> None:
        if state != states.get(run):
            states[run] = state
            print(f'{run.folder} {run.name}: {state}', flush=True)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        while waiting or jobs:
            while waiting and len(jobs) < limit:
                run = waiting.pop(0)
                slot = min(set(range(limit)) - set(slots.values()))
                jobs[run] = submit(cluster, trainer, run, limit, slot)
                slots[run] = slot
            for run, job in list(jobs.items()):
                if job.done():
                    del jobs[run], slots[run]
                    progress.add(run, *result_of(job))
                else:
                    show(run, f'{state_of(job)} as job {job.job_id}')
            for run in waiting:
                show(run, 'queued')
            if jobs:
                time.sleep(5 if on_slurm else 0.2)
    except KeyboardInterrupt:
        leave(jobs.values(), on_slurm)
        raise
    return progress.end()


def submit(
    cluster: Cluster, trainer: 'Trainer', run: Run, limit: int, slot: int
) -> Any:
    """Submit a run; return submitit's job.

    Args:
        cluster: Where the job runs.
        trainer: What to train with.
        run: The run.
        limit: Number of jobs at the same time.
        slot: Number of the job among these.

    Raises:
        RuntimeError: If Slurm refuses the job.
    """
    from pws_mmdet.utils.files import write_whole

    on_slurm = cluster.partition is not None
    folder = job_folder(run, trainer.out)
    name = f'{run.folder}-{run.name}'
    executor = cluster.executor(folder, name, trainer.gpus, slot)
    task = TrainJob(
        run=run,
        out=trainer.out.resolve(),
        jobs=1 if on_slurm else limit,
        gpus=trainer.gpus,
        data=trainer.data,
        on_slurm=on_slurm,
    )
    try:
        job = executor.submit(task)
    except RuntimeError as e:
        raise RuntimeError(f'The job of {run.name} was not submitted: {e}') from e
    if on_slurm:
        write_whole(folder / 'id', lambda part: part.write_text(job.job_id))
    return job


def job_folder(run: Run, out: Path) -> Path:
    """Return the folder of submitit's files of a run."""
    return out / run.folder / run.name / 'jobs'


def find_jobs(runs: Iterable[Run], out: Path) -> dict[Run, Any]:
    """Return submitit's jobs of the runs that are queued or running on Slurm."""
    ids = {}
    for run in runs:
        with contextlib.suppress(OSError):
            ids[run] = (job_folder(run, out) / 'id').read_text().strip()
    if not ids:
        return {}
    try:
        import submitit
    except ImportError:  # without it, --dry-run lists what it knows
        return {}
    # All are made before one is asked for its state: Slurm is asked only once then.
    jobs = {run: submitit.SlurmJob(job_folder(run, out), i) for run, i in ids.items()}
    return {
        run: job
        for run, job in jobs.items()
        if not job.done() and job.state != 'UNKNOWN'
    }


def state_of(job: Any) -> str:
    """Return 'queued' or 'running'."""
    return 'queued' if job.state.upper().startswith(QUEUED) else 'running'


def result_of(job: Any) -> tuple[dict | None, str | None]:
    """Return the record that a job returned, and what went wrong, None if nothing."""
    from outcome import find_reason

    error = job.exception()
    if error is None:
        return job.result(), None
    # submitit puts the traceback, or the log, between dashes.
    parts = re.split('-{20,}', str(error))
    reason = find_reason(parts[1] if len(parts) > 1 else str(error))
    return None, f'job {job.job_id}: {reason} (log: {job.paths.stderr})'


def leave(jobs: Iterable[Any], on_slurm: bool) -> None:
    """End the jobs on this machine; say how to end those on Slurm."""
    jobs = list(jobs)
    if on_slurm:
        if jobs:
            ids = ' '.join(job.job_id for job in jobs)
            print(f'The jobs go on. To end them: scancel {ids}', file=sys.stderr)
        return
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            # Its id is that of its process, which passes the signal on.
            os.kill(int(job.job_id), signal.SIGTERM)
    while not all(job.done() for job in jobs):
        time.sleep(0.1)
