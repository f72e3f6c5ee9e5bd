"""The zero-mean filters that come nearest to those of a trained network."""

import copy
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from ..compat import tree_leaves, unravel_index
from .equalize import (
    MAX_SCALE,
    ChannelFinder,
    Reader,
    least_used_direction,
    readers_of,
    scale_channels,
    tensors_in,
)


@dataclass
class Layer:
    """A convolution of a network of plain ones, with a bias.

    Attributes:
        name: Its name in the network, the first one if it is shared.
        mean, std: Mean and standard deviation of what the convolution puts out
            without its bias, (O,), where BN's statistics tell them.
        kept: Why it is to keep its filters; empty for a layer to be converted.
        scales: One that keeps its filters may have its channels scaled.
    """

    name: str
    mean: Tensor | None = None
    std: Tensor | None = None
    kept: str = ''
    scales: bool = False


@dataclass
class ConvertedLayer:
    """What became of one convolution.

    Attributes:
        name: Its name in the network, the first one if it is shared.
        method: 'fitted' to the outputs of the original layer; 'local': the best
            zero-mean filters for the inputs that it gets; 'statistics': without
            data, from BN's running statistics; 'mean': without anything that tells
            the mean of its inputs; 'kept': not converted.
        error: Root of the mean squared error of its outputs on calibration images
            that it was not fitted to, as a fraction of their standard deviation;
            None without images.
        reason: Why it was kept.
    """

    name: str
    method: str
    error: float | None = None
    reason: str = ''

    def __str__(self) -> str:
        error = '' if self.error is None else f', relative error {self.error:.3f}'
        return f'{self.name}: {self.method}{error}' + (
            f' ({self.reason})' if self.reason else ''
        )


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

Filters = tuple[Tensor, Tensor]  # (O, c_in / groups, k, k) and bias (O,)


# --- without data ------------------------------------------------------------------


def mean_of_inputs(
    weight: Tensor, mean_of_outputs: Tensor, guess: Tensor | None = None
) -> Tensor:
    """Estimate the mean of each input channel of a convolution.

    The mean of an output is the sum of the filter's weights times the means of its
    inputs: one equation for each filter of the group. Where they leave the means
    open, the solution is the one nearest to a guess.

    Args:
        weight: Filters of one group, (O, c_in, k, k), fp64.
        mean_of_outputs: Of the convolution without bias, (O,), fp64.
        guess: (c_in,). The default is that all are equal.

    Returns:
        (c_in,)
    """
    a = weight.flatten(2).sum(2)
    if guess is None:
        ones = a.sum(1)
        equal = (ones @ mean_of_outputs) / ones.square().sum().clamp(min=1e-30)
        guess = equal.expand(a.shape[1])
    # means are estimates themselves: no equation is to be met at any price
    ridge = 1e-3 * a.square().sum(1).mean().clamp(min=1e-30)
    gram = a @ a.T + ridge * torch.eye(len(a), dtype=a.dtype, device=a.device)
    return guess + a.T @ torch.linalg.solve(gram, mean_of_outputs - a @ guess)


def center_filters(
    weight: Tensor,
    bias: Tensor,
    mean_of_outputs: Tensor | None = None,
    groups: int = 1,
    inputs: tuple[Tensor, Tensor] | None = None,
) -> Filters:
    """Zero-mean filters for a convolution, without data.

    Each filter loses its sum, where its inputs vary the least if that is known, and
    its bias gains what that contributed on average.

    Args:
        weight: (O, c_in / groups, k, k).
        bias: (O,).
        mean_of_outputs: Of the convolution without bias, (O,). None if it is not
            known: then the bias stays.
        groups: Of the convolution.
        inputs: Guesses of means and variances of its inputs, (c_in,) each.

    Returns:
        Filters and bias in fp64.
    """
    weight, bias = weight.double(), bias.double()
    parts = weight.chunk(groups)
    if inputs is None:
        guesses, shares = [None] * groups, [torch.ones_like(w[0]) for w in parts]
    else:
        guesses = inputs[0].chunk(groups)
        shares = [
            (1 / v).reshape(-1, 1, 1).expand_as(parts[0][0])
            for v in inputs[1].chunk(groups)
        ]
    lost = [
        w.sum((1, 2, 3)).reshape(-1, 1, 1, 1) * share / share.sum()
        for w, share in zip(parts, shares, strict=True)
    ]
    if mean_of_outputs is not None:
        means = mean_of_outputs.double().chunk(groups)
        found = zip(lost, parts, means, guesses, strict=True)
        gain = [part.sum((2, 3)) @ mean_of_inputs(w, m, g) for part, w, m, g in found]
        bias = bias + torch.cat(gain)
    return weight - torch.cat(lost), bias


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the ReLU of Gaussian variables, of any shape."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = mean / std.clamp(min=1e-30)
    passed, density = normal.cdf(z), normal.log_prob(z).exp()
    first = mean * passed + std * density
    second = (mean.square() + std.square()) * passed + mean * std * density
    return first, (second - first.square()).clamp(min=0)


