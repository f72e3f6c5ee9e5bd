"""Suggest gamma for a config, from its learning rate or from its first steps."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from tqdm import tqdm

from ..analysis.gamma import (
    LARGEST_RATE,
    LARGEST_STEP,
    gamma_of_record,
    pws_convs,
    suggest_gamma,
)
from ..analysis.gamma_suggestion import GammaSuggestion, LayerGamma, fraction_of_parts
from ..analysis.variance_record import VarianceRecord, read_record
from ..layers import PWSConv2d
from ..utils.config import build_for_training, read_config
from ..utils.progress import progress_bar
from .hooks.divergence import DivergenceError
from .runner import PWSRunner

WATCHED = 10  # watch one step in this many
SMALLEST, LARGEST = 1e-12, 1e6  # so that float32 can hold the square of an option


def suggest_gamma_for_config(
    config: str,
    lr: float | None = None,
    record: str | Path | None = None,
    steps: int | None = None,
    largest_step: float = LARGEST_STEP,
    cfg_options: Mapping | None = None,
) -> GammaSuggestion:
    """Suggest gamma for the PWS layers of a config.

    Without ``record`` and ``steps`` it depends on the learning rate alone, see
    ``suggest_gamma``. With one of them it depends on what a training did to the
    filters, see ``gamma_of_record``.

    Args:
        config: Path of a config, or an installed one, as in 'mmdet::FOLDER/NAME.py'.
        lr: Largest learning rate of the training. By default it is the config's.
        record: The work_dir of a training with VarianceMonitorHook.
        steps: Train this many steps first, without the config's schedule.
        largest_step: How far a step may move a filter, relative to its norm.
        cfg_options: Changes to the config.

    Raises:
        ValueError: If the config cannot be read or trained, has no PWS layer or no
            learning rate, or the record is of another model.
    """
    for option, value in (('--lr', lr), ('--largest-step', largest_step)):
        if value is not None and not SMALLEST <= value <= LARGEST:
            raise ValueError(
                f'{option} must be from {SMALLEST:g} to {LARGEST:g}, got {value}'
            )
    cfg = read_config(config, cfg_options)
    model, _ = build_for_training(config, cfg)
    if isinstance(model, PWSConv2d):
        raise ValueError(f'{config} describes one convolution, and no network')
    lr = _set_learning_rate(config, cfg, lr)
    convs = pws_convs(model)
    watched, divergence = None, None
    if steps is not None:
        watched, divergence = watch_first_steps(cfg, steps)
    elif record is not None:
        watched = read_record(record)
    if watched is None:
        gammas = suggest_gamma(model, lr)
        assert isinstance(gammas, dict)  # since the model is a network
        reason = f'The fraction is lr / {LARGEST_RATE:g}.'
    else:
        gammas = _gamma_of_steps(watched, convs, largest_step)
        reason = (
            f'No filter would have moved by more than {largest_step:g} of its norm, in '
            f'{len(watched.steps)} watched steps up to step {watched.steps[-1]}.'
        )
    layers = {
        name: LayerGamma(convs[name].weight[0].numel(), convs[name].gamma, gamma)
        for name, gamma in gammas.items()
    }
    parts = fraction_of_parts(layers, cfg.model)
    return GammaSuggestion(lr, layers, parts, reason, divergence)


def _gamma_of_steps(
    watched: VarianceRecord, convs: Mapping[str, PWSConv2d], largest_step: float
) -> dict[str, float]:
    gammas = gamma_of_record(watched, largest_step)
    unknown = [name for name in gammas if name not in convs]
    if unknown:
        raise ValueError(f'{watched.path} is of another model: it has {unknown[0]}')
    return gammas


def watch_first_steps(cfg: Config, steps: int) -> tuple[VarianceRecord, str | None]:
    """Train the first steps of a config at its full learning rate, and watch them.

    Args:
        cfg: The config. It is not changed.
        steps: The number of steps.

    Returns:
        What VarianceMonitorHook measured, and the message of the DivergenceError if the
        training diverged.

    Raises:
        ValueError: If the config has no ``train_dataloader`` or ``optim_wrapper``, or
            the training diverged before any watched step.
        Exception: Whatever else a training raises.
    """
    cfg = cfg.copy()
    if 'train_dataloader' not in cfg or 'optim_wrapper' not in cfg:
        raise ValueError('the config has no train_dataloader and optim_wrapper')
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
    divergence = None
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        # MMEngine keeps visualizers by name, with the work_dir of their first training.
        cfg.visualizer, cfg.experiment_name = None, Path(work_dir).name
        runner = PWSRunner.from_cfg(cfg)
        try:
            with progress_bar(total=steps, desc='train', unit='step') as bar:
                runner.register_hook(_MoveBar(bar))
                runner.train()
        except DivergenceError as error:
            divergence = str(error)
        try:
            return read_record(work_dir), divergence
        except ValueError as error:
            if divergence is None:
                raise
            raise ValueError(f'no step could be watched: {divergence}') from error


class _MoveBar(Hook):
    """Move a bar at each step of a training."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def after_train_iter(self, *args, **kwargs) -> None:
        self.bar.update()


def _set_learning_rate(config: str, cfg: Config, lr: float | None) -> float:
    """Put a learning rate into a config, or return the one that it has."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if lr is not None and optimizer:
        optimizer['lr'] = lr
    lr = optimizer.get('lr') if lr is None else lr
    if lr is None:
        raise ValueError(f'{config} names no learning rate: give --lr')
    return lr
