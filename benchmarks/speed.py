"""Compare PWS with plain convolutions, norm layers and other convolutions that
normalize their weights: speed and memory of training steps and of inference.

All kinds take a step in each round, in an order that is drawn anew, on random images.
A training step is forward, backward and SGD with momentum, at a learning rate of 0; of
a detector also preprocessing, assignment and losses, with random objects. Inference is
a forward pass in inference mode, of a detector without post-processing. All networks
start at random and train whole, with norm layers in training mode; those of one part
differ in nothing but convolutions and norm layers; the regions of interest are as many
in all. Plain convolutions are there twice, to see how far apart equal ones come out.

  time        seconds of a step over those of plain convolutions (with biases): median
              over the rounds
  ms          of the median step
  memory      peak of the tensors of a training step, weights and momenta included,
              over that of plain convolutions; MiB beside it
  + weights   what the peak exceeds that of plain convolutions by, over the bytes of
              the weights

--floors measures the standardization of all filters of a network alone, over a copy of
the same weights: what has to be read and written once. --profiles says in which of
PyTorch's operators a training step with PWS spends its time, beside one with plain
convolutions.

    python benchmarks/speed.py --out speed.json
    python benchmarks/speed.py --read speed.json --markdown docs/benchmarks.md
"""

import argparse
import copy
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from detector import Detector
from device import check_device, describe_machine
from mmcv.cnn import ConvModule
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from timing import Contender, take_turns
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import pws_mmdet
from pws_mmdet.layers import ReparamConv2d
from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import drop_pretrained, type_name, walk
from pws_mmdet.utils.files import put_in_page, write_whole

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
MIN_ROUNDS = 5
NUM_BOXES = 7  # objects in a image, as in COCO
NO_NORM = dict(type='NoNorm')
MODES = ['training', 'inference']


def with_bias(name: str, conv: type[nn.Conv2d]) -> dict:
    """Register a convolution that has its bias also where blocks pass none."""

    def make(*args, bias: bool = True, **kwargs) -> nn.Conv2d:
        return conv(*args, **kwargs)

    MODELS.register_module(name=name, module=make, force=True)
    return dict(type=name)


class Kind(NamedTuple):
    """A way to build a network.

    Args:
        conv_cfg: Its convolutions.
        norm_cfg: Its norm layers.
        predictors: conv_cfg of the predictors of SSD.
        fuse: PWS convolutions become plain ones; at inference only.
        share: Heads of several levels compute their filters once.
    """

    conv_cfg: dict
    norm_cfg: dict = NO_NORM
    predictors: dict | None = None
    fuse: bool = False
    share: bool = True


def make_kinds() -> dict[str, Kind]:
    plain = dict(type='BiasConv2d')
    pws = dict(type='PWS', gamma=1e-3)
    kinds = {
        'plain': Kind(plain),
        'plain, again': Kind(plain),
        'PWS': Kind(pws, predictors=pws),
        'PWS, not shared': Kind(pws, predictors=pws, share=False),
        'PWS, fused': Kind(pws, predictors=pws, fuse=True),
        'BN': Kind(dict(type='Conv2d'), dict(type='BN')),
        'GN': Kind(dict(type='Conv2d'), dict(type='GN', num_groups=32)),
        'IN': Kind(dict(type='Conv2d'), dict(type='AnySizeIN')),
        'SN': Kind(dict(type='Conv2d'), dict(type='SN')),
        'WN': Kind(dict(type='WN')),
        'ConvWS': Kind(with_bias('BiasConvWS', MODELS.get('ConvWS'))),
        'ConvWS and GN': Kind(dict(type='ConvWS'), dict(type='GN', num_groups=32)),
    }
    try:
        from timm.layers import ScaledStdConv2d
    except (ImportError, RuntimeError):  # a torchvision for another torch
        pass
    else:
        kinds['ScaledStdConv2d'] = Kind(with_bias('BiasScaledStd', ScaledStdConv2d))
    return kinds


