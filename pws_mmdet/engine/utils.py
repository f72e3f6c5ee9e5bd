"""What several hooks ask of a runner."""

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

# False where torch does not tell; a function that torch.compile knows by itself
is_compiling = getattr(
    getattr(torch, 'compiler', None), 'is_compiling', torch.jit.is_scripting
)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model itself, without what distributes it."""
    return model.module if is_model_wrapper(model) else model


def learning_rate(runner: Runner) -> float:
    """Return the learning rate, that of the first optimizer if there are several."""
    rates = runner.optim_wrapper.get_lr()
    return float((rates.get('base_lr') or next(iter(rates.values())))[0])


def base_learning_rate(runner: Runner) -> float:
    """Return the learning rate without what warm-up has taken from it."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        wrapper = next(iter(wrapper.values()))
    group = wrapper.param_groups[-1]  # MMEngine's own, where there are several
    return float(max(group['lr'], group.get('initial_lr', 0)))
