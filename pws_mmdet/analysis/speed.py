"""Speed and memory of steps that contenders take in turn, on one device."""

import copy
import json
import math
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from ..convert import fuse_pws
from ..engine import VarianceMonitorHook
from ..layers import share_filters_of_heads
from ..utils.config import find_image_size, without_pretrained

BOX_SIDES = (1 / 8, 1 / 2)  # over those of the image
PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'pws_mmdet')


class Contender:
    """What takes steps beside others, and what its steps took.

    A subclass sets ``model`` and ``device`` before the first step, and in
    ``run()`` takes a step and returns its loss.

    Args:
        name: What it is called in tables.
        batch_size: Number of images in a step.
        image_size: Height and width of the images in pixels.
    """

    model: nn.Module | None
    device: torch.device
    optimizer: Optimizer | None = None

    def __init__(self, name: str, batch_size: int, image_size: Sequence[int]) -> None:
        self.name = name
        self.batch_size = batch_size
        self.image_size = image_size
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
        self.model = self.optimizer = None
        torch.cuda.empty_cache()
        return None

    def prepare(self) -> None:
        """What comes before a step and does not count."""

    def run(self) -> Tensor | float:
        raise NotImplementedError

    def step(self) -> float:
        """Take a step and return its seconds.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        self.prepare()
        self._synchronize()
        start = perf_counter()
        loss = self.run()
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

        What the tensors of this model and its optimizer hold before the step, and
        the most by which the step exceeds what all contenders hold.
        """
        parameters = list(self.model.parameters())
        states = [] if self.optimizer is None else self.optimizer.state.values()
        held = [
            *parameters,
            *self.model.buffers(),
            *(p.grad for p in parameters),
            *(value for state in states for value in state.values()),
        ]
        added = step_memory(self.step, self.device)
        return added + sum(t.nbytes for t in held if isinstance(t, Tensor))

    def ratio(self, first: 'Contender') -> float:
        """Images per second over another's: median over the rounds."""
        if self.error is not None or first.error is not None:
            return math.nan
        rounds = zip(first.seconds, self.seconds, strict=True)
        ratio = statistics.median(theirs / own for theirs, own in rounds)
        return ratio * self.batch_size / first.batch_size

    def images_per_second(self) -> float:
        """Of the median step."""
        if self.error is not None:
            return math.nan
        return self.batch_size / statistics.median(self.seconds)