class Network(Contender):
    """Layers or a backbone, with SGD.

    Args:
        name: Kind of the network.
        make: Makes it.
        image_size: Height and width of the images in pixels.
        input_shape: Of the network's input (N, C, H', W').
        inference: Measure forward passes only.
        fuse: Make PWS convolutions plain.
        input_grad: The input has a gradient, as inside of a network.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        image_size: tuple[int, int],
        input_shape: tuple[int, int, int, int],
        inference: bool,
        fuse: bool,
        input_grad: bool,
    ) -> None:
        super().__init__(name, input_shape[0], image_size)
        self.make = make
        self.input_shape = input_shape
        self.inference = inference
        self.fuse = fuse
        self.input_grad = input_grad

    def build(
        self,
        device: torch.device,
        num_boxes: int,
        amp: bool,
        seed: int,
        memory_format: torch.memory_format,
    ) -> None:
        set_random_seed(seed)
        self.device = device
        self.amp = amp
        self.model = self.make()
        if self.fuse:
            pws_mmdet.fuse_pws(self.model, inplace=True)
        self.model.to(device, memory_format=memory_format).train(not self.inference)
        x = torch.rand(self.input_shape).to(device, memory_format=memory_format)
        self.x = x.requires_grad_(self.input_grad and not self.inference)
        if not self.inference:
            parameters = self.model.parameters()
            self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def forward(self) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            outs = self.model(self.x)
        return [outs] if isinstance(outs, Tensor) else list(outs)

    def run(self) -> float:
        if self.inference:
            with torch.inference_mode():
                self.forward()
            return 0.0
        outs = self.forward()
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        return 0.0


class Part:
    """A network that all kinds are compared in."""

    kinds: tuple[str, ...] | None = None  # None: those that the part can tell apart

    def make(
        self, name: str, kind: Kind, batch_size: int, size: int, inference: bool
    ) -> Contender:
        """A contender of this kind.

        Args:
            name: Of the kind.
            kind: It.
            batch_size: Number of images.
            size: Height and width of the images in pixels.
            inference: It takes no training steps.
        """
        raise NotImplementedError


class LayerPart(Part):
    """A convolution with its norm layer and ReLU, as in the middle of a network."""

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride  # of its map

    def make(self, name, kind, batch_size, size, inference):
        def make():
            return ConvModule(
                self.channels,
                self.channels,
                self.kernel_size,
                padding=self.kernel_size // 2,
                conv_cfg=kind.conv_cfg,
                norm_cfg=kind.norm_cfg,
            )

        side = size // self.stride
        shape = (batch_size, self.channels, side, side)
        return Network(
            name, make, (size, size), shape, inference, kind.fuse, input_grad=True
        )


class BackbonePart(Part):
    """A backbone; the stem's norm is that of all the others."""

    def __init__(self, **cfg) -> None:
        self.cfg = cfg

    def make(self, name, kind, batch_size, size, inference):
        def make():
            cfg = dict(self.cfg, conv_cfg=kind.conv_cfg, norm_cfg=kind.norm_cfg)
            model = MODELS.build(drop_pretrained(cfg))
            model.init_weights()
            return model

        shape = (batch_size, 3, size, size)
        return Network(
            name, make, (size, size), shape, inference, kind.fuse, input_grad=False
        )


class DetectorPart(Part):
    """A shipped config's detector, all of it trained.

    Args:
        config: Path of the config, which names PWS wherever it can.
        kinds: The kinds to compare; None for all.
    """

    def __init__(self, config: str, kinds: tuple[str, ...] | None = None) -> None:
        self.config = config
        self.kinds = kinds

    def make(self, name, kind, batch_size, size, inference):
        cfg = Config.fromfile(ROOT / self.config)
        for _, part in walk(cfg.model):
            if not isinstance(part, dict) or 'conv_cfg' not in part:
                continue
            predicts = type_name(part) == 'PWSSSDHead'
            part.conv_cfg = copy.deepcopy(
                kind.predictors if predicts else kind.conv_cfg
            )
            if not predicts:
                part.norm_cfg = copy.deepcopy(kind.norm_cfg)
        backbone = cfg.model.backbone
        if 'stem_norm_cfg' in backbone:
            backbone.update(stem_norm_cfg=None, frozen_stages=-1, norm_eval=False)
        if 'roi_head' in cfg.model:
            take_as_many_regions(cfg.model)
        return Detector(
            name, cfg, batch_size, (size, size), inference, kind.fuse, kind.share
        )


