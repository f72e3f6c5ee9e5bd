"""Scale the channels of a network so that zero-mean filters lose little.

ReLU(s x) = s ReLU(x) for s > 0. So if the filters that produce a channel are scaled by
s and the weights that read it by 1 / s, the network computes the same. A zero-mean
filter ignores the sum of its inputs. The scales decide which weighted sum of the
original inputs this is. They are chosen so that the original filters use it as little
as possible.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .forward import Forward, readers_of, tensors_in
from .options import MAX_SCALE

NOTHING = 1e-10  # losses below this, as fractions of a variance, are rounding errors


@dataclass
class Channels:
    """Channels that may be scaled.

    Attributes:
        producers: Names of the convolutions that put them out.
        consumers: Names of the convolutions that read them.
    """

    producers: list[str]
    consumers: list[str]


def _print_of(x: Tensor) -> Tensor:
    """Return a fingerprint, (2, C): each channel's sum, and its root sum of squares."""
    x = x.double()
    axes = [d for d in range(x.dim()) if d != 1] if x.dim() > 1 else []
    return torch.stack([x.sum(axes), x.square().sum(axes).sqrt()])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=1e-4, atol=1e-4 * float(b[1].max() if b.numel() else 0)
    )


class _Unlike(Exception):
    """The scaled network computes something else."""


class ChannelFinder:
    """Finds the channels that may be scaled, by scaling them on one batch.

    It scales by factors of up to 50, so that an activation with a bound, such as ReLU6,
    reaches its bound and is recognized. A bound that the scaled batch does not reach
    is not recognized. In half precision no channels are found, because rounding hides
    whether the outputs are the same.

    Args:
        model: A network in evaluation mode.
        names: Names of its plain convolutions.
        forward: Calls the network with a batch.
        batch: As ``forward`` takes it.
        progress: Show a progress bar.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        forward: Forward,
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
        """Return the names of the modules with parameters that the batch reaches."""
        return {n for m, n in readers_of(self.model).items() if m in self.prints}

    def find(self) -> list[Channels]:
        """Find the channels of single convolutions, and of sums of several."""
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
        # Summands have the same shape, or, in an FPN, the same number of channels.
        for key in (self.shapes.__getitem__, self._width):
            groups: dict[Any, list[str]] = {}
            for name in left:
                groups.setdefault(key(name), []).append(name)
            left = []
            for names in groups.values():
                left += self._find_sums(names, tried, found)
        return found

    def _find_sums(
        self, names: list[str], tried: set[tuple[str, ...]], found: list[Channels]
    ) -> list[str]:
        """Find convolutions whose outputs are added up, among those of one group.

        Usually the whole group adds to one sum, except for some of its last members.
        So the last members are left out one by one. In a group of more than six, only
        the whole group is tried, to save time.

        Args:
            names: The group, in the order of execution.
            tried: Combinations that were tried. New ones are added to it.
            found: The channels that are found are added to it.

        Returns:
            The names that belong to no sum.
        """
        left = []
        while names:
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
                if least > 1:
                    return left + names
                left.append(names.pop(0))
        return left

    def _width(self, name: str) -> int:
        return self.shapes[name][0]

    def consumers_of(self, producers: Sequence[str]) -> list[str]:
        """Find the convolutions that read the channels of some others.

        Args:
            producers: Names of the convolutions whose channels are scaled as one.

        Returns:
            Names of the convolutions; none if the channels may not be scaled.
        """
        width = self._width(producers[0])
        generator = torch.Generator().manual_seed(width)
        # From e^-3 to e^4: the large factors reach the bound of a ReLU6.
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
                raise _Unlike  # an earlier call of this layer read other channels
            consumers[name] = None
            return x / scale.to(x).view(1, -1, 1, 1), *others

        hooks = [m.register_forward_pre_hook(look) for m in self.readers]
        for name in producers:
            conv = self.model.get_submodule(name)
            hooks.append(conv.register_forward_hook(scale_output))
        try:
            same = self._has_same_outputs()
        except (_Unlike, IndexError):
            same = False
        finally:
            for hook in hooks:
                hook.remove()
        return list(consumers) if same else []

    def _has_same_outputs(self) -> bool:
        outputs = list(tensors_in(self.forward(self.model, self.batch)))
        shapes = [x.shape for x in self.outputs]
        return [x.shape for x in outputs] == shapes and all(
            torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4)
            for a, b in zip(outputs, self.outputs, strict=True)
        )


@dataclass
class Reader:
    """One group of a convolution, as a reader of channels that are scaled.

    Attributes:
        channels: Its input channels, as a slice of the scaled ones.
        filters: Its filters, summed over the kernel, (c_in, O).
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
    """Find the weighted sum of channels that filters use least.

    A filter w that must satisfy u'w = 0 loses (u'w)^2 / (u'P u), where P is the inverse
    covariance of its inputs. The loss of all readers, as a fraction of the variance of
    their outputs, is minimized over positive u.

    Args:
        readers: All readers of the channels.
        max_scale: Bound of the scales.
        steps: The number of optimization steps.

    Returns:
        The weights u, (c_in,). Each is within a factor of ``max_scale`` of the
        geometric mean. They are 1 if nothing is lost without scales.
    """
    width = max(reader.channels.stop for reader in readers)
    log_u = readers[0].filters.new_zeros(width).requires_grad_()
    used = [(r.channels, r.filters @ r.filters.T / r.variance, r) for r in readers]
    optimizer = torch.optim.Adam([log_u], lr=0.1)
    limit = math.log(max_scale)

    def direction() -> Tensor:
        return (log_u - log_u.mean()).clamp(-limit, limit).exp()

    with torch.enable_grad():
        for step in range(steps):
            u = direction()
            losses = [
                (u[c] @ a @ u[c]) / (u[c] @ r.precision @ u[c]) for c, a, r in used
            ]
            loss = functools.reduce(torch.add, losses)
            if not step and loss < NOTHING:
                break  # Adam would follow rounding errors
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return direction().detach()


@torch.no_grad()
def scale_channels(model: nn.Module, channels: Channels, scale: Tensor) -> None:
    """Scale channels in place, and the weights that read them by the inverse.

    Args:
        model: A network of plain convolutions with a bias.
        channels: Channels of the network.
        scale: Factor of each channel, (C,).
    """
    for name in channels.producers:
        conv = model.get_submodule(name)
        conv.weight.mul_(scale.to(conv.weight).view(-1, 1, 1, 1))
        conv.bias.mul_(scale.to(conv.bias))
    for name in channels.consumers:
        conv = model.get_submodule(name)
        of_group = scale.to(conv.weight).reshape(conv.groups, 1, -1, 1, 1)
        weight = conv.weight.unflatten(0, (conv.groups, -1)) / of_group
        conv.weight.copy_(weight.flatten(0, 1))
