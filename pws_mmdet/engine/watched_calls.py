"""Replacements for methods of a model, through which a hook sees a training step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import is_compiling
from ..layers.observer import Observer
from ..utils.model import unwrap_model

# A module with one of these methods is a head: it computes a loss from its outputs.
LOSSES_OF_HEADS = ('loss_by_feat', 'loss_and_target')


class WatchedMethod:
    """Replaces a method of a model until ``restore`` is called.

    Copies and pickles of the model have the original method.

    Args:
        model: The model.
        name: Name of the method.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.is_own = name in vars(model)  # It was set on the model, not on its class.
        self.method = getattr(model, name)
        setattr(model, name, self)

    def restore(self) -> None:
        """Put the original method back."""
        if self.is_own:
            setattr(self.model, self.name, self.method)
        else:
            delattr(self.model, self.name)

    def __reduce__(self) -> tuple:
        if self.is_own:
            return _same, (self.method,)
        return getattr, (self.model, self.name)


class WatchedLosses(WatchedMethod):
    """Shows each loss before the step that would carry it into the weights.

    Args:
        model: A model with ``parse_losses``.
        see_loss: Gets the loss, and its parts by name.
    """

    def __init__(
        self, model: nn.Module, see_loss: Callable[[Tensor, dict], None]
    ) -> None:
        super().__init__(model, 'parse_losses')
        self.see_loss = _uncompiled(see_loss)

    def __call__(self, losses: dict) -> tuple[Tensor, dict]:
        loss, log_vars = self.method(losses)
        self.see_loss(loss, {'loss': loss, **log_vars})
        return loss, log_vars


class WatchedStep(WatchedMethod):
    """Shows what the heads put out in each step, and the error that ends a step.

    Args:
        model: A model with ``train_step``. It may be wrapped (DDP).
        see_outputs: Gets the name of a head, and its outputs.
        see_error: Gets the error. It may raise another one.
    """

    def __init__(
        self,
        model: nn.Module,
        see_outputs: Callable[[str, Any], None],
        see_error: Callable[[Exception], None],
    ) -> None:
        super().__init__(model, 'train_step')
        self.see_outputs = see_outputs
        self.see_error = _uncompiled(see_error)
        self.handles = [
            module.register_forward_hook(Observer(self._look_at(name)))
            for name, module in unwrap_model(model).named_modules()
            if any(hasattr(module, method) for method in LOSSES_OF_HEADS)
        ]

    def _look_at(self, name: str) -> Callable:
        def look(module: nn.Module, args: tuple, outputs: Any) -> None:
            if not is_compiling() and torch.is_grad_enabled():
                self.see_outputs(name, outputs)

        return look

    def restore(self) -> None:
        super().restore()
        for handle in self.handles:
            handle.remove()

    def __call__(self, *args, **kwargs) -> Any:
        try:
            return self.method(*args, **kwargs)
        except Exception as error:
            self.see_error(error)
            raise


def _same(value: Any) -> Any:
    return value


def _uncompiled(function: Callable) -> Callable:
    """Keep a function out of torch.compile: it may make a forward pass of its own."""
    return torch.compiler.disable(function)
