"""Measure how long the conversion from BN to PWS takes, and how much memory.

The networks are ResNets for CIFAR-10 with random weights, and BN that was calibrated on
the images, which are random, too: time and memory do not depend on what a network has
learned. All depths are converted with the first number of images, and the first depth
with all numbers. Each conversion runs twice, with the default arguments and with
exclude=(), which converts all layers, each in a process of its own.

The table has a row for each depth and number of images:

  seconds        of the conversion alone, after that of a tiny network
  ms each        the same, for each convolution
  CPU seconds    of all threads, which other programs on the machine change less
  MiB, of it     peak memory of the process up to the end of the conversion, and up to
  before         its beginning
  kept           convolutions that stay plain
"""

import argparse
import sys
from pathlib import Path

from conversion_time_run import run

from pws_mmdet.utils.arguments import positive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, positive(int)
    add('out', type=Path, help='new file, a line of JSON for each conversion')
    add('--depths', nargs='+', type=whole, default=[20, 56, 110], help='6 n + 2')
    add('--num-images', nargs='+', type=whole, default=[32, 16, 64, 128])
    add('--batch-size', type=whole, default=16, help='of these images')
    add('--image-size', type=whole, default=32, help='height and width in pixels')
    add('--channels', type=whole, default=16, help='of the first stage')
    add('--seed', type=int, default=0, help='of the weights and the images')
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a place marked by the name of OUT (default: '
        'print the table)',
    )
    args = parser.parse_args()
    try:
        run(args, sys.argv)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
