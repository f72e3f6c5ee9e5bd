"""Scale the channels of a network so that little is lost by zero-mean filters.

A ReLU passes a positive factor on: with a channel's producers scaled by s and the
weights that read it by 1 / s, a network computes the same. What filters of zero mean
cannot see, the sum over all their inputs, becomes a sum weighted by 1 / s, and the
scales are free: they are chosen so that it is what the original filters use least.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from tqdm import tqdm

MAX_SCALE = 3.0


@dataclass
class Channels:
    """Channels that may be scaled: who makes them, and who reads them."""

    producers: list[str]
    consumers: list[str]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a batch, or of what a network makes of it, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, BaseDataElement):
        yield from tensors_in(value.to_dict())
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def readers_of(model: nn.Module) -> dict[nn.Module, str]:
    """Everything that reads its input in a way of its own, and its names."""
    return {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        or (not any(module.children()) and any(True for _ in module.parameters()))
    }


def _print_of(x: Tensor) -> Tensor:
    """Sum and root of the sum of squares of each channel, (2, C)."""
    x = x.double()
    axes = [d for d in range(x.dim()) if d != 1] if x.dim() > 1 else []
    return torch.stack([x.sum(axes), x.square().sum(axes).sqrt()])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=1e-4, atol=1e-4 * float(b[1].max() if b.numel() else 0)
    )


class _Unlike(Exception):
    """What the scaled network computes is something else."""


class ChannelFinder:
    """Finds channels that may be scaled by trying it, on one batch.

    Args:
        model: A network in evaluation mode.
        names: Its plain convolutions.
        forward: Calls the network with a batch.
        batch: As ``forward`` takes it.
        progress: Show a progress bar.

    An activation that is no ReLU is told by what it makes of the batch scaled by
    factors of up to 50; a bound that even this does not reach is not seen. Nor are
    channels found in half precision, which rounds too much to tell.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        forward: Callable,
        batch: Any,
        progress: bool = False,
    ) -> None:
        self.model, self.forward, self.batch = model, forward, batch
        self.progress = progress
        self.convs = {model.get_submodule(name): name for name in names}
        self.readers = list(readers_of(model))
        self.prints: dict[nn.Module, list[Tensor]] = {}
        self.shapes: dict[str, torch.Size] = {}
        hooks = [m.register_forward_pre_hook(self._note) for m in self.readers]
        hooks += [c.register_forward_hook(self._note_shape) for c in self.convs]
        try:
            self.outputs = list(tensors_in(forward(model, batch)))
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: nn.Module, args: tuple) -> None:
        self.prints.setdefault(module, []).append(_print_of(args[0]))

    def _note_shape(self, conv: nn.Module, args: tuple, y: Tensor) -> None:
        self.shapes.setdefault(self.convs[conv], y.shape[1:])

    def reached(self) -> set[str]:
        """Names of what read something of the batch."""
        return {n for m, n in readers_of(self.model).items() if m in self.prints}

    def find(self) -> list[Channels]:
        """Channels of one convolution, and those that several add to a sum."""
        found: list[Channels] = []
        left = []
        disable = not self.progress
        for name in tqdm(self.shapes, 'finding channels', disable=disable, unit='conv'):
            consumers = self.consumers_of([name])
            if consumers:
                found.append(Channels([name], consumers))
            else:
                left.append(name)
        tried: set[tuple[str, ...]] = set()
        # Those that are added up have one shape, or (in an FPN) one width.
        for key in (self.shapes.__getitem__, self._width):
            groups: dict[Any, list[str]] = {}
            for name in left:
                groups.setdefault(key(name), []).append(name)
            left = []
            for names in groups.values():
                while names:
                    # Who adds to one sum is as a rule all of a group, but for those
                    # who come after it; in a large group only all of it is tried.
                    least = 1 if len(names) <= 6 else len(names) - 1
                    for end in range(len(names), least, -1):
                        if tuple(names[:end]) in tried:
                            continue
                        tried.add(tuple(names[:end]))
                        consumers = self.consumers_of(names[:end])
                        if consumers:
                            found.append(Channels(names[:end], consumers))
                            names = names[end:]
                            break
                    else:
                        left.append(names.pop(0))
                        if least > 1:
                            left += names
                            names = []
        return found

    def _width(self, name: str) -> int:
        return self.shapes[name][0]

    def consumers_of(self, producers: Sequence[str]) -> list[str]:
        """Who reads the channels if they may be scaled, else nobody."""
        width = self._width(producers[0])
        generator = torch.Generator().manual_seed(width)
        # some far up, so that an activation with a bound, such as ReLU6, reaches it
        scale = torch.exp(torch.rand(width, generator=generator) * 7 - 3)
        consumers: dict[str, None] = {}
        calls: dict[nn.Module, int] = {}

        def scale_output(conv: nn.Module, args: tuple, y: Tensor) -> Tensor:
            return y * scale.to(y).view(1, -1, 1, 1)

        def look(module: nn.Module, args: tuple) -> tuple | None:
            x, *others = args
            call = calls[module] = calls.get(module, -1) + 1
            expected = self.prints[module][call]
            now = _print_of(x)
            name = self.convs.get(module)
            if name not in consumers and _same(now, expected):
                return None
            if name is None or now.shape != expected.shape or x.shape[1] != width:
                raise _Unlike
            if not _same(now, expected * scale.to(now)):
                raise _Unlike
            if call and name not in consumers:
                raise _Unlike  # reads other channels, too
            consumers[name] = None
            return x / scale.to(x).view(1, -1, 1, 1), *others

        hooks = [m.register_forward_pre_hook(look) for m in self.readers]
        for name in producers:
            conv = self.model.get_submodule(name)
            hooks.append(conv.register_forward_hook(scale_output))
        try:
            outputs = list(tensors_in(self.forward(self.model, self.batch)))
            same = [o.shape for o in outputs] == [
                o.shape for o in self.outputs
            ] and all(
                torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4)
                for a, b in zip(outputs, self.outputs, strict=True)
            )
        except (_Unlike, IndexError):
            same = False
        finally:
            for hook in hooks:
                hook.remove()
        return list(consumers) if same else []