def take_as_many_regions(model: ConfigDict) -> None:
    """Let the work of a two-stage detector not depend on what its weights propose.

    All proposals of a image remain, and those that match an object are the object's
    own box only.
    """
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.nms.iou_threshold = 1.0
    for name in ('bbox', 'mask'):  # else large regions are sampled more often
        model.roi_head[f'{name}_roi_extractor'].roi_layer.sampling_ratio = 2
    model.train_cfg.rcnn.assigner.update(
        pos_iou_thr=0.999, neg_iou_thr=0.999, min_pos_iou=0.999
    )


PARTS: dict[str, Part] = {
    'conv 3x3, 64 channels, H/4': LayerPart(64, 3, 4),
    'conv 3x3, 512 channels, H/16': LayerPart(512, 3, 16),
    'conv 1x1, 1024 channels, H/16': LayerPart(1024, 1, 16),
    'ResNet-50': BackbonePart(
        type='PWSResNet', depth=50, stem_norm_cfg=None, norm_eval=False
    ),
    'VGG-16-SSD320': DetectorPart('configs/ssd320_vgg16_pws_1x.py'),
    'Mask R-CNN R-50-FPN': DetectorPart('configs/mask_rcnn_r50_fpn_pws_1x.py'),
    'RetinaNet R-50-FPN': DetectorPart(
        'configs/retinanet_r50_fpn_pws_1x.py',
        kinds=('plain', 'plain, again', 'PWS', 'PWS, not shared', 'PWS, fused'),
    ),
}
FLOORS = ('ResNet-50', 'VGG-16-SSD320')
PROFILED = ('plain', 'PWS')
LEAST_SHARE = 0.002  # of a step, for an operator to have a row of its own


def count_rounds(warmup: int, seconds: float) -> Iterator[int]:
    """Yield the numbers of rounds, until the time is over and they are enough."""
    end = math.inf
    i = 0
    while i < warmup + MIN_ROUNDS or perf_counter() < end:
        if i == warmup:
            end = perf_counter() + seconds
        yield i
        i += 1


def compare(
    part: str,
    contenders: list[Contender],
    inference: bool,
    warmup: int,
    seconds: float,
    *args,
) -> list[dict[str, Any]]:
    """Let contenders take their steps; return a row for each.

    Args:
        part: Its name.
        contenders: All with the same batch; ratios are to the first.
        inference: They take no training steps.
        warmup: Number of rounds that do not count.
        seconds: How long to measure; at least MIN_ROUNDS rounds.
        *args: As of ``build``.
    """
    for contender in contenders:
        contender.attempt(contender.build, *args)
    for _ in take_turns(contenders, count_rounds(warmup, seconds), warmup):
        pass
    first = contenders[0]
    rows = []
    for contender in contenders:
        if not inference:
            contender.peak_memory = contender.attempt(contender.measure_memory)
        row = dict(
            part=part,
            kind=contender.name,
            inference=inference,
            batch_size=contender.batch_size,
            image_size=contender.image_size[0],
            error=contender.error,
        )
        if contender.error is None:
            row.update(
                rounds=len(contender.seconds),
                ms=1e3 * statistics.median(contender.seconds),
                weights_mib=sum(p.nbytes for p in contender.model.parameters()) / MIB,
            )
            if not inference:
                row['peak_mib'] = contender.peak_memory / MIB
            if first.error is None:
                row['time'] = 1 / contender.ratio(first)
        rows.append(row)
    return rows


