"""Train the missing runs of one of the paper's tables.

tables.yml lists the tables. Every run is a training by tools/train.py. OUT holds its
work_dir, TABLE-SCALE/RUN, and its record, a line of JSON in TABLE-SCALE.jsonl. A run
with a result is not repeated; a divergence is a result. Interrupted and failed runs
continue from their last checkpoint. make_table.py makes the table of the records.

With --slurm PARTITION each run is a job on a Slurm cluster. It starts again after a
preemption, and at the time limit. The same command follows the jobs that it finds.
"""

import os
import sys

from arguments import parse_args
from cluster import find_cluster
from grid import Table
from runs import list_runs, run_table


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv, __doc__)
    try:
        table = Table(args.table, args.scale)
        runs = table.runs(args.rows, args.seeds)
        if args.dry_run:
            print(*list_runs(runs, args.out), sep='\n', flush=True)
            return 0
        cluster = find_cluster(args.slurm, args.executor == 'local', args.time)
        options = args.jobs, args.gpus, args.data
        return bool(run_table(table, runs, args.out, *options, cluster))
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
