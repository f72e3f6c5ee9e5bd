"""Train the missing runs of one of the paper's tables.

tables.yml lists the tables. Every run is a training by tools/train.py. OUT holds its
work_dir, TABLE-SCALE/RUN, and its record, a line of JSON in TABLE-SCALE.jsonl. A run
with a result is not repeated; a divergence is a result. Interrupted and failed runs
continue from their last checkpoint. make_table.py makes the table of the records.
"""

import argparse
import os
import stat
import sys
from pathlib import Path

from grid import SCALES, Table
from runs import list_runs, run_table


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('table', help='such as table1; a wrong name lists the tables')
    add('--scale', choices=SCALES, default='full', help='mini: small, for a CPU')
    add('--data', help='folder of the data set (default: as in the configs)')
    add(
        '--rows',
        nargs='+',
        metavar='ROW',
        help="rows, cells such as pws-b2, or patterns such as '*-b2', in this order",
    )
    add('--seeds', type=int, nargs='+', default=[0], metavar='SEED')
    add('--jobs', type=int, default=1, help='number of runs at the same time')
    add('--gpus', type=int, default=1, help='processes of each run; they share a batch')
    add('--out', type=Path, default=Path('work_dirs/tables'))
    add('--dry-run', action='store_true', help='list the runs and their states')
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.gpus < 1:
        parser.error('--jobs and --gpus must be 1 or more')
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


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        table = Table(args.table, args.scale)
        runs = table.runs(args.rows, args.seeds)
        if args.dry_run:
            print(*list_runs(runs, args.out), sep='\n', flush=True)
            return 0
        failed = run_table(table, runs, args.out, args.jobs, args.gpus, args.data)
        return bool(failed)
    except BrokenPipeError:  # the reader of --dry-run stopped, as `head` does
        if not args.dry_run:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('Interrupted. The same command continues the runs.', file=sys.stderr)
        return 130
    except (OSError, ImportError, RuntimeError, ValueError) as e:  # TableError, too
        print(f'run_table.py: {e}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
