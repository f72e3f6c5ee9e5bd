"""Run what is missing of one of the paper's tables: configs/tables.yml.

Every run is a training by tools/train.py. Its work_dir and, when it has ended, its
record (JSON) lie in OUT/TABLE-SCALE/. Runs with a record are not repeated, and those
that were interrupted go on from their last checkpoint, as do those that failed; a
divergence is an outcome, not a failure.
tools/analysis_tools/make_table.py makes the table of the records.
"""

import argparse
import contextlib
import datetime
import fcntl
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shlex
import signal
import stat
import statistics
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pws_mmdet import tables

ROOT = Path(__file__).resolve().parents[2]

DIVERGED = re.compile(r'Training diverged at (iteration \d+)')
# The last line of a traceback; the launcher's own says only that a process failed
EXCEPTION = re.compile(
    r'(?!\S*ChildFailedError)\w[\w.]*(Error|Exception|Interrupt)(:|$)'
)
AFTER_EXCEPTION = re.compile(r'\s*$|Traceback |[EWI]\d{4} ')
RANK = re.compile(r'\[rank\d+\]: ?')


@dataclass(frozen=True)
class Plan:
    """What a run's config, the data and the processes say of it.

    Args:
        options: Changes to the run's own options.
        batch_size: Of all processes.
        max_epochs: Of the training.
        versions: Packages beside those of all runs.
    """

    options: dict[str, Any]
    batch_size: int
    max_epochs: int
    versions: dict[str, str]