@dataclass
class Reader:
    """What one group of a convolution's filters reads.

    Attributes:
        channels: Its input channels, among those that are scaled.
        filters: Summed over the kernel, (c_in, O).
        precision: Inverse covariance of its inputs, summed over the kernels,
            (c_in, c_in).
        variance: Sum of the variances of its outputs.
    """

    channels: slice
    filters: Tensor
    precision: Tensor
    variance: float


def least_used_direction(
    readers: Sequence[Reader], max_scale: float = MAX_SCALE, steps: int = 200
) -> Tensor:
    """Weights of a sum of channels that filters lose the least by not seeing.

    Filters w that are to satisfy u'w = 0 lose (u'w)^2 / (u'P u), with P the inverse
    covariance of their inputs. What all readers lose, as a fraction of the variance
    of their outputs, is minimized over positive u.

    Args:
        readers: Of the channels.
        max_scale: Bound of the scales.
        steps: Of the optimization.

    Returns:
        u, (c_in,), within a factor of ``max_scale`` of its geometric mean.
    """
    width = max(reader.channels.stop for reader in readers)
    log_u = readers[0].filters.new_zeros(width).requires_grad_()
    used = [(r.channels, r.filters @ r.filters.T / r.variance, r) for r in readers]
    optimizer = torch.optim.Adam([log_u], lr=0.1)
    limit = math.log(max_scale)

    def direction() -> Tensor:
        return (log_u - log_u.mean()).clamp(-limit, limit).exp()

    with torch.enable_grad():
        for _ in range(steps):
            u = direction()
            loss = sum(
                (u[c] @ a @ u[c]) / (u[c] @ r.precision @ u[c]) for c, a, r in used
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return direction().detach()


@torch.no_grad()
def scale_channels(model: nn.Module, channels: Channels, scale: Tensor) -> None:
    """Scale what the producers put out, and undo it in those who read it."""
    for name in channels.producers:
        conv = model.get_submodule(name)
        conv.weight.mul_(scale.to(conv.weight).view(-1, 1, 1, 1))
        conv.bias.mul_(scale.to(conv.bias))
    for name in channels.consumers:
        conv = model.get_submodule(name)
        of_group = scale.to(conv.weight).reshape(conv.groups, 1, -1, 1, 1)
        weight = conv.weight.unflatten(0, (conv.groups, -1)) / of_group
        conv.weight.copy_(weight.flatten(0, 1))
