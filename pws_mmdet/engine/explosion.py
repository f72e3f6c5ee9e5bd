"""A search for the first layer of a model whose output has exploded."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..analysis.variance import Moments
from ..compat import is_compiling
from ..layers.observer import Observer
from ..utils.model import unwrap_model
from .training_state import training_context

EXPLODED = 1000  # times the variance of the first step


class OutputRecorder:
    """Records the variance of the output of every convolution and linear layer.

    Args:
        model: The model. It is watched until ``finish`` is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, Moments] = {}
        self.handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                look = Observer(self._look_at(name))
                self.handles.append(module.register_forward_hook(look))

    def _look_at(self, name: str) -> Callable:
        def look(module: nn.Module, args: tuple, output: Tensor) -> None:
            if is_compiling():  # Compiled code would keep the hook for ever.
                return
            self.outputs.setdefault(name, Moments()).add(output)

        return look

    def finish(self) -> dict[str, float]:
        """Stop watching.

        Returns:
            The variances by the names of the layers, in the order of the forward pass.
        """
        for handle in self.handles:
            handle.remove()
        variances = {}
        for name, moments in self.outputs.items():
            count, y, y2 = moments.sums().tolist()
            if count:
                variances[name] = y2 / count - (y / count) ** 2
        return variances


def describe_explosion(runner: Runner, batch: Any, first: Mapping[str, float]) -> str:
    """Name the first layer whose output explodes in another forward pass of a batch.

    Args:
        runner: The runner of a training that is to stop. SyncBN layers of its model
            are in eval mode afterwards.
        batch: The batch, as the data loader gave it.
        first: Variances of outputs in the first training step, by name.

    Returns:
        A sentence, or an empty string if no layer exploded.
    """
    model = unwrap_model(runner.model)
    # Only this process may make the pass, so it must not wait for the others in SyncBN.
    # Mode 'tensor' computes no loss, which might wait, too.
    for module in model.modules():
        if isinstance(module, _BatchNorm) and 'Sync' in type(module).__name__:
            module.eval()
    recorder = OutputRecorder(model)
    try:
        with torch.no_grad(), training_context(runner):
            data = model.data_preprocessor(batch, False)
            model._run_forward(data, mode='tensor')
    except Exception:
        # NaN may end the pass anywhere. The layers before are recorded.
        pass
    for name, variance in recorder.finish().items():
        usual = first.get(name, math.inf)
        if not math.isfinite(variance) or variance > EXPLODED * usual:
            text = f'The output of {name} is the first to explode: its variance is '
            text += f'{variance:.3g}'
            if math.isfinite(usual):
                text += f', and was {usual:.3g} in the first step'
            return text + '.'
    return ''