def measure_floor(part: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Standardize all filters of a network, and copy them, in turn.

    Returns:
        Bytes of the filters, seconds of both, and the median of their ratios.
    """
    contender = PARTS[part].make('', make_kinds()['PWS'], 1, 320, True)
    contender.fuse = False
    contender.build(device, 1, False, 0, torch.contiguous_format)
    convs = [m for m in contender.model.modules() if isinstance(m, ReparamConv2d)]

    def standardize() -> list[Tensor]:
        return [conv.effective_weight() for conv in convs]

    def duplicate() -> list[Tensor]:
        return [torch.empty_like(conv.weight).copy_(conv.weight) for conv in convs]

    def clock(function: Callable) -> float:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        start = perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return perf_counter() - start

    times = []
    with torch.inference_mode():
        for i in count_rounds(3, seconds):
            pair = clock(standardize), clock(duplicate)
            if i >= 3:
                times.append(pair)
    own, floor = map(statistics.median, zip(*times, strict=True))
    weights = sum(conv.weight.nbytes for conv in convs)
    return dict(
        part=part,
        layers=len(convs),
        weights_mib=weights / MIB,
        rounds=len(times),
        ms=1e3 * own,
        copy_ms=1e3 * floor,
        copy_gb_per_second=2 * weights / floor / 1e9,  # read and written
        time=statistics.median(a / b for a, b in times),
    )


def measure_profile(
    part: str, batch_size: int, size: int, warmup: int, seconds: float, *args
) -> dict[str, Any]:
    """Profile training steps with plain convolutions and with PWS, in turn.

    Args:
        part: Its name.
        batch_size: Number of images.
        size: Height and width of the images in pixels.
        warmup, seconds, *args: As of ``compare``.

    Returns:
        Milliseconds of a median step in each operator itself, without those that it
        calls, of both; operators that differ by less than LEAST_SHARE of a step are
        summed.
    """
    contenders = [
        PARTS[part].make(kind, make_kinds()[kind], batch_size, size, False)
        for kind in PROFILED
    ]
    for contender in contenders:
        contender.build(*args)
    on_gpu = contenders[0].device.type == 'cuda'
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    times: list[dict[str, list[float]]] = [{}, {}]
    rounds = 0
    for i in count_rounds(warmup, seconds):
        for contender, own in zip(contenders, times, strict=True):
            with profile(activities=[activity]) as profiler:
                contender.step()
            for event in profiler.key_averages() if i >= warmup else ():
                spent = (
                    event.self_device_time_total
                    if on_gpu
                    else event.self_cpu_time_total
                )
                own.setdefault(event.key, []).append(spent / 1e3)
        rounds += i >= warmup
    medians = [
        {key: statistics.median(values) for key, values in own.items()} for own in times
    ]
    totals = [sum(own.values()) for own in medians]
    keys = sorted(
        {*medians[0], *medians[1]},
        key=lambda key: medians[0].get(key, 0.0) - medians[1].get(key, 0.0),
    )
    rows = []
    for key in keys:
        pair = [own.get(key, 0.0) for own in medians]
        if abs(pair[1] - pair[0]) >= LEAST_SHARE * totals[0]:
            rows.append(dict(operator=key, ms=pair))
    others = [
        total - sum(row['ms'][i] for row in rows) for i, total in enumerate(totals)
    ]
    rows.append(dict(operator='all others', ms=others))
    return dict(
        part=part,
        batch_size=batch_size,
        image_size=size,
        rounds=rounds,
        ms=totals,
        operators=rows,
    )


def to_markdown(report: dict[str, Any]) -> str:
    """The tables of one run, and what it was."""
    blocks = []
    rows = report['results']
    for part, inference in dict.fromkeys((r['part'], r['inference']) for r in rows):
        chosen = [r for r in rows if r['part'] == part and r['inference'] == inference]
        what = 'inference' if inference else 'training step'
        blocks.append(
            f'**{part}, {what}: time over that of plain convolutions**\n\n'
            + format_cells(chosen, 'time', 'ms')
        )
        if not inference and not isinstance(PARTS[part], LayerPart):
            blocks.append(
                f'**{part}, {what}: peak memory over that of plain convolutions** '
                '(in parentheses what it is above, in sizes of the weights)\n\n'
                + format_cells(chosen, 'memory', 'MiB')
            )
    if report['floors']:
        lines = ['| | layers | MiB | standardize, ms | copy, ms | copy, GB/s | ratio |']
        lines += ['|---|---|---|---|---|---|---|']
        lines += [
            f'| {f["part"]} | {f["layers"]} | {f["weights_mib"]:.1f} '
            f'| {f["ms"]:.2f} | {f["copy_ms"]:.2f} | {f["copy_gb_per_second"]:.1f} '
            f'| {f["time"]:.2f} |'
            for f in report['floors']
        ]
        blocks.append(
            '**Standardizing all filters once, over copying them once**\n\n'
            + '\n'.join(lines)
            + '\n'
        )
    profiles = report.get('profiles', [])
    for p in profiles:
        lines = [f'| | {" | ".join(PROFILED)} | difference |', '|---|---|---|---|']
        for row in [*p['operators'], dict(operator='whole step', ms=p['ms'])]:
            plain, pws = row['ms']
            name = row['operator'].replace('|', r'\|')
            lines.append(f'| {name} | {plain:.1f} | {pws:.1f} | {pws - plain:+.1f} |')
        blocks.append(
            f'**{p["part"]}, training step, {p["batch_size"]} x {p["image_size"]}²: ms '
            'in each operator**\n\n' + '\n'.join(lines) + '\n'
        )
    measured = [*rows, *report['floors'], *profiles]
    rounds = min((r['rounds'] for r in measured if 'rounds' in r), default=0)
    threads = report['threads']
    threads = f'{threads} thread' + 's' * (threads > 1)
    hardware = report['gpu'] or f'{report["cpu"]}, {threads}'
    versions = ', '.join(f'{k} {v}' for k, v in report['versions'].items())
    switches = [name for name in ('amp', 'channels_last') if report[name]]
    notes = [
        f'`{report["command"]}`',
        f'{", ".join([hardware, *switches])}; seed {report["seed"]}; '
        f'{report["date"][:10]}; {rounds} rounds or more.',
        f'Versions: {versions}.',
    ]
    blocks.append('\n'.join(f'* {note}' for note in notes) + '\n')
    return '\n'.join(blocks)


def format_cells(rows: list[dict[str, Any]], what: str, unit: str) -> str:
    """A table of kinds by batches and sizes."""
    columns = list(dict.fromkeys((r['batch_size'], r['image_size']) for r in rows))
    cells = {(r['kind'], r['batch_size'], r['image_size']): r for r in rows}
    kinds = list(dict.fromkeys(r['kind'] for r in rows))
    head = ' | '.join(f'{batch} x {size}²' for batch, size in columns)
    lines = [f'| | {head} |', '|---' * (len(columns) + 1) + '|']
    for kind in kinds:
        texts = []
        for column in columns:
            first, row = cells[(kinds[0], *column)], cells[(kind, *column)]
            if row['error']:
                texts.append(row['error'].partition(':')[0])
            elif kind == kinds[0]:
                texts.append(
                    f'{row["ms" if what == "time" else "peak_mib"]:.0f} {unit}'
                )
            elif first['error']:
                texts.append('')
            elif what == 'time':
                texts.append(f'{row["time"]:.3f}')
            else:
                above = row['peak_mib'] - first['peak_mib']
                texts.append(
                    f'{row["peak_mib"] / first["peak_mib"]:.3f} '
                    f'({above / first["weights_mib"]:+.1f})'
                )
        lines.append(f'| {kind} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n'


def choose(names: list[str] | None, known: list[str], option: str) -> list[str]:
    """Those that are named, in the order of those that are known; None for all.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ValueError(f'{option} has no {unknown[0]!r}; there are: {known}')
    return [name for name in known if names is None or name in names]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = positive(int)
    parser.add_argument('--parts', nargs='*', help='networks (default: all)')
    parser.add_argument('--kinds', nargs='+', help='besides plain (default: all)')
    parser.add_argument(
        '--floors', nargs='*', help=f'networks to standardize alone; of {FLOORS}'
    )
    parser.add_argument(
        '--profiles', nargs='*', default=[], help='networks to profile (default: none)'
    )
    parser.add_argument('--batch-sizes', nargs='+', type=whole, default=[1, 2, 8])
    parser.add_argument('--image-sizes', nargs='+', type=whole, default=[320])
    parser.add_argument(
        '--modes', nargs='+', choices=MODES, default=MODES, help='(default: both)'
    )
    parser.add_argument(
        '--seconds',
        type=positive(float),
        default=30.0,
        help='how long to measure each part, batch and size, with at least '
        f'{MIN_ROUNDS} rounds (default: 30)',
    )
    parser.add_argument('--warmup', type=whole, default=2, help='rounds (default: 2)')
    parser.add_argument('--threads', type=whole, help="(default: PyTorch's)")
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision; GPU only')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument(
        '--read', type=Path, help='tables of a JSON file, and no measurement'
    )
    parser.add_argument(
        '--markdown',
        type=Path,
        help='new page, or one with a place marked by the name of the JSON file; else '
        'tables are printed',
    )
    return parser


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    kinds = make_kinds()
    wanted = choose(args.kinds, list(kinds), '--kinds')
    wanted = list(dict.fromkeys(['plain', *wanted]))
    parts = choose(args.parts, list(PARTS), '--parts')
    floors = choose(args.floors, list(FLOORS), '--floors')
    profiles = choose(args.profiles, list(PARTS), '--profiles')
    report = dict(
        command=shlex.join(['python', *sys.argv]),
        **describe_machine(device),
        amp=args.amp,
        channels_last=args.channels_last,
        seed=args.seed,
        warmup=args.warmup,
        seconds=args.seconds,
        results=[],
        floors=[],
        profiles=[],
    )
    memory_format = (
        torch.channels_last if args.channels_last else torch.contiguous_format
    )
    build_args = (device, NUM_BOXES, args.amp, args.seed, memory_format)
    for name in parts:
        part = PARTS[name]
        for mode, size, batch in product(
            args.modes, args.image_sizes, args.batch_sizes
        ):
            inference = mode == 'inference'
            contenders = [
                part.make(kind, kinds[kind], batch, size, inference)
                for kind in wanted
                if kind in (part.kinds or wanted)
                and (inference or not kinds[kind].fuse)
                and (kinds[kind].share or part.kinds)
            ]
            rows = compare(
                name, contenders, inference, args.warmup, args.seconds, *build_args
            )
            report['results'] += rows
            times = ', '.join(
                f'{r["kind"]} {r.get("time", math.nan):.3f}' for r in rows
            )
            print(f'{name}, {mode}, {batch} x {size}: {times}', file=sys.stderr)
            save(report, args.out)
    for name in floors:
        report['floors'].append(measure_floor(name, device, args.seconds))
    for name in profiles:
        for size, batch in product(args.image_sizes, args.batch_sizes):
            row = measure_profile(
                name, batch, size, args.warmup, args.seconds, *build_args
            )
            report['profiles'].append(row)
    save(report, args.out)
    return report


def read_report(path: Path) -> dict[str, Any]:
    """Read what a run wrote.

    Raises:
        ValueError: If something else is in the file.
    """
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
        to_markdown(report)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f'{path} is no file of this program: {e!r}') from e
    return report


def shorten_numbers(value: Any) -> Any:
    """Five digits are more than anything here is worth."""
    if isinstance(value, dict):
        return {key: shorten_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shorten_numbers(part) for part in value]
    return float(f'{value:.5g}') if isinstance(value, float) else value


def save(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        text = json.dumps(shorten_numbers(report), indent=1, allow_nan=False) + '\n'
        write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    MMLogger.get_instance('speed', log_level='WARNING')
    try:
        if args.read:
            report = read_report(args.read)
            name = args.read.stem
        else:
            device = check_device(args.device, args.amp)
            if args.threads is not None:
                torch.set_num_threads(args.threads)
            # rounded as in the file, whose tables are to be the same
            report = shorten_numbers(measure(args, device))
            name = args.out.stem if args.out else 'speed'
        tables = to_markdown(report)
        if args.markdown:
            put_in_page(args.markdown, name, tables)
        else:
            print(tables, end='')
    except (ValueError, OSError) as e:
        parser.error(str(e))


if __name__ == '__main__':
    main()
