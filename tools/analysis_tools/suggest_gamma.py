"""Suggest gamma for the PWS convolutions of a config.

Three ways, from quick to thorough:

  (none of the options)  a fraction of the He variance 2 / n of each layer that
                         grows with the learning rate
  --record WORK_DIR      what a training with VarianceMonitorHook did to the filters
  --steps N              train N steps first, at the config's learning rate, without
                         its schedule: a few hundred will do

The last two take a gamma with which no watched step would have moved any filter by
more than --largest-step of its norm. They show what a training does to
its filters; where they were compared with a sweep (docs/results/gamma.md), the quick
way chose better.

Below the table are options for --cfg-options, one for each part of the config.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence

from mmengine.config import Config
from mmengine.logging import MMLogger

from pws_mmdet import PWSConv2d, PWSRunner, suggest_gamma
from pws_mmdet.analysis import gamma_of_record, read_record
from pws_mmdet.analysis.gamma import (
    LARGEST_RATE,
    LARGEST_STEP,
    pws_convs,
)
from pws_mmdet.engine import DivergenceError
from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions, build_for_training, read_config

WATCHED = 10  # a step of so many is
LEAST, MOST = 1e-12, 1e6  # of what is given; their squares are numbers of float32


def train(cfg: Config, steps: int, work_dir: str) -> None:
    """Make the first steps of a training at its full learning rate, and watch them.

    Raises:
        ValueError: If the training is no usual one, so that its steps cannot be set.
        Exception: Whatever a training raises but for its divergence, which is said.
    """
    cfg = cfg.copy()
    if 'train_dataloader' not in cfg or 'optim_wrapper' not in cfg:
        raise ValueError('the config has no train_dataloader and optim_wrapper')
    cfg.work_dir = work_dir
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.param_scheduler = None
    for part in ('val', 'test'):
        for name in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{part}_{name}'] = None
    cfg.default_hooks = dict(
        checkpoint=None,
        variance=dict(type='VarianceMonitorHook', interval=min(WATCHED, steps)),
        divergence=dict(type='DivergenceHook', interval=1),
    )
    cfg.log_processor = dict(by_epoch=False)
    runner = PWSRunner.from_cfg(cfg)
    try:
        runner.train()
    except DivergenceError as error:
        print(f'{error}\nThe suggestion is from the steps before.\n')


def describe_layers(convs: Mapping[str, PWSConv2d], gammas: Mapping[str, float]) -> str:
    """Lines of all layers: what gamma is, and what it should be."""
    width = max(len('layer'), *map(len, gammas))
    lines = [f'{"layer":{width}}      n    gamma  suggested  fraction of 2/n']
    for name, gamma in gammas.items():
        conv = convs[name]
        n = conv.weight[0].numel()
        lines.append(
            f'{name:{width}}  {n:5}  {conv.gamma:7.2g}  {gamma:9.2g}  '
            f'{gamma * n / 2:15.2g}'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path, or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        '--lr',
        type=float,
        help='largest learning rate, for the batch size that is meant (default: the '
        "config's)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        '--record', metavar='WORK_DIR', help='of a training with VarianceMonitorHook'
    )
    way.add_argument(
        '--steps', type=positive(int), metavar='N', help='train so many steps'
    )
    parser.add_argument(
        '--largest-step',
        type=float,
        default=LARGEST_STEP,
        metavar='PART',
        help=f'of the norm of a filter (default: {LARGEST_STEP:g})',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='changes to the config',
    )
    args = parser.parse_args()
    MMLogger.get_instance('suggest_gamma', log_level='ERROR')
    try:
        suggest(**vars(args))
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))


def suggest(
    config: str,
    lr: float | None = None,
    record: str | None = None,
    steps: int | None = None,
    largest_step: float = LARGEST_STEP,
    cfg_options: Mapping | None = None,
) -> None:
    """Print what the program prints; the arguments are the program's.

    Raises:
        ValueError: If the config cannot be read, or has no PWS layer or learning
            rate, or the record is not one of its model.
    """
    for option, value in (('--lr', lr), ('--largest-step', largest_step)):
        if value is not None and not LEAST <= value <= MOST:
            raise ValueError(
                f'{option} must be from {LEAST:g} to {MOST:g}, got {value}'
            )
    cfg = read_config(config, cfg_options)
    model, _ = build_for_training(config, cfg)
    if isinstance(model, PWSConv2d):
        raise ValueError(f'{config} describes one convolution, and no network')
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if lr is not None and optimizer:
        optimizer.lr = lr
    lr = optimizer.get('lr') if lr is None else lr
    if lr is None:
        raise ValueError(f'{config} names no learning rate: give --lr')
    convs = pws_convs(model)
    if record is None and steps is None:
        gammas = suggest_gamma(model, lr)
        way = f'The fraction is lr / {LARGEST_RATE:g}.'
    else:
        if steps is not None:
            with tempfile.TemporaryDirectory() as work_dir:
                train(cfg, steps, work_dir)
                variance = read_record(work_dir)
        else:
            variance = read_record(record)
        gammas = gamma_of_record(variance, largest_step)
        unknown = [name for name in gammas if name not in convs]
        if unknown:
            raise ValueError(f'{record} is of another model: it has {unknown[0]}')
        way = (
            f'No filter would have moved by more than {largest_step:g} of its norm, in '
            f'{len(variance.steps)} watched steps up to step {variance.steps[-1]}.'
        )
    print(describe_layers(convs, gammas))
    print(f'\nFor a learning rate of {lr:g}:')
    parts: dict[str, float] = {}  # a config sets gamma for each part of a model
    for name, gamma in gammas.items():
        part = owner(name, cfg.model)
        fraction = gamma * convs[name].weight[0].numel() / 2
        parts[part] = max(fraction, parts.get(part, 0))
    for part, fraction in parts.items():
        if math.isinf(fraction):
            print(f'  {part}: its steps were not finite, no gamma can help')
        else:
            print(f'  {part}.conv_cfg.type=PWS', end=' ')
            print(f'{part}.conv_cfg.gamma={fraction:.2g}', end=' ')
            print(f'{part}.conv_cfg.relative_gamma=True')
    print(f'{way}\nThe paper takes 1e-3 for SSD at a rate of 1e-2, and 1e-5 at 1e-3.')


def owner(layer: str, model: Mapping) -> str:
    """Return the key of a config whose module a layer is a part of, the innermost."""
    key, cfg = 'model', model
    path = key
    for name in layer.split('.'):
        if isinstance(cfg, Sequence) and name.isdigit() and int(name) < len(cfg):
            cfg = cfg[int(name)]
        elif isinstance(cfg, Mapping) and isinstance(
            cfg.get(name), (Mapping, list, tuple)
        ):
            cfg = cfg[name]
        else:
            break
        path += f'.{name}'
        if isinstance(cfg, Mapping) and 'type' in cfg:
            key = path
    return key


if __name__ == '__main__':
    main()
