"""Compare PWS with plain convolutions, norm layers and other convolutions that
normalize their weights: speed and memory of training steps and of inference.

All kinds take a step in each round, in a random order, on random images. A training
step is forward, backward and SGD with momentum, at a learning rate of 0; for a detector
also preprocessing, assignment and losses, with random objects. Inference is a forward
pass, for a detector without post-processing. All networks start at random, all layers
are trained, and norm layers are in training mode. The networks of one part differ only
in convolutions and norm layers. Plain convolutions are measured twice. The difference
shows how exact the figures are.

  time        time of a step over that of plain convolutions (with biases): median over
              the rounds
  ms          time of the median step
  memory      peak of the tensors of a training step, with weights and momenta, over
              that of plain convolutions; MiB beside it
  + weights   how much the peak exceeds that of plain convolutions, over the size of
              the weights

--floors measures the standardization of all filters of a network alone, over a copy of
the same weights. --profiles measures the time of each of PyTorch's operators in a
training step with PWS, beside one with plain convolutions.

    python benchmarks/speed.py --out layers.jsonl
    python benchmarks/speed.py --read layers.jsonl --markdown docs/benchmarks/layers.md
"""

import argparse
import sys
from pathlib import Path

import torch
from comparison import FLOORS, MIN_ROUNDS, MODES
from speed_run import run

from pws_mmdet.utils.arguments import positive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, positive(int)
    add('--parts', nargs='*', help='networks (default: all)')
    add('--kinds', nargs='+', help='kinds besides plain (default: all)')
    add('--floors', nargs='*', help=f'networks to standardize alone; of {FLOORS}')
    add('--profiles', nargs='*', default=[], help='networks (default: none)')
    add('--batch-sizes', nargs='+', type=whole, default=[1, 2, 8])
    add('--image-sizes', nargs='+', type=whole, default=[320])
    add('--modes', nargs='+', choices=MODES, default=MODES, help='(default: both)')
    add(
        '--seconds',
        type=positive(float),
        default=30.0,
        help=f'for each comparison, {MIN_ROUNDS} rounds at least (default: 30)',
    )
    add('--warmup', type=whole, default=2, help='rounds (default: 2)')
    add('--threads', type=whole, help="(default: PyTorch's)")
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--amp', action='store_true', help='mixed precision; GPU only')
    add('--channels-last', action='store_true')
    add('--seed', type=int, default=0)
    add('--out', type=Path, help='new file, a line of JSON for each comparison')
    add('--read', type=Path, help='make the tables of this file, measure nothing')
    add(
        '--markdown',
        type=Path,
        help='new page, or a page with a place marked by the name of the file, or by '
        'that and --table; by default, the tables are printed',
    )
    add('--table', metavar='TITLE', help='make only this table')
    args = parser.parse_args()
    try:
        run(args, sys.argv)
    except (ValueError, OSError) as e:
        parser.error(str(e))


if __name__ == '__main__':
    main()
