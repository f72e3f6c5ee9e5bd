"""What several hooks ask of a runner."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from ..utils.model import unwrap_model


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers of a runner; mostly there is one."""
    wrapper = runner.optim_wrapper
    is_dict = isinstance(wrapper, OptimWrapperDict)
    return list(wrapper.values()) if is_dict else [wrapper]


@contextmanager
def training_context(runner: Runner) -> Iterator[None]:
    """What a forward pass of the training runs in, such as mixed precision.

    Several optimizers have no context together, so each gives its own.
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
    """Return the learning rate without what warm-up has taken from it."""
    # MMEngine appends a group without parameters, which has the config's own rate.
    group = optim_wrappers(runner)[0].param_groups[-1]
    return float(max(group['lr'], group.get('initial_lr', 0)))
