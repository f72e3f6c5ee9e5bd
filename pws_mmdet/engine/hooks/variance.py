import difflib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ...analysis.variance import (
    CONVOLUTIONS,
    STATISTICS,
    Moments,
    applied_filters,
    filter_parameters,
    own_filters,
    step_statistics,
    transmission_statistics,
)
from ...analysis.variance_record import FILE_NAME, Layer, write_header, write_step
from ...compat import is_compiling
from ...layers.observer import Observer
from ...utils.arguments import check_integers
from ...utils.log import warn
from ...utils.model import unwrap_model
from ..training_state import learning_rate, optim_wrappers


@HOOKS.register_module(force=True)
class VarianceMonitorHook(Hook):
    """Record how steps change the filters, and how variance is transmitted.

    It records the statistics of ``pws_mmdet.analysis.STATISTICS`` for every
    convolution, with or without a norm layer after it: the paper's Figures 1 and 2,
    and the two sides of its equations (5) and (6). A step is the whole change that the
    optimizer makes to the weights, with momentum, decay and clipping: the weights
    after it are compared with those before. Inputs and outputs are those of all
    processes, and with accumulated gradients, of all passes that lead to the step.

    The statistics go into ``variance.jsonl`` beside the log of the training, with a
    line for each step. ``pws_mmdet.analysis.read_record`` reads the file. They also go
    to visualizers such as TensorBoard, as ``variance/STATISTIC/LAYER``. They do not go
    into MMEngine's ``scalars.json``, from which programs read losses and metrics.

    Between the recorded steps, the model has no hooks. A value is null in the file if
    it is not finite, or if it does not exist. Examples are alpha of a plain
    convolution, the input of a layer that was not used, and the inputs and outputs of
    a compiled model.

    Args:
        interval: Number of iterations between two recorded steps. The first step is
            recorded, too.
        layers: Regular expressions that are searched in the names of convolutions.
            Only those that match are recorded; None records all. Transposed and
            deformable convolutions are never recorded, nor are those with one weight
            per filter.

    Raises:
        ValueError: If the interval is not a positive integer, if an expression is
            wrong or matches no convolution, or if the model has no convolution.
        TypeError: If the optimizer is not derived from PyTorch's, or if the weights
            are distributed over processes (FSDP).
    """

    priority = 'VERY_LOW'  # Forward passes that other hooks make do not count.

    def __init__(self, interval: int = 50, layers: Sequence[str] | None = None) -> None:
        check_integers(1, interval=interval)
        if layers is not None:
            _check_expressions(layers)
        self.interval = interval
        self.patterns = None if layers is None else list(layers)
        self.convs: dict[str, nn.Module] = {}
        self.watch: _Watch | None = None
        self.is_due = False
        self.has_warned = False

    def before_run(self, runner: Runner) -> None:
        self.convs = self._choose(unwrap_model(runner.model))

    def _choose(self, model: nn.Module) -> dict[str, nn.Module]:
        convs = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, CONVOLUTIONS) and own_filters(module)[0].numel() > 1
        }
        if not convs:
            raise ValueError(
                'VarianceMonitorHook: the model has no convolution to watch'
            )
        if self.patterns is None:
            return convs
        for pattern in self.patterns:
            if not any(re.search(pattern, name) for name in convs):
                near = difflib.get_close_matches(pattern, convs, n=5, cutoff=0.0)
                raise ValueError(
                    f'VarianceMonitorHook: no convolution matches {pattern!r}; '
                    f'the nearest names are {", ".join(near)}'
                )
        return {
            name: conv
            for name, conv in convs.items()
            if any(re.search(pattern, name) for pattern in self.patterns)
        }

    def before_train(self, runner: Runner) -> None:
        if any(isinstance(m, FullyShardedDataParallel) for m in runner.model.modules()):
            raise TypeError(
                'VarianceMonitorHook needs all weights in every process, and FSDP '
                'distributes them'
            )
        self.after_train(runner)  # A training that failed has not called it.
        self.optimizers = list(_optimizers(runner))
        self.path = Path(runner.log_dir, FILE_NAME)
        if is_main_process():
            write_header(self.path, [_describe(*item) for item in self.convs.items()])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None):
        step = runner.iter + 1
        self.is_due = self.is_due or step == 1 or step % self.interval == 0
        if self.is_due and self.watch is None and _starts_accumulating(runner):
            self.watch = _Watch(self.convs, self.optimizers)
            self.is_due = False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence | dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if self.watch is None or not _starts_accumulating(runner):
            return
        self.watch.remove()
        sums = self.watch.sums(next(runner.model.parameters()).device)
        if is_main_process():
            if not (sums.any() or self.has_warned):
                self.has_warned = True
                warn(
                    'VarianceMonitorHook saw no input or output of any layer, and '
                    'records no statistics of them. It cannot see those of a compiled '
                    'model'
                )
            values = self.watch.statistics(sums)
            loss = outputs.get('loss') if isinstance(outputs, dict) else None
            loss = math.nan if loss is None else loss.item()
            step = runner.iter + 1
            write_step(self.path, step, learning_rate(runner), loss, values)
            self._show(runner, step, values)
        self.watch = None

    def after_train(self, runner: Runner) -> None:
        if self.watch is not None:
            self.watch.remove()
            self.watch = None

    def _show(self, runner: Runner, step: int, values: dict[str, list[float]]) -> None:
        scalars = {
            f'variance/{name}/{layer}': value
            for name in STATISTICS
            for layer, value in zip(self.convs, values[name], strict=True)
            if math.isfinite(value)
        }
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):
                backend.add_scalars(scalars, step)


