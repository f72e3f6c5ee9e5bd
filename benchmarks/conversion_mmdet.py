"""Convert a network of MMDetection from BN to PWS, test it, and train it on.

CONFIG is the config of the norm-free network, BN_CONFIG that of the same network with
BN, and CHECKPOINT its weights. Three networks are tested, trained shortly, and tested
again: BN, the network with BN; plain, the same with BN folded into its convolutions,
which are not standardized; PWS, the converted network. The learning rate grows for 50
steps, as in MMDetection's configs, and then stays.
"""

import argparse
import sys
from pathlib import Path

from conversion import KINDS
from conversion_run import run

from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, positive(int)
    add('config', help='config of the network with PWS')
    add('bn_config', help='config of the network with BN')
    add('checkpoint', help='weights of the network with BN')
    add('out', type=Path, help='new file, a line of JSON for each measurement')
    add('--kinds', nargs='+', choices=KINDS, default=KINDS)
    add('--seeds', nargs='+', type=int, default=[0], help='of the trainings')
    add('--epochs', type=whole, default=1, help='of each training')
    add('--lrs', nargs='+', type=positive(float), default=[1e-3, 1e-2])
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a place marked by the name of OUT (default: '
        'print the table)',
    )
    add('--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V')
    args = parser.parse_args()
    try:
        run(args, sys.argv)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