def noise_for(model: nn.Module) -> Tensor:
    """A image of noise, (1, C, 64, 64), of as many channels as the network takes."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, nn.Conv2d(3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, first.in_channels, 64, 64, generator=generator)
    return noise.to(first.weight)


@torch.no_grad()
def equalize_by_statistics(
    model: nn.Module, layers: dict[str, Layer], forward: Callable, max_scale: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scale the channels of a network in place, by BN's statistics alone.

    Channels are taken as independent Gaussians that pass a ReLU. Which of them can
    be scaled is tried on noise; a network that does not take it stays as it is.

    Args:
        model: Of plain convolutions with a bias, in evaluation mode.
        layers: Those whose channels may be scaled, by name. Their moments follow the
            scales.
        forward: Calls the network with a image.
        max_scale: Bound of the scales.

    Returns:
        Means and variances of the inputs, (c_in,), of each layer that reads such
        channels.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        groups = ChannelFinder(model, names, forward, noise_for(model)).find()
    except Exception:  # whatever a network raises that wants something else
        return {}
    inputs = {}
    for channels in groups:
        if not {*channels.producers, *channels.consumers} <= layers.keys():
            continue
        makers = [layers[name] for name in channels.producers]
        if any(layer.std is None for layer in makers):
            continue
        biases = [model.get_submodule(name).bias for name in channels.producers]
        mean = sum(
            layer.mean + bias for layer, bias in zip(makers, biases, strict=True)
        )
        std = sum(layer.std.square() for layer in makers).sqrt()
        mean, variance = relu_moments(mean, std)
        variance = variance.clamp(min=1e-4 * variance.mean().item() + 1e-30)
        readers = []
        for name in channels.consumers:
            conv = model.get_submodule(name)
            weight = conv.weight.double().unflatten(0, (conv.groups, -1))
            for g, (w, v) in enumerate(
                zip(weight, variance.chunk(conv.groups), strict=True)
            ):
                readers.append(
                    Reader(
                        slice(g * len(v), (g + 1) * len(v)),
                        w.flatten(2).sum(2).T,
                        torch.diag(w[0, 0].numel() / v),
                        (w.square().sum((0, 2, 3)) @ v).item() + 1e-30,
                    )
                )
        u = least_used_direction(readers, max_scale)
        scale_channels(model, channels, 1 / u)
        for layer in makers:
            layer.mean, layer.std = layer.mean / u, layer.std / u
        for name in channels.consumers:
            inputs[name] = mean / u, variance / u.square()
    return inputs


# --- with data ---------------------------------------------------------------------


def sample_patches(conv: nn.Conv2d, x: Tensor, index: Tensor) -> Tensor:
    """What a convolution sees at some of its output's positions.

    Args:
        conv: The convolution.
        x: Its input, (N, c_in, H, W).
        index: Positions in the flattened (N, H', W') of the output, (P,).

    Returns:
        (P, groups, c_in / groups * k * k), fp32 at least.
    """
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    out = [
        (x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    s = x.stride()
    patches = x.as_strided(
        (len(x), *out, x.shape[1], *kernel),
        (s[0], s[2] * stride[0], s[3] * stride[1], s[1])
        + (s[2] * dilation[0], s[3] * dilation[1]),
    )
    rows = patches[unravel_index(index, (len(x), *out))]
    rows = rows.reshape(len(index), conv.groups, -1)
    return rows if rows.dtype == torch.float64 else rows.float()


class _Moments:
    """First and second moments of patches X and of the outputs Y they should give.

    Sums are in fp64. Blocks of patches are multiplied in their own precision, less
    a mean that is roughly theirs, so that nothing large cancels.
    """

    block = 4096

    def __init__(self, x0: Tensor, y0: Tensor) -> None:
        """x0 (groups, n) and y0 (groups, O / groups) are roughly the means."""
        (g, n), o = x0.shape, y0.shape[1]
        zeros = dict(dtype=torch.float64, device=x0.device)
        self.x0, self.y0 = x0, y0
        self.count = 0
        self.x = torch.zeros(g, n, **zeros)
        self.y = torch.zeros(g, o, **zeros)
        self.xx = torch.zeros(g, n, n, **zeros)
        self.xy = torch.zeros(g, n, o, **zeros)
        self.yy = torch.zeros(g, o, **zeros)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (P, groups, n), y (P, groups, O / groups)."""
        x = (x - self.x0).transpose(0, 1)
        y = (y - self.y0).transpose(0, 1)
        for a, b in zip(x.split(self.block, 1), y.split(self.block, 1), strict=True):
            self.x += a.sum(1).double()
            self.y += b.sum(1).double()
            self.xx += a.transpose(1, 2) @ a
            self.xy += a.transpose(1, 2) @ b
            self.yy += b.square().sum(1).double()
        self.count += x.shape[1]

    def __add__(self, other: '_Moments') -> '_Moments':
        both = _Moments(self.x0, self.y0)
        for name in ('count', 'x', 'y', 'xx', 'xy', 'yy'):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def center(self) -> '_Centered':
        x, y = self.x / self.count, self.y / self.count
        return _Centered(
            x + self.x0,
            y + self.y0,
            self.xx / self.count - x.unsqueeze(2) * x.unsqueeze(1),
            self.xy / self.count - x.unsqueeze(2) * y.unsqueeze(1),
            self.yy / self.count - y.square(),
        )