class _Watch:
    """The hooks in the model and the optimizers for one step, and what they saw."""

    def __init__(
        self, convs: dict[str, nn.Module], optimizers: Sequence[Optimizer]
    ) -> None:
        self.convs = convs
        self.x = [Moments() for _ in convs]
        self.y = [Moments() for _ in convs]
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        self.measured: dict[int, dict[str, Tensor]] = {}
        self.handles = []
        for i, conv in enumerate(convs.values()):
            look = Observer(self._see_pass(i))
            handle = conv.register_forward_hook(look, with_kwargs=True)
            self.handles.append(handle)
        if is_main_process():
            for optimizer in optimizers:
                self.handles += [
                    optimizer.register_step_pre_hook(self._before_step),
                    optimizer.register_step_post_hook(self._after_step),
                ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _see_pass(self, index: int):
        def see(conv: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            if is_compiling():  # Compiled code would keep the hook for ever.
                return
            # Passes without gradients are validations, or passes that activation
            # checkpointing repeats later.
            if torch.is_grad_enabled():
                self.x[index].add(args[0] if args else kwargs['input'])
                self.y[index].add(output)

        return see

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *_) -> None:
        # Some optimizers undo the loss scaling of AMP in their own step.
        scale = getattr(optimizer, 'grad_scale', None)
        for i, conv in self._convs_of(optimizer):
            self.weights[i] = own_filters(conv).clone(), applied_filters(conv).clone()
            gradients = [p.grad for p in filter_parameters(conv) if p.grad is not None]
            if gradients:
                norm = torch.stack([g.float().norm() for g in gradients]).norm()
                self.measured[i] = {
                    'grad_norm': norm if scale is None else norm / scale
                }

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_) -> None:
        for i, conv in self._convs_of(optimizer):
            gamma = getattr(conv, 'gamma', 0.0)
            before, after = self.weights[i][0], own_filters(conv)
            self.measured.setdefault(i, {}).update(
                step_statistics(before, after, gamma)
            )

    def _convs_of(self, optimizer: Optimizer) -> Iterator[tuple[int, nn.Module]]:
        own = {id(p) for group in optimizer.param_groups for p in group['params']}
        for i, conv in enumerate(self.convs.values()):
            if any(id(p) in own for p in filter_parameters(conv)):
                yield i, conv

    def sums(self, device: torch.device) -> Tensor:
        """Return count, sum and sum of squares of all inputs and outputs.

        Returns:
            Shape (L, 2, 3): L layers, input and output. The sums are over all
            processes.
        """
        pairs = zip(self.x, self.y, strict=True)
        sums = torch.stack([torch.stack((x.sums(), y.sums())) for x, y in pairs])
        if device.type == 'mps':  # It has no fp64.
            sums = sums.float()
        sums = sums.to(device)
        all_reduce(sums)
        return sums.cpu().double()

    @torch.no_grad()
    def statistics(self, sums: Tensor) -> dict[str, list[float]]:
        """Return the value of each statistic for each layer; NaN if there is none."""
        values = {name: [math.nan] * len(self.convs) for name in STATISTICS}
        for i, conv in enumerate(self.convs.values()):
            found = {k: v.item() for k, v in self.measured.get(i, {}).items()}
            alpha = getattr(conv, 'alpha', None)
            if isinstance(alpha, Tensor):
                found['alpha_min'] = alpha.min().item()
                found['alpha_max'] = alpha.max().item()
            (x_count, x, x2), (y_count, y, y2) = sums[i].tolist()
            if x_count and y_count:
                _, filters = self.weights.get(i, (None, applied_filters(conv)))
                mean_y = y / y_count
                found |= transmission_statistics(
                    filters, x / x_count, x2 / x_count, y2 / y_count - mean_y**2
                )
            for name, value in found.items():
                values[name][i] = value
        return values


def _optimizers(runner: Runner) -> Iterator[Optimizer]:
    for wrapper in optim_wrappers(runner):
        optimizer = wrapper.optimizer
        if not hasattr(optimizer, 'register_step_post_hook'):
            raise TypeError(
                'VarianceMonitorHook needs an optimizer derived from '
                f'torch.optim.Optimizer, got {type(optimizer).__name__}'
            )
        yield optimizer


def _starts_accumulating(runner: Runner) -> bool:
    """Tell whether the optimizers have used the gradients of all iterations so far."""
    return all(wrapper.should_update() for wrapper in optim_wrappers(runner))


def _check_expressions(layers: Sequence[str]) -> None:
    if isinstance(layers, str) or not layers:
        raise ValueError(
            'layers must be a list of regular expressions, or None for all, got '
            f'{layers!r}'
        )
    for pattern in layers:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as e:
            raise ValueError(
                f'layers: {pattern!r} is no regular expression: {e}'
            ) from None


def _describe(name: str, conv: nn.Module) -> Layer:
    filters = own_filters(conv)
    return Layer(
        name=name,
        type=type(conv).__name__,
        n=filters[0].numel(),
        filters=len(filters),
        gamma=getattr(conv, 'gamma', 0.0),
        frozen=not any(p.requires_grad for p in filter_parameters(conv)),
    )
