"""Compare configs by the speed and memory of their training steps, on one device.

Table 1 of the PWS paper gives the images per second that each normalization
trains. A step here is preprocessing, forward, backward and optimizer step, as
the config sets them, on random pictures with random objects: no data set is
needed, and loading data is not part of it. The configs take their steps in turn
(A B C A B C ...), so that what else happens on the machine hits all alike. Name a
config twice to see how far apart equal ones come out.

  images/s    of the median step
  ratio       images/s over those of the first config: median over the rounds
  peak MiB    the most that tensors take at once while this config trains: its
              weights, buffers and optimizer state, and what a step adds to them.
              The other configs do not count, nor does what PyTorch's allocators
              do not see or only keep in reserve, such as the CUDA context,
              workspaces of libraries and cached blocks.

With --watched every config takes its steps a second time, with VarianceMonitorHook
watching each of them; at its default interval it watches one of 50. With --inference a
step is the forward pass of a test, without post-processing, and
PWS convolutions are plain ones, as in tools/test.py.

Weights start at random, without what init_cfg of type Pretrained would load, and
the learning rate is 0, so that no step finds more to do than another.
"""

import argparse
import copy
import json
import math
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import pws_mmdet
from pws_mmdet.analysis.composition import find_dicts, find_picture_size

MIB = 2**20
BOX_SIDES = (1 / 8, 1 / 2)  # over those of the picture
PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'pws_mmdet')


def drop_pretrained(cfg: Any) -> None:
    """Remove each init_cfg of type Pretrained that a model's config holds."""
    for part in find_dicts(cfg):
        init_cfgs = part.get('init_cfg') or []
        if isinstance(init_cfgs, dict):
            init_cfgs = [init_cfgs]
        kept = [init_cfg for init_cfg in init_cfgs if init_cfg['type'] != 'Pretrained']
        if len(kept) < len(init_cfgs):
            part['init_cfg'] = kept or None


