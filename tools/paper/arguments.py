"""The command line of run_table.py."""

import argparse
import stat
from pathlib import Path

from grid import SCALES


def parse_args(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Parse and check the arguments of run_table.py; errors end the program."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('table', help='such as table1; a wrong name lists the tables')
    add('--scale', choices=SCALES, default='full', help='mini, cifar: small, for a CPU')
    add('--data', help='where the data set is (default: where the configs name it)')
    add(
        '--rows',
        nargs='+',
        metavar='ROW',
        help="rows, cells such as pws-b2, or patterns such as '*-b2', in this order",
    )
    add('--seeds', type=int, nargs='+', default=[0], metavar='SEED')
    add(
        '--jobs',
        type=int,
        help='number of runs at the same time (default: 1; with --slurm, all)',
    )
    add('--gpus', type=int, default=1, help='processes of each run; they share a batch')
    add('--out', type=Path, default=Path('work_dirs/tables'))
    add('--dry-run', action='store_true', help='list the runs and their states')
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--slurm', metavar='PARTITION', help='submit each run as a job to Slurm'
    )
    where.add_argument(
        '--executor', choices=['local'], help='the same jobs, on this machine'
    )
    add('--time', help='time limit of a job, as in sbatch, such as 1-12:00:00')
    args = parser.parse_args(argv)
    if (args.jobs is not None and args.jobs < 1) or args.gpus < 1:
        parser.error('--jobs and --gpus must be 1 or more')
    if args.time and not (args.slurm or args.executor):
        parser.error('--time needs --slurm PARTITION or --executor local')
    if not all(0 <= seed < 2**32 for seed in args.seeds):  # NumPy's limits
        parser.error('--seeds must be from 0 to 2**32 - 1')
    try:
        if not stat.S_ISDIR(args.out.stat().st_mode):
            parser.error(f'--out {args.out} is not a folder')
    except FileNotFoundError:
        pass
    except OSError as e:  # the path is impossible
        parser.error(f'--out: {e}')
    return args
