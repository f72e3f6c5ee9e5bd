"""Convert a trained PWS detector to one of plain convolutions.

OUT_DIR gets a config and a checkpoint, named as CONFIG is, for MMDetection's test
program, init_detector and DetInferencer. The detector computes the same. If MMDetection
has all its parts, pws_mmdet is not needed to load it; otherwise the first line of the
config says so.
"""

import argparse

from pws_mmdet.convert import fuse_checkpoint
from pws_mmdet.utils.config import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='of the training')
    parser.add_argument('checkpoint', help='such as work_dirs/NAME/epoch_12.pth')
    parser.add_argument('out_dir', help='a new folder for the two files')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='changes to the config, KEY=VALUE ..., such as those of the training',
    )
    args = parser.parse_args()
    try:
        config, checkpoint = fuse_checkpoint(**vars(args))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'config:     {config}\ncheckpoint: {checkpoint}')


if __name__ == '__main__':
    main()
