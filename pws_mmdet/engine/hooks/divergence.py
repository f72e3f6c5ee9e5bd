import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...analysis.gamma import advise
from ...checkpoint.weights import not_finite
from ...compat import tree_leaves
from ...utils.arguments import check_integers
from ...utils.model import unwrap_model
from ...utils.names import first_names
from ..checks.suspicious_data import describe_suspicious_data
from ..explosion import OutputRecorder, describe_explosion
from ..finite import all_finite, in_any_process
from ..training_state import base_learning_rate, optim_wrappers
from ..watched_calls import WatchedLosses, WatchedMethod, WatchedStep


class DivergenceError(FloatingPointError):
    """A training whose losses or weights are no longer finite numbers.

    Args:
        iteration: The first training step that showed it, counted from 1.
        reason: What is not finite.
        advice: More sentences for the message.
    """

    def __init__(self, iteration: int, reason: str, advice: str = '') -> None:
        text = f'Training diverged at iteration {iteration}: {reason}.\n{advice}'
        super().__init__(text.rstrip())
        self.iteration = iteration


@HOOKS.register_module(force=True)
class DivergenceHook(Hook):
    """Stop a training whose losses or weights have become infinite or NaN.

    It checks

    * the loss of every iteration, before the step that would carry it into the weights;
    * weights and buffers, such as the running statistics of BN, at every ``interval``
      iterations, and before they could replace the last good checkpoint. A value that
      was not finite when the training began, such as a mask of -inf for attention,
      does not count;
    * the outputs of heads, if a step ends with an error. The assigner of YOLOX, for
      example, fails at NaN. The error is then a DivergenceError, too.

    All processes stop together. The error names the first layer, in the order of the
    forward pass, whose output has exploded since the first step. It suggests a
    learning rate and a gamma, as the paper takes them. If images of the batch have
    boxes that cannot be right, the error names these images instead, because no
    learning rate helps there.

    Mixed precision may skip steps whose gradients are infinite. Such steps do not
    count, only losses do.

    Args:
        interval: Number of iterations between two checks of the weights.

    Raises:
        ValueError: If the interval is not a positive integer.
        DivergenceError: If the training diverges.
    """

    def __init__(self, interval: int = 50) -> None:
        check_integers(1, interval=interval)
        self.interval = interval
        self.batch: Any = None
        # Variances of outputs in the first step
        self.first: dict[str, float] | None = None
        self.recorder: OutputRecorder | None = None
        self.is_checked = False
        self.start: dict[str, Tensor] = {}
        # The first head whose outputs are not finite, and the layer that exploded
        self.bad_outputs: tuple[str, str] | None = None

    def before_train(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        self.start = not_finite(model.state_dict())
        self.after_train(runner)  # A training that failed has not called it.
        if hasattr(model, 'parse_losses'):

            def see_loss(loss: Tensor, parts: dict) -> None:
                self.is_checked = True
                self._check_loss(runner, loss, parts)

            WatchedLosses(model, see_loss)
        if hasattr(runner.model, 'train_step'):
            WatchedStep(
                runner.model,
                lambda name, outputs: self._check_outputs(runner, name, outputs),
                lambda error: self._check_error(runner, error),
            )

    def after_train(self, runner: Runner) -> None:
        for model in (runner.model, unwrap_model(runner.model)):
            for value in list(vars(model).values()):
                if isinstance(value, WatchedMethod):
                    value.restore()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None):
        self.batch = data_batch
        self.is_checked = False
        self.bad_outputs = None
        if self.first is None:
            if self.recorder is not None:  # A training failed in its first step.
                self.recorder.finish()
            self.recorder = OutputRecorder(unwrap_model(runner.model))

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
        if not self.is_checked:  # The model's own train_step called no parse_losses.
            losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k}
            losses = {k: v for k, v in losses.items() if torch.is_tensor(v)}
            if losses:
                loss = sum(v.mean() for v in losses.values())
                self._check_loss(runner, loss, losses)
        is_due = self.every_n_train_iters(runner, self.interval)
        if is_due or _checkpoint_is_due(runner):
            self._check_weights(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        # MMEngine has increased runner.iter already.
        self._check_weights(runner, runner.iter)

    def _check_outputs(self, runner: Runner, name: str, outputs: Any) -> None:
        """Remember a head whose outputs are not finite, and the layer that exploded.

        The layer is searched for before the error: after a failed assertion, a GPU
        computes nothing more.
        """
        if self.bad_outputs is None and not all_finite(tree_leaves(outputs)):
            self.bad_outputs = name, self._name_layer(runner)

    def _check_error(self, runner: Runner, error: Exception) -> None:
        """Raise a DivergenceError if outputs that are not finite led to an error."""
        if self.bad_outputs is None or isinstance(error, DivergenceError):
            return
        name, layer = self.bad_outputs
        text = str(error).strip().splitlines()
        reason = (
            f'the outputs of {name} are not finite, and the step ended with '
            f'{type(error).__name__}: {text[0] if text else ""}'
        )
        self._stop(runner, runner.iter + 1, reason, self._suspicious(runner), layer)

    def _check_loss(self, runner: Runner, loss: Tensor, parts: dict) -> None:
        if not in_any_process(~torch.isfinite(loss.detach()).all()):
            return
        parts = {k: v.detach() for k, v in parts.items() if torch.is_tensor(v)}
        bad = {k: v for k, v in parts.items() if not torch.isfinite(v).all()}
        reason = ', '.join(f'{k} is {v.mean().item()}' for k, v in bad.items())
        reason = reason or 'the loss of another process is not finite'
        self._stop_all(runner, runner.iter + 1, reason)

    def _check_weights(self, runner: Runner, iteration: int) -> None:
        state = unwrap_model(runner.model).state_dict()
        started_bad = {k: state.pop(k) for k in self.start if k in state}
        bad = [*not_finite(started_bad, self.start)]
        if not all_finite(state.values()):
            bad += not_finite(state)
        if in_any_process(torch.tensor(bool(bad))):
            where = first_names(bad) or 'in another process'
            reason = f'weights are not finite, {where}'
            self._stop_all(runner, iteration, reason)

    def _stop_all(self, runner: Runner, iteration: int, reason: str) -> None:
        # The wrong images may be in the batch of one process alone.
        images = filter(None, all_gather_object(self._suspicious(runner)))
        self._stop(runner, iteration, reason, ' '.join(images))

    def _suspicious(self, runner: Runner) -> str:
        dataset = getattr(getattr(runner, 'train_dataloader', None), 'dataset', None)
        return describe_suspicious_data(self.batch, dataset)

    def _name_layer(self, runner: Runner) -> str:
        if self.recorder is not None:
            self.recorder.finish()
        return describe_explosion(runner, self.batch, self.first or {})

    def _stop(
        self,
        runner: Runner,
        iteration: int,
        reason: str,
        images: str,
        layer: str | None = None,
    ) -> None:
        if images:
            advice = [images, 'Correct these images first: no learning rate helps.']
        else:
            advice = [self._name_layer(runner) if layer is None else layer]
            ways = advise(unwrap_model(runner.model), base_learning_rate(runner))
            if not any(w.clip_grad_kwargs for w in optim_wrappers(runner)):
                ways += ' Or clip gradients: optim_wrapper.clip_grad.max_norm=10.'
            advice.append(ways)
        checkpoint = runner.message_hub.get_info('last_ckpt', None)
        if checkpoint:
            advice.append(f'The last good checkpoint is {checkpoint}.')
        error = DivergenceError(iteration, reason, '\n'.join(filter(None, advice)))
        print_log(str(error), logger='current', level=logging.ERROR)
        raise error


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