@dataclass
class _Centered:
    """Means of X and Y, their covariances, and the variances of Y."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def solve(self, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Filters (groups, n, O / groups) and bias: see :func:`fit_filters`."""
        diagonal = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        r = ridge * diagonal.clamp(min=1e-30)[:, None, None]
        eye = torch.eye(self.xx.shape[1], dtype=r.dtype, device=r.device)
        factor = torch.linalg.cholesky(self.xx + r * eye)
        right = torch.cat([self.xy + r * prior, torch.ones_like(prior[..., :1])], 2)
        solution = torch.cholesky_solve(right, factor)
        free, ones = solution[..., :-1], solution[..., -1:]
        w = free - ones * (free.sum(1, keepdim=True) / ones.sum(1, keepdim=True))
        return w, self.y - (w * self.x.unsqueeze(2)).sum(1)

    def error(self, w: Tensor, b: Tensor) -> float:
        """Sum of the mean squared errors of all outputs, over their variances'."""
        bias = self.y - (w * self.x.unsqueeze(2)).sum(1) - b
        rest = self.yy - 2 * (w * self.xy).sum(1) + (w * (self.xx @ w)).sum(1)
        rest = rest.clamp(min=0) + bias.square()
        return (rest.sum() / self.yy.sum().clamp(min=1e-30)).item()


def sum_of(moments: Sequence[_Moments]) -> _Moments:
    return sum(moments[1:], moments[0])


def fit_filters(
    halves: Sequence[_Moments], prior: Tensor, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, Tensor, float]:
    """The zero-mean filters that come nearest to the outputs, by least squares.

    Minimizes E|y - w'x - b|^2 + r |w - w0|^2 subject to 1'w = 0, with w0 the
    original filters. r, as a fraction of the mean variance of the inputs, is the one
    with which filters fitted to either half of the images do best on the other.

    Args:
        halves: Moments of patches and outputs, of one half of the images each.
        prior: The original filters, (groups, n, O / groups), fp64.
        ridges: Candidates for r; > 0.

    Returns:
        Filters (groups, n, O / groups), bias (groups, O / groups), and the error as
        of :class:`ConvertedLayer`.
    """
    halves = [half for half in halves if half.count]
    both = sum_of(halves).center()
    if len(halves) == 1:  # a single image
        w, b = both.solve(prior, max(ridges))
        return w, b, math.sqrt(both.error(w, b))
    a, b = (half.center() for half in halves)
    errors = {
        r: (a.error(*b.solve(prior, r)) + b.error(*a.solve(prior, r))) / 2
        for r in ridges
    }
    best = min(errors, key=errors.__getitem__)
    return *both.solve(prior, best), math.sqrt(errors[best])


class _Stop(Exception):
    """Ends a forward pass as soon as a layer has been seen."""


@dataclass
class _Call:
    """What a layer reads and puts out, and what is added to that, if anything is."""

    x: Tensor
    y: Tensor
    added: Tensor | None = None


