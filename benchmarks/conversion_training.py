"""Train a classifier shortly, from the weights that it has."""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from gpu_cifar import augment, batches
from torch import Tensor, nn


def train(
    model: nn.Module, images: Tensor, labels: Tensor, lr: float, steps: int, seed: int
) -> tuple[nn.Module | None, list[float]]:
    """Train a copy of a network with SGD.

    The images are shifted by up to 4 pixels and flipped. The learning rate falls in
    every step, from ``lr`` to 0. Alpha has no weight decay.

    Args:
        model: The network.
        images: (N, 3, 32, 32).
        labels: (N,).
        lr: Learning rate at the start.
        steps: Number of steps, 1 or more.
        seed: Seed of the order of the images and of their shifts.

    Returns:
        The trained network in evaluation mode, or None if the training diverged; and
        the loss in each step.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(model).train()
    named = list(model.named_parameters())
    alphas = [p for name, p in named if name.endswith('.alpha')]
    others = [p for name, p in named if not name.endswith('.alpha')]
    groups = [dict(params=others), dict(params=alphas, weight_decay=0.0)]
    optimizer = torch.optim.SGD(
        [group for group in groups if group['params']],
        lr=lr,
        momentum=0.9,
        weight_decay=1e-4,
    )
    losses = []
    for i, chosen in zip(range(steps), endless(images), strict=False):
        for group in optimizer.param_groups:
            group['lr'] = lr * (1 - i / steps)
        loss = F.cross_entropy(model(augment(images[chosen])), labels[chosen])
        losses.append(loss.item())
        if not loss.isfinite():
            return None, losses
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval(), losses


def endless(images: Tensor) -> Iterator[Tensor]:
    """Yield the indices of the images of one batch after the other, for ever."""
    while True:
        yield from batches(images)
