"""Time ways to compute the filters of a ResNet-50 and their gradients.

In each round every way takes a step, in a random order. PWSConv2d makes one call of
group norm for each layer. A step ends with the gradients of the filters in all weights
that are trained. MMDetection freezes the stem and stage 1 of a pretrained ResNet.

    python benchmarks/filter_variants.py --seconds 60
"""

import argparse
import random
import statistics

import torch
from comparison import count_rounds
from filter_ways import WAYS, make_step

from pws_mmdet.utils.arguments import positive

WARMUP = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seconds', type=positive(float), default=60.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    steps = [make_step(*way) for _, *way in WAYS]
    times: list[list[float]] = [[] for _ in steps]
    for i in count_rounds(WARMUP, args.seconds):
        for k in random.Random(i).sample(range(len(steps)), len(steps)):
            seconds = steps[k]()
            if i >= WARMUP:
                times[k].append(seconds)
    print(f'{torch.get_num_threads()} threads, {len(times[0])} rounds\n')
    print('| | ms | over copies |\n|---|---|---|')
    for (name, *_), own in zip(WAYS, times, strict=True):
        ratio = statistics.median(a / b for a, b in zip(own, times[0], strict=True))
        print(f'| {name} | {1e3 * statistics.median(own):.1f} | {ratio:.2f} |')


if __name__ == '__main__':
    main()
