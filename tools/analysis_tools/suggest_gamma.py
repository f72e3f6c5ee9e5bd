"""Suggest gamma for the PWS convolutions of a config.

There are three ways, from quick to thorough:

  (none of the options)  a fraction of the He variance 2 / n of each layer that is
                         proportional to the learning rate
  --record WORK_DIR      look at a training with VarianceMonitorHook
  --steps N              train N steps first, at the config's learning rate and without
                         its schedule; a few hundred steps are enough

The last two suggest a gamma with which no watched step would have moved any filter by
more than --largest-step of its norm. They show what a training does to its filters. In
a comparison with a sweep (docs/results/gamma.md), the quick way chose better.

Below the table are options for --cfg-options, for each part of the config.
"""

import argparse

from mmengine.logging import MMLogger

from pws_mmdet.analysis.gamma import LARGEST_STEP
from pws_mmdet.engine.gamma import suggest_gamma_for_config
from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path, or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        '--lr',
        type=float,
        help='largest learning rate, for the batch size of the training (default: the '
        "config's)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        '--record', metavar='WORK_DIR', help='of a training with VarianceMonitorHook'
    )
    way.add_argument(
        '--steps', type=positive(int), metavar='N', help='train this many steps first'
    )
    parser.add_argument(
        '--largest-step',
        type=float,
        default=LARGEST_STEP,
        metavar='PART',
        help=f'as a part of the norm of a filter (default: {LARGEST_STEP:g})',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='changes to the config',
    )
    args = parser.parse_args()
    MMLogger.get_instance('suggest_gamma', log_level='ERROR')
    try:
        suggestion = suggest_gamma_for_config(**vars(args))
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(suggestion)


if __name__ == '__main__':
    main()