class Program:
    """What the runs of one call of this program share.

    Args:
        out: Folder of the records.
        jobs: Runs at the same time.
        gpus: Processes of each run, which share its batch.
        data: Where the data set lies, or None for where the configs say.
    """

    def __init__(self, out: Path, jobs: int, gpus: int, data: str | None) -> None:
        self.out = out
        self.jobs = jobs
        self.gpus = gpus
        self.data = data
        self.environment = describe_environment()
        self.processes: set[subprocess.Popen] = set()
        self.slots = list(range(jobs))
        self.lock = threading.Lock()
        self.stopped = False

    def record_path(self, run: tables.Run) -> Path:
        return self.out / run.folder / f'{run.name}.json'

    def is_done(self, run: tables.Run) -> bool:
        record = tables.read_record(self.record_path(run))
        return record is not None and not record['outcome'].startswith('failed')

    def plan(self, run: tables.Run) -> Plan:
        """Check the run's config and data.

        Raises:
            FileNotFoundError: If data is missing.
            ImportError, RuntimeError: If a package is.
            ValueError: If the processes cannot share the batch.
        """
        from mmengine.config import Config

        from pws_mmdet.engine.checks.data import check_data

        with warnings.catch_warnings():  # MMEngine's use of pkg_resources, each time
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

    def train(self, run: tables.Run, plan: Plan) -> dict | None:
        """Train one run to its end; its record, or None if another process does."""
        if self.stopped:
            return None
        work_dir = self.out / run.folder / run.name
        work_dir.mkdir(parents=True, exist_ok=True)
        arguments = run.arguments(plan.options)
        arguments[0] = str(ROOT / run.config)
        if self.gpus > 1:
            program = [ROOT / 'tools/dist_train.sh', arguments[0], self.gpus]
        else:
            program = [sys.executable, ROOT / 'tools/train.py', arguments[0]]
        command = [*program, '--work-dir', work_dir, '--resume', *arguments[1:]]
        command = [str(part) for part in command]

        with open(work_dir / 'console.log', 'a', encoding='utf-8') as console:
            # The training inherits the lock, and holds it even if this program dies.
            try:
                fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            start = console.seek(0, os.SEEK_END)
            with self.lock:
                if self.stopped:
                    return None
                attempt = self.describe_attempt(plan)
                attempts = begin_attempt(work_dir, attempt)
                process = subprocess.Popen(
                    command,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    env=self.env(self.slots[-1]),
                    pass_fds=[console.fileno()],
                    start_new_session=True,
                )
                slot = self.slots.pop()
                self.processes.add(process)
            code = process.wait()
            with self.lock:
                self.processes.discard(process)
                self.slots.append(slot)
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
        record['date'] = datetime.date.today().isoformat()  # of its end
        if len(attempts) > 1:
            record['attempts'] = attempts
        tables.write_record(self.record_path(run), record)
        return record

    def env(self, slot: int) -> dict[str, str]:
        env = dict(os.environ)
        if (ROOT / 'pws_mmdet').is_dir():  # the revision that the record names
            paths = [str(ROOT), env.get('PYTHONPATH', '')]
            env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        env['OMP_NUM_THREADS'] = str(self.threads)
        env['PYTHON'] = sys.executable
        devices = self.environment['hardware']['gpus']
        if devices and self.jobs > 1 and 'CUDA_VISIBLE_DEVICES' not in env:
            first = slot * self.gpus
            chosen = [str(i % devices) for i in range(first, first + self.gpus)]
            env['CUDA_VISIBLE_DEVICES'] = ','.join(chosen)
        return env

    @property
    def threads(self) -> int:
        """Of each process."""
        given = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()
        if given.isdigit():
            return int(given)
        return max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.gpus))

    def describe_attempt(self, plan: Plan) -> dict:
        """Who trains from now on, with what: a part of the record."""
        return dict(
            date=datetime.date.today().isoformat(),
            revision=self.environment['revision'],
            versions={**self.environment['versions'], **plan.versions},
            hardware=dict(
                self.environment['hardware'],
                jobs=self.jobs,
                processes=self.gpus,
                threads=self.threads,
            ),
            data=self.data,
        )

    def stop(self) -> None:
        """End the trainings that are under way; they can be resumed."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)


def find_data(cfg: dict, data: str) -> list[tuple[str, str]]:
    """The options that put ``data`` in the place of a config's data folder."""

    def walk(value, key):
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, f'{key}.{name}')
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                yield from walk(item, f'{key}.{i}')
        elif isinstance(value, str):
            yield key, value

    strings = [
        item
        for loop in ('train', 'val', 'test')
        for part in ('dataloader', 'evaluator')
        for item in walk(cfg.get(f'{loop}_{part}', {}), f'{loop}_{part}')
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
    """Note who trains a run from here on.

    Returns:
        What differs among the attempts that the training goes on from and this one,
        in their order. Attempts that left no checkpoint are not among them.
    """
    from pws_mmdet.engine.hooks.checkpoint import find_checkpoints

    path = work_dir / 'attempts.json'
    checkpoint = next((p.name for p in find_checkpoints(work_dir)), None)
    former = []
    if checkpoint:
        with contextlib.suppress(FileNotFoundError):
            former = json.loads(path.read_text(encoding='utf-8'))['attempts']
    if former and former[-1]['checkpoint'] == checkpoint:
        former.pop()
    former.append(dict(attempt, checkpoint=checkpoint))
    tables.write_record(path, dict(attempts=former))
    distinct = []
    for stamp in former:
        stamp = {k: v for k, v in stamp.items() if k != 'checkpoint'}
        if stamp not in distinct:
            distinct.append(stamp)
    return distinct


def read_outcome(
    work_dir: Path, code: int, log: str, max_epochs: int
) -> tuple[str, list[dict], float]:
    """How a training ended, and what :func:`read_log` returns.

    Args:
        work_dir: Of the training.
        code: Exit status.
        log: All that it printed.
        max_epochs: The epoch whose validation is the result.
    """
    curve, seconds = read_log(work_dir)
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
    """The last exception of a log with its message, else the last line."""
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


def read_log(work_dir: Path) -> tuple[list[dict], float]:
    """The validations that a training logged, and the seconds that it ran.

    Returns:
        The metrics of each validated epoch with the epoch and the training step,
        and the running time summed over all attempts.
    """
    curve: dict[int, dict] = {}
    seconds, step = 0.0, 0
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        started = datetime.datetime.strptime(path.parts[-3], '%Y%m%d_%H%M%S')
        seconds += max(0.0, path.stat().st_mtime - started.timestamp())
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # cut off in the middle of a line
                continue
            if 'lr' in values:
                step = values['step']
            else:
                epoch = values.pop('step')
                for key in ('time', 'data_time'):
                    values.pop(key, None)
                curve[epoch] = dict(epoch=epoch, step=step, **values)
    return [curve[epoch] for epoch in sorted(curve)], seconds


def describe_environment() -> dict:
    """Revision, versions and hardware, as the records name them."""
    import mmcv
    import mmdet
    import mmengine
    import torch

    import pws_mmdet

    modules = (pws_mmdet, torch, mmengine, mmcv, mmdet)
    versions = {module.__name__: module.__version__ for module in modules}
    versions['python'] = platform.python_version()
    gpus = torch.cuda.device_count()
    gpu = torch.cuda.get_device_name() if gpus else None
    hardware = dict(cpu=cpu_model(), cores=len(os.sched_getaffinity(0)))
    return dict(
        revision=tables.revision(ROOT),
        versions=versions,
        hardware=dict(hardware, gpu=gpu, gpus=gpus),
    )


def installed(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed; none is imported."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('table', help='such as table1; a wrong name lists them')
    parser.add_argument(
        '--scale',
        choices=tables.SCALES,
        default='full',
        help="full: the paper's data and networks; mini: small ones, for a CPU",
    )
    parser.add_argument('--data', help="folder of the data set, if not the configs'")
    parser.add_argument(
        '--rows',
        nargs='+',
        metavar='ROW',
        help="rows, cells such as pws-b2, or patterns such as '*-b2'; runs follow "
        'their order',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], metavar='SEED')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time')
    parser.add_argument(
        '--gpus',
        type=int,
        default=1,
        help='GPUs, or CPU processes, of each run, which share its batch: each has a '
        'part of it, the same for all',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/tables'))
    parser.add_argument(
        '--dry-run', action='store_true', help='list the runs and their state'
    )
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.gpus < 1:
        parser.error('--jobs and --gpus must be 1 or more')
    if not all(0 <= seed < 2**32 for seed in args.seeds):
        parser.error('--seeds must be from 0 to 2**32 - 1')  # NumPy's
    try:
        if not stat.S_ISDIR(args.out.stat().st_mode):
            parser.error(f'--out {args.out} is no folder')
    except FileNotFoundError:
        pass
    except OSError as e:  # nor can it be one
        parser.error(f'--out: {e}')
    return args


def list_runs(runs: list[tables.Run], out: Path) -> None:
    """One line a run: the arguments of tools/train.py, and how far it is."""
    for run in runs:
        record = tables.read_record(out / run.folder / f'{run.name}.json')
        started = (out / run.folder / run.name).is_dir()
        state = record['outcome'] if record else 'begun' if started else 'missing'
        print(f'{shlex.join(run.arguments())}  # {run.name}: {state}')


def describe(record: dict, metrics: list[tables.Metric]) -> str:
    figures = ''
    if record['outcome'] == 'finished':
        values = {m.name: m.of(record['metrics']) for m in metrics}
        figures = ''.join(
            f', {name} ' + (f'{value:.1f}' if math.isfinite(value) else 'NaN')
            for name, value in values.items()
        )
    return f'{record["outcome"]}{figures} ({record["minutes"]} min)'


def run_all(
    program: Program, plans: Mapping[tables.Run, Plan], table: tables.Table
) -> int:
    """Train the runs of ``plans``; the number of those that failed."""
    missing = list(plans)
    failed, durations = 0, []
    with ThreadPoolExecutor(program.jobs) as pool:
        futures = {
            pool.submit(program.train, run, plan): run for run, plan in plans.items()
        }
        for count, future in enumerate(as_completed(futures), 1):
            run, error = futures[future], future.exception()
            if program.stopped:
                continue
            record = None if error else future.result()
            if error:  # of this program, such as a full disk
                failed += 1
                result = f'failed: {type(error).__name__}: {error}'
            elif record is None:
                result = 'is being trained by another process'
            else:
                failed += record['outcome'].startswith('failed')
                durations.append(record['minutes'])
                result = describe(record, table.metrics)
            left = len(missing) - count
            line = f'[{count}/{len(missing)}] {run.folder} {run.name}: {result}'
            if left and durations:
                rounds = math.ceil(left / program.jobs)
                about = rounds * statistics.median(durations)
                line += f'; {left} left, about {about:.0f} min'
            print(line, flush=True)
    return failed


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        table = tables.Table(args.table, args.scale, ROOT / 'configs/tables.yml')
        runs = table.runs(args.rows, args.seeds)
    except tables.TableError as e:
        print(f'run_table.py: {e}', file=sys.stderr)
        return 2
    if args.dry_run:
        try:
            list_runs(runs, args.out)
            sys.stdout.flush()
        except BrokenPipeError:  # | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    program = Program(args.out, args.jobs, args.gpus, args.data)
    missing = [run for run in runs if not program.is_done(run)]
    print(f'{len(runs)} runs, {len(runs) - len(missing)} of them done', flush=True)
    try:
        plans = {run: program.plan(run) for run in missing}
    except (FileNotFoundError, ImportError, RuntimeError, ValueError) as e:
        print(f'run_table.py: {e}', file=sys.stderr)
        return 2

    def interrupt(signum, frame):
        program.stop()
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        failed = run_all(program, plans, table)
    except KeyboardInterrupt:
        print('Interrupted: the same command goes on from here.', file=sys.stderr)
        return 130
    if failed:
        print(
            f'{failed} runs failed; their console.log says why, and the same command '
            'tries them again.',
            file=sys.stderr,
        )
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