class _Watch(TorchDispatchMode):
    """Sees the calls of a layer in a forward pass, and ends it after the last one.

    Args:
        number: Of calls.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.calls: list[_Call] = []
        self.unused: Tensor | None = None

    def look(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        # what follows may work in place
        self.calls.append(_Call(args[0].clone(), output.clone()))
        self.unused = output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        y = self.unused
        if y is not None and any(x is y for x in tree_leaves((args, kwargs))):
            self.unused = None
            if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
                others = [x for x in args if isinstance(x, Tensor) and x is not y]
                if not kwargs and [x.shape for x in others] == [y.shape]:
                    self.calls[-1].added = others[0].clone()
            if len(self.calls) == self.number:
                raise _Stop
        return func(*args, **(kwargs or {}))


def watch(
    model: nn.Module, batch: Any, forward: Callable, name: str, number: int
) -> list[_Call]:
    """The calls of a layer in a forward pass."""
    watcher = _Watch(number)
    hook = model.get_submodule(name).register_forward_hook(watcher.look)
    try:
        with watcher:
            forward(model, batch)
    except _Stop:
        pass
    finally:
        hook.remove()
    return watcher.calls


def _inputs_of(batch: Any) -> Any:
    return batch.get('inputs', batch) if isinstance(batch, dict) else batch


def images_in(batch: Any) -> int | None:
    """How many images a batch has; None if it does not tell."""
    inputs = _inputs_of(batch)
    if isinstance(batch, dict) and isinstance(inputs, (list, tuple)):
        return len(inputs)
    numbers = {len(x) for x in tensors_in(inputs) if x.dim() == 4}
    return numbers.pop() if len(numbers) == 1 else None


def first_image(batch: Any) -> Any:
    """A batch of the first image of a batch, or the batch if it cannot be cut."""
    if isinstance(batch, Tensor) and batch.dim() == 4:
        return batch[:1]
    if isinstance(batch, dict) and 'inputs' in batch:
        number = images_in(batch)
        parts = batch.values()
        if all(
            isinstance(x, (list, tuple, Tensor)) and len(x) == number for x in parts
        ):
            return {key: value[:1] for key, value in batch.items()}
    return batch


def _check_finite(batches: Sequence[Any]) -> None:
    for batch in batches:
        for x in tensors_in(_inputs_of(batch)):
            if not x.isfinite().all():
                raise ValueError(
                    'The calibration images have values that are not finite'
                )


@dataclass
class _Calls:
    """How often a layer is called per batch, and its positions in all of them."""

    per_batch: list[int] = field(default_factory=list)
    positions: int = 0


def _trace(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Callable,
    layers: list[Layer],
    progress: bool = False,
) -> tuple[dict[str, _Calls], list[set[str]]]:
    """The layers that are called, in the order of their first calls.

    And the names of all readers that each batch reaches.
    """
    calls: dict[str, _Calls] = {}
    reached: list[set[str]] = [set() for _ in batches]
    readers = readers_of(model)
    names = {model.get_submodule(layer.name): layer.name for layer in layers}

    def count(module: nn.Module, y: Any, batch: int) -> None:
        reached[batch].add(readers[module])
        name = names.get(module)
        if name is not None:
            of_layer = calls.setdefault(name, _Calls([0] * len(batches)))
            of_layer.per_batch[batch] += 1
            of_layer.positions += y[:, 0].numel()

    for i, batch in enumerate(tqdm(batches, 'looking', disable=not progress)):
        hooks = [
            m.register_forward_hook(lambda m, x, y, i=i: count(m, y, i))
            for m in readers
        ]
        try:
            forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
    return calls, reached


class Calibration:
    """Forward passes of a plain network, and of what it becomes, on the same images.

    Args:
        model: The network of plain convolutions, in evaluation mode.
        batches: As ``forward`` takes them.
        forward: Calls a network with a batch.
        max_positions: Output positions, at most, that a layer is fitted to.
        seed: Of the choice of positions.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[nn.Module, Any], Any],
        max_positions: int,
        seed: int,
    ) -> None:
        self.model = model
        self.batches = batches
        self.forward = forward
        self.max_positions = max_positions
        self.generator = torch.Generator().manual_seed(seed)
        self.images = [images_in(batch) for batch in batches]
        self.offsets = [0, *accumulate(n or 0 for n in self.images)]

    def equalize(
        self,
        calls: dict[str, _Calls],
        others: Collection[str],
        reached: Sequence[set[str]],
        max_scale: float,
        progress: bool,
    ) -> None:
        """Scale the channels of the network, so that fits lose less.

        The network computes the same. Only channels of layers that are converted, or
        among the others, and that only such layers read, are scaled. None are if no
        batch reaches all that any batch does, for who reads them is not known then.
        """
        names = [
            name for name, m in self.model.named_modules() if isinstance(m, nn.Conv2d)
        ]
        everything = set().union(*reached)
        whole = [
            batch
            for batch, of_batch in zip(self.batches, reached, strict=True)
            if of_batch == everything
        ]
        if not whole:
            return
        for batch in (first_image(whole[0]), whole[0]):
            finder = ChannelFinder(self.model, names, self.forward, batch, progress)
            if finder.reached() == everything:
                break
        groups = [
            channels
            for channels in finder.find()
            if {*channels.producers, *channels.consumers} <= {*calls, *others}
            and calls.keys() & {*channels.consumers}
        ]
        for channels in tqdm(groups, 'equalizing', disable=not progress):
            readers = []
            for name in channels.consumers:
                if name in calls:
                    readers += self._readers(name, calls[name])
            u = least_used_direction(readers, max_scale)
            scale_channels(self.model, channels, 1 / u)

    def _readers(self, name: str, calls: _Calls) -> list[Reader]:
        conv = self.model.get_submodule(name)
        moments = sum_of(self._moments(name, calls, self.model, None)).center()
        n, kernel = conv.weight[0].numel(), conv.weight[0, 0].numel()
        diagonal = moments.xx.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        eye = torch.eye(n, dtype=diagonal.dtype, device=diagonal.device)
        regular = moments.xx + 1e-3 * diagonal.clamp(min=1e-30) * eye
        precision = torch.linalg.inv(regular)
        precision = precision.unflatten(1, (-1, kernel)).unflatten(3, (-1, kernel))
        filters = conv.weight.double().flatten(2).sum(2)
        filters = filters.unflatten(0, (conv.groups, -1)).transpose(1, 2)
        width = filters.shape[1]
        return [
            Reader(
                slice(g * width, (g + 1) * width),
                filters[g],
                precision[g].sum((1, 3)),
                moments.yy.sum().clamp(min=1e-30).item(),
            )
            for g in range(conv.groups)
        ]

    def fit(
        self, name: str, calls: _Calls, converted: nn.Module, local: bool
    ) -> tuple[Filters, ConvertedLayer] | None:
        """The best zero-mean filters of a layer, or None if it never saw a image.

        Args:
            name: Of the layer.
            calls: Of the layer.
            converted: The network, with every layer before this one converted.
            local: Aim at what the layer would put out with its original filters on
                the inputs that it gets, and not at what it puts out in the original
                network.
        """
        conv = self.model.get_submodule(name)
        w = conv.weight.double().reshape(conv.groups, -1, conv.weight[0].numel())
        w = w.transpose(1, 2)
        halves = None if local else self._moments(name, calls, converted, None)
        if halves is None:  # or the calls of the two networks do not correspond
            local = True
            b = conv.bias.double().reshape(conv.groups, -1)
            halves = self._moments(name, calls, converted, (w, b))
        if not halves:
            return None
        filters, bias, error = fit_filters(halves, w)
        filters = filters.transpose(1, 2).reshape(conv.weight.shape)
        line = ConvertedLayer(name, 'local' if local else 'fitted', error)
        return (filters, bias.flatten()), line

    def _moments(
        self, name: str, calls: _Calls, converted: nn.Module, original: Filters | None
    ) -> list[_Moments] | None:
        halves: list[_Moments] = []
        conv = converted.get_submodule(name)
        keep = min(1.0, self.max_positions / max(calls.positions, 1))
        used = [i for i, count in enumerate(calls.per_batch) if count]
        for turn, i in enumerate(used):
            batch, count = self.batches[i], calls.per_batch[i]
            seen = watch(converted, batch, self.forward, name, count)
            aims = seen
            if original is None and converted is not self.model:
                aims = watch(self.model, batch, self.forward, name, count)
                if [call.y.shape for call in seen] != [call.y.shape for call in aims]:
                    return None
            for call, aim in zip(seen, aims, strict=True):
                x, y = call.x, aim.y
                if call.added is not None and aim.added is not None:
                    y = y + (aim.added - call.added)
                positions = y[:, 0].numel()
                if not positions:
                    continue
                index = torch.randperm(positions, generator=self.generator)
                index = index[: max(1, round(keep * positions))].to(x.device)
                patches = sample_patches(conv, x, index)
                if original is None:
                    y = y.movedim(1, -1).flatten(0, 2)[index].to(patches)
                    y = y.unflatten(1, (conv.groups, -1))
                else:
                    w, b = (t.to(patches) for t in original)
                    y = torch.einsum('pgn,gno->pgo', patches, w) + b
                if not halves:
                    roughly = patches.mean(0), y.mean(0)
                    halves = [_Moments(*roughly), _Moments(*roughly)]
                row = index // (positions // len(x))
                in_second = self._in_second(i, row, len(x), turn, len(used))
                for half, rows in zip(halves, (~in_second, in_second), strict=True):
                    half.add(patches[rows], y[rows])
        return halves

    def _in_second(
        self, batch: int, row: Tensor, rows: int, turn: int, turns: int
    ) -> Tensor:
        """Whether rows of a layer's input belong to the second half of the images.

        The halves share no image. Rows that are no images, such as those of
        proposals, go with their batch, every other one of those that reach the
        layer, or, of a single batch, by their order, in which at most one image
        comes to both halves.
        """
        if rows == self.images[batch]:
            return (row + self.offsets[batch]) % 2 == 1
        if turns == 1:
            return row >= rows // 2
        return torch.full_like(row, turn % 2 == 1, dtype=torch.bool)