def make_batch(
    batch_size: int,
    image_size: tuple[int, int],
    num_boxes: int,
    num_classes: int,
    with_mask: bool,
    seed: int,
) -> dict[str, list]:
    """Return random pictures (3, H, W) with random objects, as a loader gives them."""
    rng = np.random.default_rng(seed)
    batch: dict[str, list] = dict(inputs=[], data_samples=[])
    for i in range(batch_size):
        picture = rng.integers(256, size=(3, *image_size), dtype=np.uint8)
        sides = rng.uniform(*BOX_SIDES, (num_boxes, 2))
        corners = rng.uniform(0, 1 - sides)
        scale = np.array([*image_size[::-1]] * 2)
        boxes = np.concatenate([corners, corners + sides], axis=1) * scale
        objects = InstanceData(
            bboxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(rng.integers(num_classes, size=num_boxes)),
        )
        if with_mask:
            masks = np.zeros((num_boxes, *image_size), dtype=np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
                mask[y1:y2, x1:x2] = 1
            objects.masks = BitmapMasks(masks, *image_size)
        meta = dict(
            img_id=i,
            img_shape=image_size,
            ori_shape=image_size,
            scale_factor=(1.0, 1.0),
        )
        sample = DetDataSample(
            gt_instances=objects, ignored_instances=objects[:0], metainfo=meta
        )
        batch['inputs'].append(torch.from_numpy(picture))
        batch['data_samples'].append(sample)
    return batch


class Trainee:
    """A config's detector with its optimizer, and what its training steps took.

    Args:
        path: Path of the config, as the user wrote it.
        cfg: The config.
        batch_size: Number of pictures in a step, by default the config's.
        image_size: Height and width of the pictures in pixels, by default what
            the config's training pipeline resizes to.
        inference: Measure forward passes of plain convolutions, and no training.
        watched: Let VarianceMonitorHook watch every step.

    Raises:
        ValueError: If there is no default.
    """

    def __init__(
        self,
        path: str,
        cfg: Config,
        batch_size: int | None = None,
        image_size: Sequence[int] | None = None,
        inference: bool = False,
        watched: bool = False,
    ) -> None:
        self.path = path
        self.inference = inference
        self.watched = watched
        self.cfg = cfg
        self.batch_size = batch_size or cfg.get('train_dataloader', {}).get(
            'batch_size'
        )
        if self.batch_size is None:
            raise ValueError(f'{path} sets no batch size: give --batch-size')
        self.image_size = image_size or find_picture_size(cfg, ['train_dataloader'])
        if self.image_size is None:
            raise ValueError(
                f'{path} has no Resize with a scale in its training pipeline: give '
                '--image-size'
            )
        self.seconds: list[float] = []  # of each measured step
        self.peak_memory: int | None = None  # bytes
        self.error: str | None = None

    def attempt(self, method: Callable, *args) -> Any:
        """Call a method of this object, unless one failed; None if it fails."""
        if self.error is not None:
            return None
        try:
            return method(*args)
        except Exception as e:  # whatever a model raises: the others go on
            self.error = shorten(f'{type(e).__name__}: {e}', 400)
        self.model = self.optim_wrapper = None
        torch.cuda.empty_cache()
        return None

    def build(self, device: torch.device, num_boxes: int, amp: bool, seed: int) -> None:
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        set_random_seed(seed)
        model_cfg = copy.deepcopy(self.cfg.model)
        drop_pretrained(model_cfg)
        self.device = device
        self.model = MODELS.build(model_cfg)
        self.model.init_weights()
        self.model.to(device).train()

        optim_cfg = copy.deepcopy(self.cfg.optim_wrapper)
        if amp:
            optim_cfg.update(type='AmpOptimWrapper', loss_scale='dynamic')
        self.optim_wrapper = build_optim_wrapper(self.model, optim_cfg)
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

        if self.inference:
            self.model.eval()
            pws_mmdet.fuse_pws(self.model, inplace=True)
        if self.watched:
            self.log_dir = tempfile.TemporaryDirectory()
            self.runner = SimpleNamespace(
                model=self.model,
                optim_wrapper=self.optim_wrapper,
                iter=0,
                log_dir=self.log_dir.name,
                visualizer=SimpleNamespace(_vis_backends={}),
            )
            self.hook = pws_mmdet.VarianceMonitorHook(interval=1)
            self.hook.before_run(self.runner)
            self.hook.before_train(self.runner)
        self.batch = make_batch(
            self.batch_size,
            self.image_size,
            num_boxes,
            max(getattr(m, 'num_classes', 1) for m in self.model.modules()),
            self.model.with_mask,
            seed,
        )

    def step(self) -> float:
        """Take a step and return its seconds.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        batch = copy.deepcopy(self.batch)  # a model may change its input
        env_cfg = self.cfg.get('env_cfg', {})
        torch.backends.cudnn.benchmark = env_cfg.get('cudnn_benchmark', False)
        self._synchronize()
        start = perf_counter()
        if self.inference:
            with torch.inference_mode():
                data = self.model.data_preprocessor(batch, False)
                self.model(**data, mode='tensor')
            loss = 0.0
        else:
            if self.watched:
                self.hook.before_train_iter(self.runner, self.runner.iter)
            losses = self.model.train_step(batch, self.optim_wrapper)
            if self.watched:
                self.hook.after_train_iter(self.runner, self.runner.iter, None, losses)
                self.runner.iter += 1
            loss = losses['loss']
        self._synchronize()
        seconds = perf_counter() - start
        loss = float(loss)
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss is {loss}')
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def measure_memory(self) -> int:
        """Take a step and return the peak of the memory in bytes.

        What the tensors of this detector and its optimizer hold before the step,
        and the most by which the step exceeds what all detectors hold.
        """
        parameters = list(self.model.parameters())
        states = self.optim_wrapper.optimizer.state.values()
        held = [
            *parameters,
            *self.model.buffers(),
            *(p.grad for p in parameters),
            *(value for state in states for value in state.values()),
        ]
        added = step_memory(self.step, self.device)
        return added + sum(t.nbytes for t in held if isinstance(t, Tensor))


def step_memory(step: Callable, device: torch.device) -> int:
    """Return by how many bytes of tensors a function exceeds what it starts from."""
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding='utf-8'))['traceEvents']
    changes = sorted(
        (event['ts'], event['args']['Bytes'])
        for event in events
        if event.get('name') == '[memory]'
    )
    return max(accumulate((size for _, size in changes), initial=0))


def measure(
    trainees: Sequence[Trainee],
    steps: int,
    warmup: int,
    device: torch.device,
    num_boxes: int,
    amp: bool,
    seed: int,
) -> list[dict[str, Any]]:
    """Train all in turn; return a row of results for each.

    Args:
        trainees: The configs. An error of one ends only its own training.
        steps: Number of measured steps.
        warmup: Number of steps before them.
        device: Where to train.
        num_boxes: Number of objects in each picture.
        amp: Train in mixed precision.
        seed: Seed of weights and pictures.
    """
    for trainee in trainees:
        trainee.attempt(trainee.build, device, num_boxes, amp, seed)
    for i in track_iter_progress(range(warmup + steps), file=sys.stderr):
        for trainee in trainees:
            seconds = trainee.attempt(trainee.step)
            if i >= warmup and seconds is not None:
                trainee.seconds.append(seconds)
    for trainee in trainees:
        trainee.peak_memory = trainee.attempt(trainee.measure_memory)
    return [summarize(trainee, trainees[0]) for trainee in trainees]


def summarize(trainee: Trainee, first: Trainee) -> dict[str, Any]:
    """Return a row of results; those that an error prevents are NaN."""
    speed = ratio = peak = math.nan
    if trainee.error is None:
        speed = trainee.batch_size / statistics.median(trainee.seconds)
        peak = trainee.peak_memory / MIB
        if first.error is None:
            rounds = zip(first.seconds, trainee.seconds, strict=True)
            ratio = statistics.median(theirs / own for theirs, own in rounds)
            ratio *= trainee.batch_size / first.batch_size
    return dict(
        config=trainee.path,
        watched=trainee.watched,
        batch_size=trainee.batch_size,
        image_size=list(trainee.image_size),
        images_per_second=speed,
        ratio=ratio,
        peak_memory_mib=peak,
        seconds=trainee.seconds,
        error=trainee.error,
    )


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    names = [Path(r['config']).stem + ', watched' * r['watched'] for r in rows]
    width = max(len('config'), *map(len, names))
    head = f'{"config":{width}}  batch       size  images/s   ratio  peak MiB'
    lines = [head, '-' * len(head)]
    for name, row in zip(names, rows, strict=True):
        size = 'x'.join(map(str, row['image_size']))
        line = (
            f'{name:{width}}  {row["batch_size"]:5}  {size:>9}  '
            f'{row["images_per_second"]:8.2f}  {row["ratio"]:6.3f}  '
            f'{row["peak_memory_mib"]:8.1f}'
        )
        lines.append(f'{line}  {row["error"]}' if row['error'] else line)
    return '\n'.join(lines)


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()


def load(path: str, options: dict, *args) -> Trainee:
    """Read a config.

    Raises:
        ValueError: If that fails, or if it lacks what no argument gives.
    """
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options)
    except Exception as e:  # a config is Python, and may raise anything
        raise ValueError(f'{path} cannot be read: {type(e).__name__}: {e}') from e
    return Trainee(path, cfg, *args)


def check_device(name: str, amp: bool) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: If there is none, or none that is right for the program.
    """
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f'{name!r} is no device: use cpu, cuda or cuda:N') from e
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'the device must be cpu, cuda or cuda:N, not {name}')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'there is no GPU {name} here: use --device cpu')
    if device.type == 'cpu' and amp:
        raise ValueError('--amp needs a GPU')
    return device


def positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file')
    for option, default, text in [
        ('--batch-size', None, "pictures in a step (default: the config's)"),
        ('--steps', 30, 'measured steps (default: 30)'),
        ('--warmup', 5, 'steps before the measured ones (default: 5)'),
        ('--num-boxes', 7, 'objects in a picture (default: 7, as in COCO)'),
        ('--threads', None, "threads on the CPU (default: PyTorch's)"),
    ]:
        parser.add_argument(option, type=positive_integer, default=default, help=text)
    parser.add_argument(
        '--image-size',
        type=positive_integer,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the pictures in pixels (default: the scale of '
        "Resize in the config's training pipeline)",
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda or cuda:N (default: cuda if there is a GPU)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision; GPU only'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of weights and pictures (default: 0)'
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--inference', action='store_true', help='compare forward passes of a test'
    )
    what.add_argument(
        '--watched',
        action='store_true',
        help='also train with VarianceMonitorHook at every step',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='settings to change in all configs',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='JSON file for all that is measured'
    )
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    MMLogger.get_instance('train_speed', log_level='WARNING')
    try:
        device = check_device(args.device, args.amp)
        trainees = [
            load(
                path,
                args.cfg_options,
                args.batch_size,
                args.image_size,
                args.inference,
                watched,
            )
            for path in args.configs
            for watched in ([False, True] if args.watched else [False])
        ]
        if args.out is not None:
            if args.out.is_dir():
                raise IsADirectoryError(f'{args.out} is a directory')
            args.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report = dict(
        command=shlex.join(sys.argv),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        versions=dict(
            python=platform.python_version(),
            **{name: import_module(name).__version__ for name in PACKAGES},
        ),
        cpu=cpu_name(),
        gpu=torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
        threads=torch.get_num_threads(),
        device=str(device),
        amp=args.amp,
        inference=args.inference,
        seed=args.seed,
        warmup=args.warmup,
        steps=args.steps,
        num_boxes=args.num_boxes,
        cfg_options=args.cfg_options,
    )
    rows = measure(
        trainees, args.steps, args.warmup, device, args.num_boxes, args.amp, args.seed
    )
    print()
    print(format_table(rows))
    if args.out is not None:
        report['results'] = [
            {k: None if v != v else v for k, v in row.items()}
            for row in rows  # NaN
        ]
        text = json.dumps(report, indent=2, allow_nan=False)
        args.out.write_text(text + '\n', encoding='utf-8')
    if all(row['error'] for row in rows):
        sys.exit(1)


if __name__ == '__main__':
    main()
