import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...analysis.gamma import advise
from ...analysis.variance import Moments
from ...checkpoint.weights import not_finite
from ...compat import is_compiling
from ...layers.observer import Observer
from ...utils.arguments import check_integers
from ...utils.model import unwrap_model
from ...utils.names import first_names
from ..checks.suspicious_data import describe_suspicious_data
from ..optimizers import base_learning_rate, optim_wrappers, training_context

# A module with one of these is a head: it computes a loss from its outputs.
LOSSES_OF_HEADS = ('loss_by_feat', 'loss_and_target')

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

    The loss of every iteration is looked at before the step that would carry it
    into the weights. Weights, and buffers such as the running statistics of BN, are
    looked at from time to time, and before they could replace the last good
    checkpoint. What was not finite when the training began, such as a mask of -inf
    for attention, does not count. All processes stop together. The error names the
    first layer, in the order of the forward pass, whose output has exploded since
    the first step, and the learning rate and gamma that the paper would have taken.

    Where images of the batch have boxes that cannot be right, the error names them
    instead: no learning rate helps there. A step that ends in an error of
    its own because the outputs of a head are not finite, as in the assigner of
    YOLOX, is such an error, too.

    Where mixed precision skips steps whose gradients are infinite, it goes on doing
    so: only losses count.

    Args:
        interval: Look at the weights at every so many iterations.

    Raises:
        ValueError: If the interval is no positive integer.
        DivergenceError: It says in which iteration, and what.
    """

    def __init__(self, interval: int = 50) -> None:
        check_integers(1, interval=interval)
        self.interval = interval
        self.batch: Any = None
        self.first: dict[str, float] | None = None
        self.recorder: _OutputRecorder | None = None
        self.is_checked = False
        self.start: dict[str, Tensor] = {}
        self.bad_outputs: tuple[str, str] | None = None

    def before_train(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        self.start = not_finite(model.state_dict())
        self.after_train(runner)  # a training that failed has not called it
        if hasattr(model, 'parse_losses'):
            _CheckedLosses(self, runner, model, 'parse_losses')
        if hasattr(runner.model, 'train_step'):
            _CheckedStep(self, runner, runner.model, 'train_step')

    def after_train(self, runner: Runner) -> None:
        for model in (runner.model, unwrap_model(runner.model)):
            for value in list(vars(model).values()):
                if isinstance(value, _Replacement):
                    value.restore()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None):
        self.batch = data_batch
        self.is_checked = False
        self.bad_outputs = None
        if self.first is None:
            if self.recorder is not None:  # of a training that failed in this step
                self.recorder.finish()
            self.recorder = _OutputRecorder(unwrap_model(runner.model))

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
        if not self.is_checked:  # a model with a training step of its own
            losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k}
            losses = {k: v for k, v in losses.items() if torch.is_tensor(v)}
            if losses:
                self.check_loss(runner, sum(v.mean() for v in losses.values()), losses)
        is_due = self.every_n_train_iters(runner, self.interval)
        if is_due or _checkpoint_is_due(runner):
            self._check_weights(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        self._check_weights(runner, runner.iter)  # the count is one ahead here

    def check_outputs(self, runner: Runner, name: str, outputs: Any) -> None:
        """Remember a head whose outputs are not finite, and the layer that exploded.

        Now: after a failed assertion a GPU computes nothing more.
        """
        if self.bad_outputs is None:
            if not _all_finite(dict(enumerate(_leaves(outputs)))):
                self.bad_outputs = name, self._name_layer(runner)

    def check_error(self, runner: Runner, error: Exception) -> None:
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

    def check_loss(self, runner: Runner, loss: Tensor, parts: dict) -> None:
        if not _in_any_process(~torch.isfinite(loss.detach()).all()):
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
        if not _all_finite(state):
            bad += not_finite(state)
        if _in_any_process(torch.tensor(bool(bad))):
            where = first_names(bad) or 'in another process'
            reason = f'weights are not finite, {where}'
            self._stop_all(runner, iteration, reason)

    def _stop_all(self, runner: Runner, iteration: int, reason: str) -> None:
        # The bad images may be in the batch of one process alone.
        images = filter(None, all_gather_object(self._suspicious(runner)))
        self._stop(runner, iteration, reason, ' '.join(images))

    def _suspicious(self, runner: Runner) -> str:
        dataset = getattr(getattr(runner, 'train_dataloader', None), 'dataset', None)
        return describe_suspicious_data(self.batch, dataset)

    def _stop(
        self,
        runner: Runner,
        iteration: int,
        reason: str,
        images: str,
        layer: str | None = None,
    ) -> None:
        if images:
            advice = [images, 'Mend these images first: no learning rate helps there.']
        else:
            model = unwrap_model(runner.model)
            advice = [self._name_layer(runner) if layer is None else layer]
            ways = advise(model, base_learning_rate(runner))
            if not any(w.clip_grad_kwargs for w in optim_wrappers(runner)):
                ways += ' Or clip gradients: optim_wrapper.clip_grad.max_norm=10.'
            advice.append(ways)
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
            with torch.no_grad(), training_context(runner):
                data = model.data_preprocessor(self.batch, False)
                model._run_forward(data, mode='tensor')
        except Exception:
            pass  # NaN may end the pass anywhere; the layers before that are recorded
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


class _Replacement:
    """What takes the place of a method of a model during the training.

    Copies and pickles of the model have its own method instead.
    """

    def __init__(
        self, hook: DivergenceHook, runner: Runner, model: nn.Module, name: str
    ) -> None:
        # Imported here, because it takes two seconds. An optimizer's first step
        # imports it, too.
        from torch._dynamo import disable

        self.hook, self.runner, self.model, self.name = hook, runner, model, name
        # The check may make a forward pass, which must not be compiled.
        self.check = disable(self._check)
        self.has_own = name in vars(model)
        self.method = getattr(model, name)
        setattr(model, name, self)

    def restore(self) -> None:
        if self.has_own:
            setattr(self.model, self.name, self.method)
        else:
            delattr(self.model, self.name)

    def __reduce__(self) -> tuple:
        if self.has_own:
            return _same, (self.method,)
        return getattr, (self.model, self.name)


class _CheckedLosses(_Replacement):
    """``parse_losses`` that looks at the loss, too."""

    def __call__(self, losses: dict) -> tuple[Tensor, dict]:
        loss, log_vars = self.method(losses)
        self.check(loss, {'loss': loss, **log_vars})
        return loss, log_vars

    def _check(self, loss: Tensor, parts: dict) -> None:
        self.hook.is_checked = True
        self.hook.check_loss(self.runner, loss, parts)


class _CheckedStep(_Replacement):
    """``train_step`` whose errors are looked at, and what heads put out before."""

    def __init__(self, hook: DivergenceHook, runner: Runner, *args) -> None:
        super().__init__(hook, runner, *args)
        self.handles = [
            module.register_forward_hook(Observer(self._see(name)))
            for name, module in unwrap_model(runner.model).named_modules()
            if any(hasattr(module, method) for method in LOSSES_OF_HEADS)
        ]

    def _see(self, name: str) -> Callable:
        def see(module: nn.Module, args: tuple, outputs: Any) -> None:
            if not is_compiling() and torch.is_grad_enabled():
                self.hook.check_outputs(self.runner, name, outputs)

        return see

    def restore(self) -> None:
        super().restore()
        for handle in self.handles:
            handle.remove()

    def __call__(self, *args, **kwargs) -> Any:
        try:
            return self.method(*args, **kwargs)
        except Exception as error:
            self.check(error)
            raise

    def _check(self, error: Exception) -> None:
        self.hook.check_error(self.runner, error)


def _same(value: Any) -> Any:
    return value


class _OutputRecorder:
    """Var[Y] of every convolution and linear layer, in the order of the pass."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, Moments] = {}
        self.handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                look = Observer(self._see(name))
                self.handles.append(module.register_forward_hook(look))

    def _see(self, name: str) -> Callable:
        def see(module: nn.Module, args: tuple, output: Tensor) -> None:
            if is_compiling():  # compiled code would keep the hook for ever
                return
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


def _in_any_process(is_so: Tensor) -> bool:
    if dist.is_available() and dist.is_initialized():
        votes = is_so.float()
        all_reduce(votes, 'max')
        return bool(votes)
    return bool(is_so)


def _leaves(values: Any) -> Iterator[Any]:
    """Go through what lists, tuples and dicts hold, nested as they may be."""
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        yield values
        return
    for value in values:
        yield from _leaves(value)


def _all_finite(tensors: Mapping[str, Any]) -> bool:
    floats = [
        t for t in tensors.values() if torch.is_tensor(t) and t.is_floating_point()
    ]
    if not floats:
        return True
    # 15 times as fast as isfinite of each. A norm may overflow where no value does,
    # so the caller looks again.
    norms = torch._foreach_norm(floats)
    norms = torch.stack([n.float().to(norms[0].device) for n in norms])
    return bool(norms.isfinite().all())


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
