import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..analysis.gamma import advise
from ..analysis.statistics import Moments
from .utils import learning_rate, unwrap_model

EXPLODED = 1000  # times the variance of the first step


class DivergenceError(FloatingPointError):
    """A training whose losses or weights are no longer finite numbers.

    Args:
        iteration: The first training step that showed it, counted from 1.
        reason: What is not finite.
        advice: What else to say, whole sentences.
    """

    def __init__(self, iteration: int, reason: str, advice: str = '') -> None:
        text = f'Training diverged at iteration {iteration}: {reason}.\n{advice}'
        super().__init__(text.rstrip())
        self.iteration = iteration


@HOOKS.register_module(force=True)
class DivergenceHook(Hook):
    """Stop a training whose losses or weights have become infinite or NaN.

    Losses are looked at before the step that would carry them into the weights,
    and weights before they could replace the last good checkpoint, too. All
    processes stop together. The error names the first layer, in the order of the
    forward pass, whose output has exploded since the first step, and the learning
    rate and gamma that the paper would have taken.

    Args:
        interval: Look at every so many iterations. On a GPU each look waits for
            the forward pass to end. The error names the first iteration whose loss
            was not finite, which may lie up to an interval back.

    Raises:
        DivergenceError: It says in which iteration, and what.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.batch: Any = None
        self.first: dict[str, float] | None = None
        self.recorder: _OutputRecorder | None = None
        self.is_checked = False
        self.losses: list[Tensor | None] = []  # of the iterations since the last look

    def before_train(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        parse_losses = getattr(model, 'parse_losses', None)
        if parse_losses is not None:
            model.parse_losses = self._checked(runner, parse_losses)

    def after_train(self, runner: Runner) -> None:
        vars(unwrap_model(runner.model)).pop('parse_losses', None)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None):
        self.batch = data_batch
        self.is_checked = False
        self.losses.append(None)
        if self.first is None:
            self.recorder = _OutputRecorder(unwrap_model(runner.model))

    def _checked(self, runner: Runner, parse_losses: Callable) -> Callable:
        def parse_and_check(losses: dict) -> tuple[Tensor, dict]:
            loss, log_vars = parse_losses(losses)
            if self.losses and self.losses[-1] is None:
                self.losses[-1] = loss.detach()
            is_due = self.every_n_train_iters(runner, self.interval)
            if is_due and not self.is_checked:
                self.is_checked = True
                self._check_losses(runner, log_vars)
            return loss, log_vars

        return parse_and_check

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence | dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if self.recorder is not None:
            self.first = self.recorder.finish()
            self.recorder = None
        if self.every_n_train_iters(runner, self.interval):
            if not self.is_checked:  # a model with a training step of its own
                self._check_losses(runner, outputs or {})
            self._check_weights(runner, runner.iter + 1)
        elif _checkpoint_is_due(runner):
            self._check_weights(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        self._check_weights(runner, runner.iter)  # the count is one ahead here

    def _check_losses(self, runner: Runner, losses: dict) -> None:
        losses = {k: v for k, v in losses.items() if torch.is_tensor(v)}
        bad = [k for k, v in losses.items() if not torch.isfinite(v).all()]
        first = runner.iter + 1 if bad else math.inf
        for loss in reversed(self.losses[:-1]) if bad else ():
            if loss is None or torch.isfinite(loss).all():
                break
            first -= 1
        self.losses.clear()
        first = _earliest(first, runner)
        if first < math.inf:
            reason = ', '.join(f'{k} is {losses[k].mean().item()}' for k in bad)
            reason = reason or 'the loss of another process is not finite'
            self._stop(runner, int(first), reason)

    def _check_weights(self, runner: Runner, iteration: int) -> None:
        bad = [
            name
            for name, p in unwrap_model(runner.model).named_parameters()
            if not torch.isfinite(p).all()
        ]
        if _earliest(iteration if bad else math.inf, runner) < math.inf:
            few = ', '.join(bad[:3]) + (f' and {len(bad) - 3} more' * (len(bad) > 3))
            reason = f'weights are not finite, {few or "in another process"}'
            self._stop(runner, iteration, reason)

    def _stop(self, runner: Runner, iteration: int, reason: str) -> None:
        advice = [self._name_layer(runner)]
        advice.append(advise(unwrap_model(runner.model), learning_rate(runner)))
        checkpoint = runner.message_hub.get_info('last_ckpt', None)
        if checkpoint:
            advice.append(f'The last good checkpoint is {checkpoint}.')
        error = DivergenceError(iteration, reason, '\n'.join(filter(None, advice)))
        print_log(str(error), logger='current', level=logging.ERROR)
        raise error

    def _name_layer(self, runner: Runner) -> str:
        """Say which layer exploded, from another pass of the batch."""
        model = unwrap_model(runner.model)
        if self.recorder is not None:
            self.recorder.finish()
        # Processes may fail at different places: none may wait for the others in a
        # SyncBN, a loss or an augmentation.
        for module in model.modules():
            if isinstance(module, _BatchNorm) and 'Sync' in type(module).__name__:
                module.eval()
        recorder = _OutputRecorder(model)
        try:
            with torch.no_grad(), runner.optim_wrapper.optim_context(model):
                data = model.data_preprocessor(self.batch, False)
                model._run_forward(data, mode='tensor')
        except Exception:
            pass  # what can be made of NaN may fail in many ways; see how far it came
        first = self.first or {}
        for name, variance in recorder.finish().items():
            usual = first.get(name, math.inf)
            if not math.isfinite(variance) or variance > EXPLODED * usual:
                text = f'The output of {name} is the first to explode: its variance is '
                text += f'{variance:.3g}'
                if math.isfinite(usual):
                    text += f', and was {usual:.3g} in the first step'
                return text + '.'
        return ''


class _OutputRecorder:
    """Var[Y] of every convolution and linear layer, in the order of the pass."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, Moments] = {}
        self.handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                self.handles.append(module.register_forward_hook(self._see(name)))

    def _see(self, name: str) -> Callable:
        def see(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.outputs.setdefault(name, Moments()).add(output)

        return see

    def finish(self) -> dict[str, float]:
        """Take the hooks out, and return the variances of what passed."""
        for handle in self.handles:
            handle.remove()
        variances = {}
        for name, moments in self.outputs.items():
            count, y, y2 = moments.sums().tolist()
            if count:
                variances[name] = y2 / count - (y / count) ** 2
        return variances


def _earliest(iteration: float, runner: Runner) -> float:
    """The least over all processes."""
    if dist.is_available() and dist.is_initialized():
        device = next(runner.model.parameters()).device
        votes = torch.tensor(float(iteration), dtype=torch.float64, device=device)
        all_reduce(votes, 'min')
        return votes.item()
    return iteration


def _checkpoint_is_due(runner: Runner) -> bool:
    return any(
        not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval)
            or hook.is_last_train_iter(runner)
        )
        for hook in runner.hooks
        if isinstance(hook, CheckpointHook)
    )
