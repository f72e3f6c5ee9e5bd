"""Plot what VarianceMonitorHook measured: Figures 1 and 2 of the PWS paper, and more.

  1a      Var[W_o - ΔW_o] / Var[W_o] of every layer, the mean over its filters in a
          band from the minimum to the maximum: Figure 1(a)
  1b      Var_o[n E[ΔW_o]], the shift of the average gradient, of every layer:
          Figure 1(b)
  2a      min_o Var[W_o] of a layer over the training steps: Figure 2(a)
  2b      max_o 1 / sqrt(Var[W_o] + gamma) of a layer likewise: Figure 2(b)
  eq6     Var[Y] of every layer: measured, by equation (5) and by equation (6)
  layers  the shift and Var[Y] as colours, over the layers and the training steps; the
          colours end at the percentiles 1 and 99

The paper's Figure 1 shows the beginning of training. So 1a, 1b and eq6 show the mean
of the finite values at the watched steps in the first tenth of the longest training.
The band of 1a covers all these steps. Layers of several trainings go together by
their names. Values that are not finite are gaps in a line; on a logarithmic axis so are
zeros. The legend counts them. The axis of 1a, 2a or 2b is logarithmic if its values
span more than a factor of 100; the axes of the other figures always are.
"""

import argparse
import re
import sys

from pws_mmdet.analysis.plot_style import figure_path
from pws_mmdet.analysis.plots import plot_variance
from pws_mmdet.analysis.selection import FIGURES, OVER_LAYERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = 'work_dir of a training with VarianceMonitorHook'
    add('work_dirs', nargs='+', metavar='WORK_DIR', help=text)
    add('--figure', choices=FIGURES, required=True)
    text = 'figure to write, .png or .svg; may be given several times'
    options = dict(action='append', default=[], type=figure_path, metavar='FILE')
    add('-o', '--out', **options, help=text)
    text = 'CSV file to write the numbers to, - for stdout'
    add('--table', metavar='FILE', help=text)
    add('--title', help='title of the figure')
    text = "a label for each WORK_DIR (default: the folder's name)"
    add('--labels', nargs='+', metavar='LABEL', help=text)
    text = 'show only the layers in whose names one of these regular expressions is '
    text += 'found (default: all; for 2a and 2b the third layer)'
    add('--layers', nargs='+', metavar='REGEX', help=text)
    text = 'show step N, or the watched step nearest to it, in 1a, 1b or eq6'
    add('--step', type=int, metavar='N', help=text)
    args = vars(parser.parse_args())
    out, numbers = args.pop('out'), args.pop('table') or None
    if not out and not numbers:
        parser.error('nothing to write: give -o or --table')
    if args['step'] is not None and args['figure'] not in OVER_LAYERS:
        parser.error(f'--step is for {", ".join(OVER_LAYERS)}')
    table = None if numbers == '-' else numbers
    try:
        plot = plot_variance(**args)
        plot.save(out, table)
    except re.error as e:
        parser.error(f'{e.pattern!r} is no regular expression: {e}')
    except (ValueError, OSError) as e:
        parser.error(str(e))
    if numbers == '-':
        print(plot.table, end='')
    if out or table:
        written = [str(path) for path in (*out, table) if path]
        print(f'written to {", ".join(written)}', file=sys.stderr)


if __name__ == '__main__':
    main()
