"""Train one run of a table with tools/train.py, and write its record."""

import contextlib
import datetime
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import describe_environment, installed
from grid import Run
from mmengine.config import Config
from outcome import read_outcome
from records import is_done, read_records, write_record

from pws_mmdet.engine import find_checkpoints
from pws_mmdet.engine.checks import check_data
from pws_mmdet.utils.config import walk
from pws_mmdet.utils.files import write_whole

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """How a run is trained here.

    Args:
        options: Changes to the run's own options.
        batch_size: Batch of all processes together.
        max_epochs: Epochs of the training.
        versions: Packages that this run needs besides those of all runs.
    """

    options: dict[str, Any]
    batch_size: int
    max_epochs: int
    versions: dict[str, str]


class Trainer:
    """Trains runs in processes of their own, several at the same time.

    Args:
        out: Folder of the records.
        jobs: Number of runs at the same time.
        gpus: Number of processes of each run. They share its batch.
        data: Folder of the data set; None for the folder that the configs name.
    """

    def __init__(self, out: Path, jobs: int, gpus: int, data: str | None) -> None:
        self.out = out
        self.jobs = jobs
        self.gpus = gpus
        self.data = data
        self.environment = describe_environment(ROOT)
        self.processes: set[subprocess.Popen] = set()
        self.slots = list(range(jobs))
        self.lock = threading.Lock()
        self.stopped = False

    def is_done(self, run: Run) -> bool:
        records, _ = read_records(run.record_file(self.out))
        return is_done(records.get(run.name))

    def plan(self, run: Run) -> Plan:
        """Check the run's config and data.

        Raises:
            FileNotFoundError: If data is missing.
            ImportError, RuntimeError: If a package is missing.
            ValueError: If the processes cannot share the batch.
        """
        with warnings.catch_warnings():  # of MMEngine, on pkg_resources
            warnings.simplefilter('ignore')
            cfg = Config.fromfile(ROOT / run.config)
        options = dict(find_data(cfg, self.data)) if self.data else {}
        cfg.merge_from_dict({**run.options, **options})
        batch_size = cfg.train_dataloader.batch_size
        if batch_size % self.gpus:
            raise ValueError(
                f'{self.gpus} processes (--gpus) cannot share the batch of {run.cell}, '
                f'which is {batch_size}'
            )
        if self.gpus > 1:
            options['train_dataloader.batch_size'] = batch_size // self.gpus
        check_data(cfg, 'name its folder with --data FOLDER')
        is_classifier = cfg.get('default_scope') == 'mmpretrain'
        return Plan(
            options=options,
            batch_size=batch_size,
            max_epochs=cfg.train_cfg.max_epochs,
            versions=installed('mmpretrain', 'torchvision') if is_classifier else {},
        )

    def train(self, run: Run, plan: Plan) -> dict | None:
        """Train a run to its end, and write its record.

        Returns:
            The record. None if this object was stopped or another process trains the
            run.
        """
        if self.stopped:
            return None
        work_dir = self.out / run.folder / run.name
        work_dir.mkdir(parents=True, exist_ok=True)
        with open(work_dir / 'console.log', 'a', encoding='utf-8') as console:
            # The training inherits the lock and holds it even if this program dies.
            try:
                fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            start = console.seek(0, os.SEEK_END)
            command = self._command(run, plan, work_dir)
            code, attempt, attempts = self._run(command, plan, work_dir, console)
        if self.stopped:
            return None
        with open(work_dir / 'console.log', encoding='utf-8', errors='replace') as file:
            file.seek(start)
            log = file.read()
        outcome, curve, seconds = read_outcome(work_dir, code, log, plan.max_epochs)
        record = dict(
            table=run.table,
            scale=run.scale,
            run=run.name,
            row=run.row,
            column=run.column,
            seed=run.seed,
            label=run.label,
            config=run.config,
            options={**run.options, 'randomness.seed': run.seed},
            flags=list(run.flags),
            batch_size=plan.batch_size,
            outcome=outcome,
            metrics=curve[-1] if curve and outcome == 'finished' else {},
            curve=curve,
            minutes=round(seconds / 60, 1),
            **attempt,
        )
        record['date'] = datetime.date.today().isoformat()  # the last attempt's end
        if len(attempts) > 1:
            record['attempts'] = attempts
        write_record(run.record_file(self.out), record)
        return record

    def _command(self, run: Run, plan: Plan, work_dir: Path) -> list[str]:
        config, *arguments = run.arguments(plan.options)
        config = ROOT / config
        if self.gpus > 1:
            program = [ROOT / 'tools/dist_train.sh', config, self.gpus]
        else:
            program = [sys.executable, ROOT / 'tools/train.py', config]
        command = [*program, '--work-dir', work_dir, '--resume', *arguments]
        return [str(part) for part in command]

    def _run(
        self, command: list[str], plan: Plan, work_dir: Path, console: Any
    ) -> tuple[int | None, dict, list[dict]]:
        """Run a training; return its exit status, this attempt and all attempts."""
        with self.lock:
            if self.stopped:
                return None, {}, []
            attempt = self._describe_attempt(plan)
            attempts = begin_attempt(work_dir, attempt)
            process = subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self._environment(self.slots[-1]),
                pass_fds=[console.fileno()],
                start_new_session=True,
            )
            slot = self.slots.pop()
            self.processes.add(process)
        code = process.wait()
        with self.lock:
            self.processes.discard(process)
            self.slots.append(slot)
        return code, attempt, attempts

    def _environment(self, slot: int) -> dict[str, str]:
        env = dict(os.environ)
        if (ROOT / 'pws_mmdet').is_dir():  # the revision that the record names
            paths = [str(ROOT), env.get('PYTHONPATH', '')]
            env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        env['OMP_NUM_THREADS'] = str(self._threads)
        env['PYTHON'] = sys.executable
        devices = self.environment['hardware']['gpus']
        if devices and self.jobs > 1 and 'CUDA_VISIBLE_DEVICES' not in env:
            first = slot * self.gpus
            chosen = [str(i % devices) for i in range(first, first + self.gpus)]
            env['CUDA_VISIBLE_DEVICES'] = ','.join(chosen)
        return env

    @property
    def _threads(self) -> int:
        """Threads of each process."""
        given = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()
        if given.isdigit():
            return int(given)
        return max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.gpus))

    def _describe_attempt(self, plan: Plan) -> dict:
        """The part of a record that says when and with what a run is trained."""
        return dict(
            date=datetime.date.today().isoformat(),
            revision=self.environment['revision'],
            versions={**self.environment['versions'], **plan.versions},
            hardware=dict(
                self.environment['hardware'],
                jobs=self.jobs,
                processes=self.gpus,
                threads=self._threads,
            ),
            data=self.data,
        )

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End the trainings that are running. They can be resumed."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signum)


