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
import json
import math
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pws_mmdet import tables

ROOT = Path(__file__).resolve().parents[2]

DIVERGED = re.compile(r'Training diverged at (iteration \d+)')


class Program:
    """What the runs of one call of this program share.

    Args:
        out: Folder of the records.
        jobs: Runs at the same time.
        gpus: Processes of each run.
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

    def data_options(self, run: tables.Run) -> dict[str, str]:
        """Check the run's config and data; the options that put --data in it."""
        from mmengine.config import Config

        from pws_mmdet.engine.data_check import check_data

        with warnings.catch_warnings():  # MMEngine's use of pkg_resources, each time
            warnings.simplefilter('ignore')
            cfg = Config.fromfile(ROOT / run.config)
        options = dict(find_data(cfg, self.data)) if self.data else {}
        cfg.merge_from_dict(options)
        check_data(cfg)
        return options

    def train(self, run: tables.Run, data_options: dict[str, str]) -> dict | None:
        """Train one run to its end; its record, or None if another process does."""
        if self.stopped:
            return None
        work_dir = self.out / run.folder / run.name
        work_dir.mkdir(parents=True, exist_ok=True)
        arguments = run.arguments()
        arguments += [f'{key}={value}' for key, value in data_options.items()]
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
                slot = self.slots.pop()
                process = subprocess.Popen(
                    command,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    env=self.env(slot),
                    pass_fds=[console.fileno()],
                    start_new_session=True,
                )
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
        record = self.make_record(run, work_dir, code, log)
        tables.write_record(self.record_path(run), record)
        return record

    def env(self, slot: int) -> dict[str, str]:
        env = dict(os.environ)
        if (ROOT / 'pws_mmdet').is_dir():  # the revision that the record names
            paths = [str(ROOT), env.get('PYTHONPATH', '')]
            env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        env.setdefault('OMP_NUM_THREADS', str(self.threads))
        env['PYTHON'] = sys.executable
        devices = self.environment['hardware']['gpus']
        if devices and self.jobs > 1 and 'CUDA_VISIBLE_DEVICES' not in env:
            first = slot * self.gpus
            chosen = [str(i % devices) for i in range(first, first + self.gpus)]
            env['CUDA_VISIBLE_DEVICES'] = ','.join(chosen)
        return env

    @property
    def threads(self) -> int:
        return max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.gpus))

    def make_record(self, run: tables.Run, work_dir: Path, code: int, log: str) -> dict:
        curve, seconds = read_log(work_dir)
        diverged = DIVERGED.search(log)
        if diverged:
            outcome = f'diverged at {diverged[1]}'
        elif code == 0:
            outcome = 'finished'
        else:
            lines = [line.strip() for line in log.splitlines() if line.strip()]
            reason = lines[-1] if lines else 'no output'
            outcome = f'failed with exit status {code}: {reason[:300]}'
        options = {**run.options, 'randomness.seed': run.seed}
        hardware = dict(
            self.environment['hardware'],
            jobs=self.jobs,
            processes=self.gpus,
            threads=self.threads,
        )
        return dict(
            table=run.table,
            scale=run.scale,
            run=run.name,
            row=run.row,
            column=run.column,
            seed=run.seed,
            label=run.label,
            config=run.config,
            options=options,
            flags=list(run.flags),
            outcome=outcome,
            metrics=curve[-1] if curve and outcome == 'finished' else {},
            curve=curve,
            minutes=round(seconds / 60, 1),
            date=datetime.date.today().isoformat(),
            revision=self.environment['revision'],
            versions=self.environment['versions'],
            hardware=hardware,
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
        help="GPUs, or CPU processes, of each run; each has a batch of the config's",
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/tables'))
    parser.add_argument(
        '--dry-run', action='store_true', help='list the runs and their state'
    )
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.gpus < 1:
        parser.error('--jobs and --gpus must be 1 or more')
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
        figures = ''.join(f', {m.name} {m.of(record["metrics"]):.1f}' for m in metrics)
    return f'{record["outcome"]}{figures} ({record["minutes"]} min)'


def run_all(
    program: Program,
    data_options: dict[tables.Run, dict[str, str]],
    table: tables.Table,
) -> int:
    """Train the runs of ``data_options``; the number of those that failed."""
    missing = list(data_options)
    failed, durations = 0, []
    with ThreadPoolExecutor(program.jobs) as pool:
        futures = {
            pool.submit(program.train, run, data_options[run]): run for run in missing
        }
        for count, future in enumerate(as_completed(futures), 1):
            run, record = futures[future], future.result()
            if program.stopped:
                continue
            if record is None:
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
        list_runs(runs, args.out)
        return 0
    program = Program(args.out, args.jobs, args.gpus, args.data)
    missing = [run for run in runs if not program.is_done(run)]
    print(f'{len(runs)} runs, {len(runs) - len(missing)} of them done', flush=True)
    try:
        data_options = {run: program.data_options(run) for run in missing}
    except (FileNotFoundError, ImportError, RuntimeError) as e:
        print(f'run_table.py: {e}', file=sys.stderr)
        return 2

    def interrupt(signum, frame):
        program.stop()
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        failed = run_all(program, data_options, table)
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
