"""Train alpha and beta to what the original network puts out; no labels are needed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

Change = tuple[Tensor, Tensor]  # factors and offsets of the outputs, (O,) each


class Stop(Exception):
    """Ends a forward pass as soon as enough has been seen."""


def _outputs(
    model: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Any],
    names: Sequence[str],
    changes: dict[str, Change],
    calls: int | None = None,
) -> list[tuple[str, Tensor]]:
    """What some layers put out, call by call, with some of the outputs changed."""
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, y: Tensor) -> Tensor:
        if name in changes:
            factor, offset = (t.view(-1, 1, 1) for t in changes[name])
            y = y * factor + offset
        seen.append((name, y.clone()))  # a ReLU may work in place
        if len(seen) == calls:  # what follows, such as NMS, needs no gradients
            raise Stop
        return y

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, x, y, name=name: look(name, y)
        )
        for name in names
    ]
    try:
        forward(model, batch)
    except Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _error(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error as a fraction of the variance within channels."""
    axes = [d for d in range(wanted.dim()) if d != 1]
    variance = wanted.var(axes, correction=0).mean()
    return (made - wanted).square().mean() / variance.clamp(min=1e-12)


def polish(
    converted: nn.Module,
    original: nn.Module,
    trained: Sequence[str],
    compared: Sequence[str],
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
    steps: int,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Change]:
    """Factors and offsets for the outputs of convolutions, by gradient descent.

    They make the outputs of all compared layers, taken together, come nearer to
    those of the original network, which no fit of one layer after the other does.
    Adam with a cosine schedule, one batch a step.

    Args:
        converted: The network whose convolutions are changed; it is left as it is.
        original: The network of the same layers, by the same names.
        trained: Names of the convolutions to be changed.
        compared: Names of the layers whose outputs are compared.
        batches: As ``forward`` takes them.
        forward: Calls a network with a batch.
        steps: Of the training; >= 1.
        lr: The largest learning rate, as a fraction of the outputs' deviation.
        seed: Of the order of the batches.
        progress: Show a progress bar, with the mean error of the compared layers.

    Returns:
        The factor, which goes to alpha and beta, and the offset, which goes to beta,
        of each output channel, (O,) each, by name.
    """
    names = [*trained, *(name for name in compared if name not in trained)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first = dict(_outputs(original, batches[0], forward, names, {}))
    # factors turn about the mean, or they and the offsets would chase each other
    mean = {name: first[name].mean((0, 2, 3)) for name in trained if name in first}
    std = {name: first[name].std((0, 2, 3), correction=0) for name in mean}
    parts = {
        name: (
            torch.ones_like(m).requires_grad_(),
            torch.zeros_like(m).requires_grad_(),
        )
        for name, m in mean.items()
    }

    def changes() -> dict[str, Change]:
        return {
            name: (factor, mean[name] * (1 - factor) + std[name] * offset)
            for name, (factor, offset) in parts.items()
        }

    optimizer = torch.optim.Adam([t for pair in parts.values() for t in pair], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bar = tqdm(total=steps, desc='polishing', disable=not progress)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        batch = batches[order.pop()]
        with torch.no_grad():
            wanted = _outputs(original, batch, forward, names, {})
        with torch.enable_grad():
            made = _outputs(converted, batch, forward, names, changes(), len(wanted))
            loss = torch.stack(
                [
                    _error(y, goal)
                    for (name, y), (other, goal) in zip(made, wanted, strict=True)
                    if name == other and name in compared and y.shape == goal.shape
                ]
            ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(error=f'{loss.item() ** 0.5:.3f}')
        bar.update()
    bar.close()
    with torch.no_grad():
        return changes()