def run_model(model: nn.Module, batch: Any) -> Any:
    """A forward pass: ``test_step`` of MMEngine's models, ``model(batch)`` of others.

    Tuples and lists are positional arguments of others, dicts keyword arguments.
    """
    if isinstance(model, BaseModel) and not isinstance(batch, Tensor):
        return model.test_step(batch)
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, dict) else model(*batch)


@torch.no_grad()
def center_network(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any] | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] = run_model,
    max_scale: float = MAX_SCALE,
    max_positions: int = 2**15,
    unaligned: Sequence[str] = (),
    sweeps: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> tuple[dict[str, Filters], list[ConvertedLayer]]:
    """Zero-mean filters for the convolutions of a network.

    Args:
        model: A network of plain convolutions that have a bias, in evaluation mode.
        layers: Those to convert, and those to keep.
        others: As of :func:`convert_to_pws`.

    Returns:
        Filters and bias, fp64, of every layer that is converted, or whose channels
        were scaled, by name; what became of each layer, in the order of conversion.

    Raises:
        ValueError: If the batches never reach a layer.
    """
    wanted = {layer.name: layer for layer in layers if not layer.kept}
    scaled = {layer.name: layer for layer in layers if layer.kept and layer.scales}
    calls: dict[str, _Calls] = {}
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    if batches is None:
        model = copy.deepcopy(model)
        either = {**wanted, **scaled}
        inputs = equalize_by_statistics(model, either, forward, max_scale)
    else:
        _check_finite(batches)
        chosen = list(wanted.values())
        calls, reached = _trace(model, batches, forward, chosen, progress)
        if not calls:
            raise ValueError('The calibration images reach no layer to be converted')
        model = copy.deepcopy(model)
        calibration = Calibration(model, batches, forward, max_positions, seed)
        calibration.equalize(calls, scaled, reached, max_scale, progress)
        converted = copy.deepcopy(model)
    filters: dict[str, Filters] = {}
    lines: dict[str, ConvertedLayer] = {}
    order = [*calls, *(name for name in wanted if name not in calls)]
    for name in tqdm(order * sweeps, 'converting', disable=not progress, unit='conv'):
        fitted = None
        if name in calls:
            local = any(re.search(pattern, name) for pattern in unaligned)
            fitted = calibration.fit(name, calls[name], converted, local)
        if fitted is None:
            conv, mean = model.get_submodule(name), wanted[name].mean
            method = 'mean' if mean is None else 'statistics'
            fitted = (
                center_filters(
                    conv.weight, conv.bias, mean, conv.groups, inputs.get(name)
                ),
                ConvertedLayer(name, method),
            )
        filters[name], lines[name] = fitted
        if calls:
            conv = converted.get_submodule(name)
            conv.weight.copy_(filters[name][0])
            conv.bias.copy_(filters[name][1])
    for name in scaled:
        conv = model.get_submodule(name)
        filters[name] = conv.weight.double(), conv.bias.double()
    kept = [ConvertedLayer(x.name, 'kept', reason=x.kept) for x in layers if x.kept]
    return filters, [*kept, *lines.values()]
