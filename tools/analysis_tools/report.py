"""Write a report of trainings: one HTML file that opens without a network.

It begins with the result of each WORK_DIR: AP or accuracy, the difference to the first
WORK_DIR, the validation curve, and images of detections if MMDetection drew some into
the WORK_DIR. Loss and learning rate follow. If VarianceMonitorHook was in the training,
the figures of plot_variance.py come next: Figures 1 and 2 of the PWS paper and its
equations (5) and (6). A slider goes through the training steps or the layers, and the
mouse shows the values. Settings come last.

Of more than 100 watched steps, 100 are shown, with the first and the last one.
"""

import argparse
import sys
from pathlib import Path

import pws_mmdet  # noqa: F401  its own errors come before that of plotly

try:
    from pws_mmdet.analysis.report import write_report
except ImportError as e:
    sys.exit(str(e))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='work_dir of a training'
    )
    parser.add_argument(
        '-o', '--out', required=True, type=Path, metavar='FILE', help='file to write'
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help="a label for each WORK_DIR (default: the folder's name)",
    )
    parser.add_argument('--title', help='(default: it names the trainings)')
    parser.add_argument(
        '--images',
        type=int,
        default=8,
        metavar='N',
        help='at most so many images for each training (default: 8)',
    )
    parser.add_argument(
        '--image-dir',
        action='append',
        dest='image_dirs',
        metavar='DIR',
        help='folder of images instead of those in the WORK_DIR; once for each',
    )
    args = parser.parse_args()
    try:
        write_report(**vars(args))
    except (ValueError, OSError) as e:
        parser.error(str(e))
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
