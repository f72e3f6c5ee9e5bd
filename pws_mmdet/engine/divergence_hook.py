from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


class DivergenceError(FloatingPointError):
    """A training whose losses are no longer finite numbers.

    Args:
        iteration: The training step that showed it, counted from 1.
        reason: What is not finite.
    """

    def __init__(self, iteration: int, reason: str) -> None:
        super().__init__(f'Training diverged at iteration {iteration}: {reason}.')
        self.iteration = iteration


@HOOKS.register_module(force=True)
class DivergenceHook(Hook):
    """Stop a training whose losses have become infinite or NaN.

    Args:
        interval: Look at the losses of every so many iterations. On a GPU each
            look waits for the step to end.

    Raises:
        DivergenceError: It says in which iteration, and which losses.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence | dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        losses = {k: v for k, v in (outputs or {}).items() if torch.is_tensor(v)}
        bad = [k for k, v in losses.items() if not torch.isfinite(v).all()]
        if bad:
            raise DivergenceError(
                runner.iter + 1, ', '.join(f'{k} is {losses[k].item()}' for k in bad)
            )
