"""What hooks ask about a training: its optimizers, learning rate and precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from ..utils.model import unwrap_model


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers of a runner. Most runners have one."""
    wrapper = runner.optim_wrapper
    is_dict = isinstance(wrapper, OptimWrapperDict)
    return list(wrapper.values()) if is_dict else [wrapper]


@contextmanager
def training_context(runner: Runner) -> Iterator[None]:
    """Enter the context of a training's forward pass, such as mixed precision.

    OptimWrapperDict has no context of its own, so that of each wrapper is entered.
    """
    model = unwrap_model(runner.model)
    with ExitStack() as stack:
        for wrapper in optim_wrappers(runner):
            stack.enter_context(wrapper.optim_context(model))
        yield


def learning_rate(runner: Runner) -> float:
    """Return the learning rate, that of the first optimizer if there are several."""
    rates = runner.optim_wrapper.get_lr()
    return float((rates.get('base_lr') or next(iter(rates.values())))[0])


def base_learning_rate(runner: Runner) -> float:
    """Return the learning rate that a schedule starts from, without warm-up."""
    # MMEngine appends a group without parameters, with the learning rate of the config.
    group = optim_wrappers(runner)[0].param_groups[-1]
    return float(max(group['lr'], group.get('initial_lr', 0)))
