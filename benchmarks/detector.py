"""A detector on random images, for measurements."""

import copy
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace

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
from timing import Contender
from torch import Tensor

from pws_mmdet.convert import fuse_pws
from pws_mmdet.engine import VarianceMonitorHook
from pws_mmdet.layers import share_filters_of_heads
from pws_mmdet.utils.config import drop_pretrained, find_image_size

BOX_SIDES = (1 / 8, 1 / 2)  # least and greatest, in sides of the image


class Detector(Contender):
    """The detector of a config with its optimizer, on random images.

    The weights are random: nothing pretrained is loaded. The learning rate is 0, so
    every step has the same work.

    Args:
        name: Its name in tables, which is the path of the config.
        cfg: The config.
        batch_size: Number of images in a step; by default, that of the config.
        image_size: Height and width of the images in pixels; by default, the size that
            the training pipeline of the config resizes to.
        inference: A step is a forward pass of a test, without post-processing, instead
            of a training step.
        fuse: At inference, PWS convolutions are fused into plain ones.
        share: Heads of several levels compute their filters once, as in PWSRunner.
        watched: VarianceMonitorHook records every step.

    Raises:
        ValueError: If neither the config nor an argument sets a size.
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
        """Build the detector, its optimizer and its images.

        Args:
            device: Device of the steps.
            num_boxes: Number of objects in each image.
            amp: Train in mixed precision.
            seed: Seed of the weights and the images.
            memory_format: Memory format of the weights.
        """
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        set_random_seed(seed)
        model_cfg = copy.deepcopy(drop_pretrained(self.cfg.model))
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
    """Return random images (3, H, W) with random objects, as a data loader does."""
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
