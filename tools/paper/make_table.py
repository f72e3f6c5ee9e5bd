"""Make one of the paper's tables from the records of its runs.

The paper's figure stands beside each measured one. That is the mean over the seeds, ±
their standard deviation if there are several. run_table.py writes the records.
"""

import argparse
import sys
from pathlib import Path

from grid import SCALES, Table
from page import write_table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('table', help='such as table1; a wrong name lists the tables')
    add('--scale', choices=SCALES, default='full')
    add(
        '--records',
        type=Path,
        default=Path('work_dirs/tables'),
        help='folder that run_table.py wrote to',
    )
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a marked place (default: print the table)',
    )
    add('--csv', type=Path, help='file for the same cells')
    args = parser.parse_args(argv)
    try:
        table = Table(args.table, args.scale)
        page = write_table(table, args.records, args.markdown, args.csv)
    except (OSError, ValueError) as e:
        print(f'make_table.py: {e}', file=sys.stderr)
        return 2
    if not args.markdown:
        print(page, end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
