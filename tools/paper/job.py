"""One run of a table as a job of submitit, on a cluster or on this machine."""

import dataclasses
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import FOLDER
from grid import Run
from records import is_done, read_records

# The training has this time to end. submitit's signal comes 120 seconds before the end.
SECONDS_TO_STOP = 60
# Slurm announces the end of a job by SIGTERM. Its grace time is shorter than this.
SECONDS_TO_THE_END = 600


@dataclass
class TrainJob:
    """Trains a run in the process of a job.

    submitit pickles this object and calls it on the cluster. When the job is preempted
    or reaches its time limit, submitit calls ``checkpoint``, and queues the job
    again with what that returns.

    Args:
        run: The run.
        out: Folder of the records.
        jobs: Number of runs at the same time on the machine.
        gpus: Number of processes of the run.
        data: Folder of the data set; None for the folder that the configs name.
        on_slurm: Whether Slurm runs the job.
    """

    run: Run
    out: Path
    jobs: int
    gpus: int
    data: str | None
    on_slurm: bool
    _trainer: Any = field(default=None, init=False, repr=False)
    _result: dict | None = field(default=None, init=False, repr=False)
    _error: Exception | None = field(default=None, init=False, repr=False)
    # A plain flag: a signal handler that waits for a lock can wait for ever.
    _running: bool = field(default=False, init=False, repr=False)
    _stopped: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> dict | None:
        """Train the run to its end, and write its record.

        Returns:
            The record; None if another process trains the run.

        Raises:
            FileNotFoundError, ImportError, RuntimeError, ValueError: If the run cannot
                be trained on this machine, or if the job was ended from outside.
        """
        signal.signal(signal.SIGTERM, lambda signum, frame: self._stop())
        _remove_from_path(str(FOLDER))  # the names of these modules are too common
        record = read_records(self.run.record_file(self.out))[0].get(self.run.name)
        if is_done(record):  # by another job
            return record
        from training import Trainer

        self._trainer = Trainer(self.out, self.jobs, self.gpus, self.data)
        plan = self._trainer.plan(self.run)
        try:
            if not self._stopped:
                self._running = True
                # Signal handlers run in the main thread. It only waits.
                threading.Thread(target=self._train, args=(plan,)).start()
            while self._running:
                time.sleep(0.1)
            if self._stopped:
                self._await_the_end()
        except BaseException:  # KeyboardInterrupt, and SystemExit of submitit
            self._stop()
            raise
        if self._error:
            raise self._error
        return self._result

    def checkpoint(self) -> Any:
        """End the training; return the job that continues it from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        deadline = time.monotonic() + SECONDS_TO_STOP
        while self._running and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._running:
            self._trainer.stop(signal.SIGKILL)
        while self._running:
            time.sleep(0.1)
        return DelayedSubmission(dataclasses.replace(self))

    def _train(self, plan: Any) -> None:
        try:
            self._result = self._trainer.train(self.run, plan)
        except Exception as e:
            self._error = e
        finally:
            self._running = False

    def _stop(self) -> None:
        self._stopped = True
        if self._trainer:
            self._trainer.stop()

    def _await_the_end(self) -> None:
        """Wait for what follows SIGTERM.

        Slurm queues a preempted job again, or sends the signal on which submitit does.
        A job that ended before would count as done.
        """
        deadline = time.monotonic() + SECONDS_TO_THE_END * self.on_slurm
        while time.monotonic() < deadline:
            time.sleep(0.1)
        raise RuntimeError('the training was ended by SIGTERM')


def _remove_from_path(folder: str) -> None:
    """Remove a folder from the PYTHONPATH of the processes that this one starts."""
    paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    os.environ['PYTHONPATH'] = os.pathsep.join(p for p in paths if p != folder)