def find_data(cfg: dict, data: str) -> list[tuple[str, str]]:
    """Return the options that replace the data folder of a config by ``data``."""
    strings = [
        (key, value)
        for loop in ('train', 'val', 'test')
        for part in ('dataloader', 'evaluator')
        for key, value in walk(cfg.get(f'{loop}_{part}'), f'{loop}_{part}')
        if isinstance(value, str)
    ]
    roots = [v for k, v in strings if k.endswith('.data_root') and v]
    root = cfg.get('data_root') or os.path.commonpath(roots)
    root = root.rstrip('/')
    return [
        (key, os.path.join(data, value[len(root) :].lstrip('/')))
        for key, value in strings
        if value == root or value.startswith(root + '/')
    ]


def begin_attempt(work_dir: Path, attempt: dict) -> list[dict]:
    """Note in the work_dir that an attempt begins.

    Returns:
        This attempt and those before it that the training continues, in their order.
        Attempts that left no checkpoint and equal attempts are left out.
    """
    path = work_dir / 'attempts.json'
    checkpoint = next((p.name for p in find_checkpoints(work_dir)), None)
    former = []
    if checkpoint:
        with contextlib.suppress(FileNotFoundError):
            former = json.loads(path.read_text(encoding='utf-8'))['attempts']
    if former and former[-1]['checkpoint'] == checkpoint:
        former.pop()
    former.append(dict(attempt, checkpoint=checkpoint))
    text = json.dumps(dict(attempts=former)) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))
    distinct = []
    for stamp in former:
        stamp = {k: v for k, v in stamp.items() if k != 'checkpoint'}
        if stamp not in distinct:
            distinct.append(stamp)
    return distinct
