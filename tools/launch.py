"""Run torch.distributed.run, and show a program's own message last.

torch prints a traceback of its own when a process ends with an error. It would hide
the one paragraph with which train.py and test.py refuse what cannot work.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as e:
        # run_mmdet_program left the message where torch collects it.
        for failure in e.failures.values():
            if 'timestamp' in failure.error_file_data:
                print(failure.message, file=sys.stderr)
                sys.exit(failure.exitcode)
        raise