class Detector(Contender):
    """A config's detector with its optimizer, on random images.

    Weights start at random, without what init_cfg of type Pretrained would load,
    and the learning rate is 0, so that no step finds more to do than another.

    Args:
        name: What it is called in tables; the path of the config.
        cfg: The config.
        batch_size: Number of images in a step, by default the config's.
        image_size: Height and width of the images in pixels, by default what
            the config's training pipeline resizes to.
        inference: Measure forward passes of a test, without post-processing, and
            no training.
        fuse: Let PWS convolutions be plain ones at inference.
        share: Let heads of several levels compute their filters once, as
            PWSRunner does.
        watched: Let VarianceMonitorHook watch every step.

    Raises:
        ValueError: If there is no default.
    """

    def __init__(
        self,
        name: str,
        cfg: Config,
        batch_size: int | None = None,
        image_size: Sequence[int] | None = None,
        inference: bool = False,
        fuse: bool = True,
        share: bool = True,
        watched: bool = False,
    ) -> None:
        batch_size = batch_size or cfg.get('train_dataloader', {}).get('batch_size')
        if batch_size is None:
            raise ValueError(f'{name} sets no batch size: give --batch-size')
        image_size = image_size or find_image_size(cfg, ['train_dataloader'])
        if image_size is None:
            raise ValueError(
                f'{name} has no Resize with a scale in its training pipeline: give '
                '--image-size'
            )
        super().__init__(name, batch_size, image_size)
        self.cfg = cfg
        self.inference = inference
        self.fuse = fuse
        self.share = share
        self.watched = watched

    def build(
        self,
        device: torch.device,
        num_boxes: int = 7,
        amp: bool = False,
        seed: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Make the detector, its optimizer and its images.

        Args:
            device: Where to take the steps.
            num_boxes: Number of objects in each image.
            amp: Train in mixed precision.
            seed: Seed of weights and images.
            memory_format: Of the weights.
        """
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        set_random_seed(seed)
        model_cfg = copy.deepcopy(without_pretrained(self.cfg.model))
        self.device = device
        self.model = MODELS.build(model_cfg)
        self.model.init_weights()
        self.model.to(device, memory_format=memory_format).train()
        if self.share:
            share_filters_of_heads(self.model)

        if self.inference:
            self.model.eval()
            if self.fuse:
                fuse_pws(self.model, inplace=True)
        else:
            optim_cfg = copy.deepcopy(self.cfg.optim_wrapper)
            if amp:
                optim_cfg.update(type='AmpOptimWrapper', loss_scale='dynamic')
            self.optim_wrapper = build_optim_wrapper(self.model, optim_cfg)
            self.optimizer = self.optim_wrapper.optimizer
            for group in self.optim_wrapper.param_groups:
                group['lr'] = 0.0
        if self.watched:
            self.log_dir = tempfile.TemporaryDirectory()
            self.runner = SimpleNamespace(
                model=self.model,
                optim_wrapper=self.optim_wrapper,
                iter=0,
                log_dir=self.log_dir.name,
                visualizer=SimpleNamespace(_vis_backends={}),
            )
            self.hook = VarianceMonitorHook(interval=1)
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

    def prepare(self) -> None:
        self.own_batch = copy.deepcopy(self.batch)  # a model may change its input
        env_cfg = self.cfg.get('env_cfg', {})
        torch.backends.cudnn.benchmark = env_cfg.get('cudnn_benchmark', False)

    def run(self) -> Tensor | float:
        if self.inference:
            with torch.inference_mode():
                data = self.model.data_preprocessor(self.own_batch, False)
                self.model(**data, mode='tensor')
            return 0.0
        if self.watched:
            self.hook.before_train_iter(self.runner, self.runner.iter)
        losses = self.model.train_step(self.own_batch, self.optim_wrapper)
        if self.watched:
            self.hook.after_train_iter(self.runner, self.runner.iter, None, losses)
            self.runner.iter += 1
        return losses['loss'].detach()


def make_batch(
    batch_size: int,
    image_size: Sequence[int],
    num_boxes: int,
    num_classes: int,
    with_mask: bool,
    seed: int,
) -> dict[str, list]:
    """Return random images (3, H, W) with random objects, as a loader gives them."""
    rng = np.random.default_rng(seed)
    batch: dict[str, list] = dict(inputs=[], data_samples=[])
    for i in range(batch_size):
        image = rng.integers(256, size=(3, *image_size), dtype=np.uint8)
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
            img_shape=tuple(image_size),
            ori_shape=tuple(image_size),
            scale_factor=(1.0, 1.0),
        )
        sample = DetDataSample(
            gt_instances=objects, ignored_instances=objects[:0], metainfo=meta
        )
        batch['inputs'].append(torch.from_numpy(image))
        batch['data_samples'].append(sample)
    return batch


def take_turns(
    contenders: Sequence[Contender], rounds: Iterable[int], warmup: int
) -> Iterator[int]:
    """Let all take a step in each round, in an order that is drawn anew (A B B A ...).

    What else happens on the machine hits all alike, and nobody always comes after the
    same, whose memory it finds. An error of one ends only its own steps.

    Args:
        contenders: Built ones.
        rounds: Numbers of the rounds, from 0.
        warmup: Number of rounds that do not count.

    Yields:
        The number of each finished round.
    """
    for i in rounds:
        for contender in random.Random(i).sample(contenders, len(contenders)):
            seconds = contender.attempt(contender.step)
            if i >= warmup and seconds is not None:
                contender.seconds.append(seconds)
        yield i


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


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return date, versions and hardware, for the records of a measurement."""
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        versions=dict(
            python=platform.python_version(),
            **{name: import_module(name).__version__ for name in PACKAGES},
        ),
        cpu=cpu_name(),
        gpu=torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
        threads=torch.get_num_threads(),
        device=str(device),
    )


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()


def check_device(name: str, amp: bool = False) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: If there is none, or none that is right for measurements.
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
