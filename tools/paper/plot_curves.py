"""Plot a validation metric of trainings against the epoch: Fig. 3 of the PWS paper.

A RECORD is a work_dir, a file that run_table.py wrote, or FILE:RUN, where RUN is the
name of a run or a pattern such as 'pws-b2-s*'.

Trainings with the same label, such as those of several seeds, become one line: the mean
at each epoch, in a band from the lowest to the highest value. The legend says how
trainings ended that did not finish; only records know this. A value that is NaN is a
gap.
"""

import argparse
from itertools import chain

from curves import plot, read

from pws_mmdet.analysis.plot_style import figure_path, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('records', nargs='+', metavar='RECORD', help='work_dir, FILE or FILE:RUN')
    add(
        '-o',
        '--out',
        action='append',
        required=True,
        type=figure_path,
        metavar='FILE',
        help='image to write, .png or .svg; may be given several times',
    )
    add('--metric', default='box/f_measure', help='(default: box/f_measure)')
    add('--title', help='title of the plot')
    add(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help="a label for each RECORD (default: the record's, or the folder's name)",
    )
    args = parser.parse_args()
    labels = args.labels or [None] * len(args.records)
    if len(labels) != len(args.records):
        parser.error(f'{len(args.records)} RECORDs but {len(labels)} --labels')
    try:
        trainings = list(chain.from_iterable(map(read, args.records, labels)))
        figure = plot(trainings, args.metric, args.title)
        for path in args.out:
            save_figure(figure, path)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    print(f'written to {", ".join(map(str, args.out))}')


if __name__ == '__main__':
    main()
