"""Call a network, to see which layers it calls and what reads their outputs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Forward, noise_for, run_model

Run = Callable[[nn.Module], Any]  # calls a network with some batch


class PassEnded(Exception):
    """A network raised an error in a forward pass. The error is the cause.

    What was called until then counts.
    """


def runs_on(
    model: nn.Module, batches: Sequence[Any] | None, forward: Forward = run_model
) -> list[Run]:
    """Return what calls a network with each batch, or with noise without images.

    Args:
        model: The network.
        batches: As ``forward`` takes them; None for an image of noise. If the network
            raises an error on it, the call raises a ``PassEnded``.
        forward: Calls the network with a batch.
    """

    def run_on(batch: Any) -> Run:
        return lambda net: forward(net, batch)

    if batches is not None:
        return [run_on(batch) for batch in batches]
    noise = _noise_that_runs(model, forward)

    def run(net: nn.Module) -> Any:
        try:
            return forward(net, noise)
        except Exception as error:  # a network that needs other inputs may raise any
            raise PassEnded from error

    return [run]


@torch.no_grad()
def _noise_that_runs(model: nn.Module, forward: Forward) -> Tensor:
    """Return noise for the first convolution, or RGB noise if only that runs.

    The first convolution may get more channels than the image has, as behind the Focus
    layer of YOLOX.
    """
    noise = noise_for(model)
    if noise.shape[1] == 3:
        return noise
    for candidate in (noise, noise_for(model, 3)):
        net = copy.deepcopy(model)
        net.eval()
        try:
            forward(net, candidate)
        except Exception:  # a network that needs other inputs may raise any
            continue
        return candidate
    return noise
