"""What several hooks ask of a runner."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model itself, without what distributes it."""
    return model.module if is_model_wrapper(model) else model


def learning_rate(runner: Runner) -> float:
    """Return the learning rate, that of the first optimizer if there are several."""
    rates = runner.optim_wrapper.get_lr()
    return float((rates.get('base_lr') or next(iter(rates.values())))[0])
