"""Convert a network with BN to PWS, and test and train the result."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

import pws_mmdet
from pws_mmdet.checkpoint.write import write_checkpoint
from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.engine import DivergenceError, PWSRunner

KINDS = ['BN', 'plain', 'PWS']
WARM_UP = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50)
METRICS = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'accuracy/top1': ('accuracy', 1),
}


def convert(kind: str, model: nn.Module) -> nn.Module:
    """Convert a network with BN.

    Args:
        kind: 'BN' for the network itself, 'plain' for plain convolutions into which BN
            is folded, 'PWS' for PWS convolutions.
        model: The network.
    """
    if kind == 'BN':
        return model
    if kind == 'plain':
        return fold_batch_norm(model)[0]
    return pws_mmdet.convert_to_pws(model)[0]


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
            'param_scheduler': [WARM_UP],
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
