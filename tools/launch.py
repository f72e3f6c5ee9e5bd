"""Run torch.distributed.run, and show the error of a program as the last line.

When a process fails, torch prints a traceback of its own. The short message of train.py
or test.py would be lost above it.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as e:
        # run_mmdet_program wrote the message to the file that torch reads here.
        for failure in e.failures.values():
            if 'timestamp' in failure.error_file_data:
                print(failure.message, file=sys.stderr)
                sys.exit(failure.exitcode)
        raise
