r"""Measure what PWS costs on a GPU, in parts that gpu.sh runs one by one.

    python benchmarks/gpu.py speed ResNet-50 --out parts/resnet.json --budget 60
    python benchmarks/gpu.py speed ResNet-50 --out parts/filters.json --training \
        --kinds plain BN GN PWS 'PWS, group norm'
    python benchmarks/gpu.py cifar PWS --data cifar10_jpeg.zip --out parts/pws.json
    python benchmarks/gpu.py pack cifar10_jpeg.zip small.zip --images 24000
    python benchmarks/gpu.py report parts/*.json --out gpu.jsonl --markdown gpu.md

``speed`` compares all kinds of layers, as ``benchmarks/speed.py`` does: in fp32 with
TF32 matrix units, in mixed precision (fp16), and in mixed precision with weights in
channels_last. For "PWS, group norm" the Triton kernel is off. Comparisons
that do not fit into the budget are listed as not measured. ``cifar`` trains a ResNet-20
with the images on the device until the budget is used.
"""

import argparse
from pathlib import Path

from gpu_cases import CASES, CIFAR_KINDS, KINDS
from gpu_images import pack
from gpu_report import make_report


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    speed = commands.add_parser('speed', help='measure a network')
    speed.add_argument('name', choices=CASES)
    speed.add_argument('--kinds', nargs='+', choices=KINDS, help='by default all')
    speed.add_argument('--training', action='store_true', help='no inference')
    cifar = commands.add_parser('cifar', help='train ResNet-20 on CIFAR-10')
    cifar.add_argument('name', choices=CIFAR_KINDS)
    cifar.add_argument('--data', type=Path, required=True, help='zip file')
    for command, seconds in ((speed, 60.0), (cifar, 100.0)):
        command.add_argument('--out', type=Path, required=True, help='JSON file')
        command.add_argument('--budget', type=float, default=seconds, help='seconds')
        command.add_argument('--toy', action='store_true', help='tiny, on a CPU')
    packing = commands.add_parser('pack', help='a part of a zip file of CIFAR-10')
    packing.add_argument('source', type=Path)
    packing.add_argument('target', type=Path)
    packing.add_argument('--images', type=int, default=24000, help='for training')
    report = commands.add_parser('report', help='put parts together')
    report.add_argument('parts', type=Path, nargs='*')
    report.add_argument('--out', type=Path, required=True, help='a line for each part')
    report.add_argument('--markdown', type=Path, required=True, help='tables')
    report.add_argument('--notes', nargs='*', default=[], metavar='KEY=VALUE')
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.command == 'speed':
        from gpu_speed import measure_speed  # imports torch; a report needs none

        measure_speed(
            args.name, args.out, args.budget, args.toy, args.kinds, not args.training
        )
    elif args.command == 'cifar':
        from gpu_cifar import train_cifar

        train_cifar(args.name, args.data, args.out, args.budget, args.toy)
    elif args.command == 'pack':
        pack(args.source, args.target, args.images)
    else:
        make_report(args.parts, args.out, args.markdown, args.notes)


if __name__ == '__main__':
    main()
