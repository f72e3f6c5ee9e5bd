"""Convert a network with BN to PWS in several ways, and test and train the results."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

import pws_mmdet
from pws_mmdet.checkpoint.write import write_checkpoint
from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.engine import DivergenceError, PWSRunner

WITHOUT_DATA = {
    'no-data-plain': dict(max_scale=1.0),
    'no-data': {},
    'no-data-stem': {},
}
FITS = {
    'local': dict(max_scale=1.0, unaligned=('',)),
    'fit-plain': dict(max_scale=1.0),
    'fit': {},
    'stem': {},
    'sweeps': dict(sweeps=2),
}
KEEP_STEM = ('no-data-stem', 'stem', 'sweeps')
LEVELS = ['BN', 'mean', *WITHOUT_DATA, *FITS]
METRICS = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'accuracy/top1': ('accuracy', 1),
}


def drop_means(model: nn.Module) -> nn.Module:
    """Fold BN into the convolutions, and subtract its mean from every filter."""
    plain, layers = fold_batch_norm(model)
    for layer in layers:
        weight = plain.get_submodule(layer.name).weight
        weight.data -= weight.data.mean((1, 2, 3), keepdim=True)
    # The means are 0, so the conversion changes the filters no more.
    return pws_mmdet.convert_to_pws(plain, None, (), max_scale=1.0, progress=False)[0]


def convert(level: str, model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Convert a network in one of the ways.

    Args:
        level: The way, one of LEVELS.
        model: The network with BN.
        batches: Batches of images. The ways without data do not use them.
    """
    if level == 'BN':
        return model
    if level == 'mean':
        return drop_means(model)
    options: dict[str, Any] = dict(
        {**WITHOUT_DATA, **FITS}[level], exclude=(), progress=False
    )
    data = batches if level in FITS else None
    if level in KEEP_STEM:
        first = fold_batch_norm(model)[1][0].name
        options['exclude'] = (f'^{re.escape(first)}$',)
    return pws_mmdet.convert_to_pws(model, data, **options)[0]


class Laboratory:
    """Tests and trains networks of one architecture.

    Args:
        config: Config of the norm-free network.
        bn_config: Config of the network with BN.
        folder: Folder for checkpoints and work_dirs.
    """

    def __init__(self, config: Config, bn_config: Config, folder: Path) -> None:
        self.configs = {False: config, True: bn_config}
        self.folder = folder
        self.runs = 0

    def make_runner(self, model: nn.Module, has_bn: bool, changes: dict) -> PWSRunner:
        """Return a runner for a copy of a network."""
        self.runs += 1
        cfg = copy.deepcopy(self.configs[has_bn])
        path = self.folder / f'{self.runs}.pth'
        write_checkpoint(dict(state_dict=model.state_dict()), path)
        cfg.merge_from_dict(
            {
                'work_dir': str(self.folder / str(self.runs)),
                'experiment_name': f'{self.folder.name}-{self.runs}',
                'load_from': str(path),  # nothing initializes the network then
                'log_level': 'ERROR',
                'launcher': 'none',
                **changes,
            }
        )

        class Runner(PWSRunner):
            def build_model(self, _: Any) -> nn.Module:
                return copy.deepcopy(model)

        return Runner.from_cfg(cfg)

    def test(self, model: nn.Module, has_bn: bool) -> dict[str, float]:
        return known(self.make_runner(model, has_bn, {}).test())

    def train(
        self, model: nn.Module, has_bn: bool, lr: float, epochs: int, seed: int
    ) -> dict[str, float] | None:
        """Train a network and test it; return None if it diverges."""
        changes = {
            'randomness.seed': seed,
            'optim_wrapper.optimizer.lr': lr,
            'param_scheduler': [],
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_begin': epochs + 1,
            'default_hooks.checkpoint': None,
        }
        runner = self.make_runner(model, has_bn, changes)
        try:
            runner.train()
        except DivergenceError:
            return None
        return known(runner.test())


def known(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of METRICS, in their units."""
    return {
        key: float(value) * METRICS[key][1]
        for key, value in metrics.items()
        if key in METRICS
    }
