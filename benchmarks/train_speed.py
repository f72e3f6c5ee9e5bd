"""Compare configs by the speed and memory of their training steps, on one device.

A step is preprocessing, forward, backward and optimizer step, as the config sets them,
on random images with random objects. It needs no data set, and does not load data. The
configs take a step in each round, in a random order, so that other work on the machine
affects all of them alike. Name a config twice to see how exact the figures are.

  images/s    of the median step
  ratio       images/s over those of the first config: median over the rounds
  peak MiB    the most memory of tensors while this config trains: its weights, buffers
              and optimizer state, and what a step adds. The other configs do not
              count, and neither does memory that PyTorch's allocators do not see or
              keep in reserve, such as the CUDA context and cached blocks.

--watched measures every config a second time, with VarianceMonitorHook recording each
step; its default is one of 50. With --inference, a step is the forward pass of a test,
without post-processing, with fused PWS convolutions as in tools/test.py.

The weights are random: nothing pretrained is loaded. The learning rate is 0, so every
step has the same work.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from config_speed import format_table, prepare, run

from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions

MOST_THREADS = 16 * (os.cpu_count() or 1)  # PyTorch crashes with some 10,000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, whole = parser.add_argument, positive(int)
    add('configs', nargs='+', metavar='CONFIG')
    add('--batch-size', type=whole, help="images in a step (default: the config's)")
    add('--steps', type=whole, default=30, help='measured steps (default: 30)')
    add('--warmup', type=whole, default=5, help='steps before them (default: 5)')
    add('--num-boxes', type=whole, default=7, help='objects in an image (default: 7)')
    add('--threads', type=whole, help="threads on the CPU (default: PyTorch's)")
    help_text = "height and width in pixels (default: those of the config's Resize)"
    add('--image-size', type=whole, nargs=2, metavar=('H', 'W'), help=help_text)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--device', default=device, help='cpu, cuda or cuda:N (default: %(default)s)')
    add('--amp', action='store_true', help='train in mixed precision; GPU only')
    add('--seed', type=int, default=0, help='of weights and images (default: 0)')
    what = parser.add_mutually_exclusive_group().add_argument
    what('--inference', action='store_true', help='compare forward passes of a test')
    what('--watched', action='store_true', help='also with VarianceMonitorHook')
    options = dict(nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE')
    add('--cfg-options', **options, help='settings to change in all configs')
    add('--out', type=Path, metavar='FILE', help='add a line of JSON to this file')
    args = parser.parse_args()
    if args.threads is not None and args.threads > MOST_THREADS:
        parser.error(f'--threads must be at most {MOST_THREADS} on this machine')
    try:
        detectors = prepare(args)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    rows = run(args, detectors, sys.argv)
    print()
    print(format_table(rows))
    if all(row['error'] for row in rows):
        sys.exit(1)


if __name__ == '__main__':
    main()
