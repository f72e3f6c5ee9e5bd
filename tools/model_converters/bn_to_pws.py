"""Convert the checkpoint of a network with BN for the same network with PWS.

CONFIG is that of the norm-free network. CHECKPOINT is that of a network that differs
from it only by BN layers (weights with GN or LN cannot be converted). It may be a
detector, or only its backbone, such as a classifier of torchvision or mmpretrain. If it
is a backbone, OUT is for init_cfg=dict(type='Pretrained', checkpoint=OUT). The PWS
convolutions of CONFIG need keep_mean=True. The network computes what it computed with
BN, apart from rounding. Nothing is trained, and no images are needed.
"""

import argparse

from pws_mmdet.convert import convert_checkpoint
from pws_mmdet.convert.bn_weights import BN_EPS
from pws_mmdet.utils.config import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='of the norm-free network, for MMDetection or mmpretrain')
    add('checkpoint', help='a path, torchvision://resnet50, or a URL')
    add('out', help='the checkpoint to write, such as checkpoints/x.pth')
    add(
        '--bn-eps',
        type=float,
        metavar='EPS',
        help='of the BN layers, which CHECKPOINT does not hold; YOLOX, EfficientNet '
        'and MobileNetV3 have 1e-3 (default: the one in CONFIG, if pws-norm-free '
        f'wrote it, or else {BN_EPS:g})',
    )
    add(
        '--conv-ws',
        action='store_true',
        default=None,
        help="BN in CHECKPOINT follows MMCV's ConvWS, whose filters are standardized "
        "first (default: conv_ws of the backbone's init_cfg in CONFIG)",
    )
    add('--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V')
    args = parser.parse_args()
    try:
        print(convert_checkpoint(**vars(args)))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
