"""Measure how much worse a network is after its conversion from BN to PWS.

CONFIG is the config of the norm-free network, BN_CONFIG that of the same network with
BN, and CHECKPOINT its weights. The network is tested. It is converted in several ways,
and each result is tested, trained shortly at a constant learning rate, and tested
again. The network with BN is trained in the same way.

  BN              the network with BN
  mean            the mean of every filter is subtracted, nothing more
  no-data-plain   without data: BN's statistics tell what the conversion changes
  no-data         the same, after scaling the channels
  no-data-stem    the same, but the first convolution stays plain, with BN folded
  local           each layer is fitted to the outputs of its own filters
  fit-plain       each layer is fitted to the outputs of the original network
  fit             the same, after scaling the channels, as bn_to_pws.py does
  stem            the same, but the first convolution stays plain, with BN folded
  sweeps          the same, and all layers are fitted twice
"""

import argparse
import sys
from pathlib import Path

from conversion import LEVELS
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
    add('--calibrate', required=True, metavar='FOLDER_OR_CONFIG')
    add('--num-images', nargs='+', type=whole, default=[64, 256])
    add('--batch-size', type=whole, default=4, help='of the fits')
    add('--levels', nargs='+', choices=LEVELS, default=LEVELS)
    add(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='for the choice of images and for the trainings',
    )
    add('--epochs', type=whole, default=1, help='of each training')
    add('--lrs', nargs='+', type=positive(float), default=[1e-4, 1e-3])
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
