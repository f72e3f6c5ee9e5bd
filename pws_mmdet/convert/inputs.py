"""Look at the inputs of the layers, and scale the channels of a network by them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..utils.log import warn
from .equalize import ChannelFinder, Reader, least_used_direction, scale_channels
from .forward import Forward, crop, first_image, readers_of
from .least_squares import NOISE, Moments
from .lockstep import LockStep, next_layer
from .memory import GIB, LivingTensors, default_limit
from .options import ConversionOptions
from .sampling import Sampler

MATRICES = 12  # of n x n numbers in fp64, which a fit needs
SMALL = 256  # rows and columns of the image on which channels are scaled by trial
RIDGE = 1e-3  # as a fraction of the mean variance of the inputs


@dataclass
class Calls:
    """How often one layer is called.

    Attributes:
        per_batch: The number of calls for each batch.
        positions: The number of output positions, N * H * W, of all calls together.
    """

    per_batch: list[int] = field(default_factory=list)
    positions: int = 0


@dataclass
class Inputs:
    """Statistics of the inputs and the outputs of a convolution.

    Attributes:
        precision: Inverse covariance of the input patches of each group, summed over
            the kernels, (groups, c_in / groups, c_in / groups).
        mean: Mean of each output, (O,).
        variance: Variance of each output, (O,).
    """

    precision: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d, moments: Moments) -> 'Inputs':
        """Compute them from the moments of a convolution's patches and outputs."""
        covariances = moments.center()
        kernel = conv.weight[0, 0].numel()
        precision = torch.cholesky_inverse(covariances.factor(RIDGE)[0])
        precision = precision.unflatten(1, (-1, kernel)).unflatten(3, (-1, kernel))
        return cls(
            precision.sum((2, 4)), covariances.y.flatten(), covariances.yy.flatten()
        )

    def scale_outputs(self, scale: Tensor) -> None:
        """Follow a scaling of the outputs by a factor of each channel, (O,)."""
        self.mean = self.mean * scale
        self.variance = self.variance * scale.square()

    def readers(self, conv: nn.Conv2d) -> list[Reader]:
        """Describe the groups of the convolution as readers of their inputs."""
        filters = conv.weight.double().flatten(2).sum(2)
        filters = filters.unflatten(0, (conv.groups, -1)).transpose(1, 2)
        width = filters.shape[1]
        noise = NOISE * self.mean.square().sum().item() + 1e-30
        variance = max(self.variance.sum().item(), noise)
        return [
            Reader(
                slice(g * width, (g + 1) * width),
                filters[g],
                self.precision[g],
                variance,
            )
            for g in range(conv.groups)
        ]


@dataclass
class FirstCalls:
    """The calls of a layer for the first batch.

    Attributes:
        number: How often the layer is called.
        positions: The number of output positions of all calls together.
        held: The most bytes of tensors that exist at the end of a call.
    """

    number: int = 0
    positions: int = 0
    held: int = 0


def look_at_first_batch(
    model: nn.Module, batch: Any, names: Collection[str], forward: Forward
) -> dict[str, FirstCalls]:
    """Run a network on a batch, and return the calls of each layer that it calls."""
    found: dict[str, FirstCalls] = {}
    living = LivingTensors()

    def note(name: str, y: Tensor) -> None:
        calls = found.setdefault(name, FirstCalls())
        calls.number += 1
        calls.positions += y[:, 0].numel()
        calls.held = max(calls.held, living.bytes)

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, x, y, name=name: note(name, y)
        )
        for name in names
    ]
    try:
        with torch.no_grad(), living:
            forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def batches_within(
    limit: float | None,
    model: nn.Module,
    batches: Sequence[Any],
    first: Mapping[str, FirstCalls],
) -> Sequence[Any]:
    """Return as many batches as fit into the memory. Warn if these are not all.

    In lock step, the forward passes of two networks hold their tensors at a layer for
    all batches.

    Args:
        limit: The memory in GiB; None for :func:`default_limit`.
        model: The network.
        batches: The batches, assumed to be as large as the first one.
        first: What :func:`look_at_first_batch` found.
    """
    device = next(iter(model.parameters())).device
    limit = default_limit(device) if limit is None else limit
    number, needed = len(batches), 0.0
    for name, calls in first.items():
        weight = model.get_submodule(name).weight
        matrix = 8 * weight[0].numel() ** 2 * model.get_submodule(name).groups
        fixed, of_batch = MATRICES * matrix, 2 * calls.held
        needed = max(needed, (fixed + len(batches) * of_batch) / GIB)
        if of_batch:
            number = min(number, int((limit * GIB - fixed) / of_batch))
    number = max(number, 1)
    if number < len(batches):
        warn(
            f'The conversion takes the first {number} of {len(batches)} batches: all '
            f'need {needed:.1f} GiB of memory, and max_memory is {limit:.1f}'
        )
    return batches[:number]


@dataclass
class Look:
    """What a forward pass of all batches shows.

    Attributes:
        calls: The calls of each layer that was called, in the order of the first calls.
        inputs: Statistics of each of these layers, unless all its inputs are empty.
        reached: For each batch, the names of the modules that it reaches, among those
            of ``readers_of``.
    """

    calls: dict[str, Calls] = field(default_factory=dict)
    inputs: dict[str, Inputs] = field(default_factory=dict)
    reached: list[set[str]] = field(default_factory=list)


def look_at_inputs(
    model: nn.Module,
    batches: Sequence[Any],
    names: Collection[str],
    first: Mapping[str, FirstCalls],
    options: ConversionOptions,
) -> Look:
    """Run a network on all batches, in lock step.

    Args:
        model: The network.
        batches: As ``options.forward`` takes them.
        names: Names of the convolutions to look at.
        first: What :func:`look_at_first_batch` found.
        options: The options of the conversion.
    """
    look = Look()
    moments: dict[str, Moments] = {}
    sampler = Sampler(batches, options.seed)
    progress = tqdm(
        total=len(first), desc='looking', disable=not options.progress, unit='conv'
    )
    readers = readers_of(model)
    with torch.no_grad(), LockStep(options.forward, len(batches)) as step:
        passes = step.start(model, batches, names, readers)
        while (name := next_layer(passes)) is not None:
            conv = model.get_submodule(name)
            calls = look.calls.setdefault(name, Calls([0] * len(batches)))
            expected = first.get(name, FirstCalls(number=1))
            positions = expected.positions * len(batches)
            keep = min(1.0, options.max_positions / max(positions, 1))
            for i, one in enumerate(passes):
                if one.call is None or one.call.name != name:
                    continue
                calls.per_batch[i] += 1
                calls.positions += one.call.y[:, 0].numel()
                sample = sampler.sample(conv, one.call, one.call, keep)
                one.call = None
                if sample is None:
                    continue
                if name not in moments and name not in look.inputs:
                    moments[name] = sample.empty_moments()
                if name in moments:
                    moments[name].add(sample.patches, sample.y)
            if min(calls.per_batch) >= expected.number and name in moments:
                look.inputs[name] = Inputs.of(conv, moments.pop(name))
                progress.update()
        look.reached = [one.reached for one in passes]
    for name, rest in moments.items():
        look.inputs[name] = Inputs.of(model.get_submodule(name), rest)
    progress.close()
    return look


@torch.no_grad()
def equalize_by_inputs(
    model: nn.Module,
    look: Look,
    others: Collection[str],
    batches: Sequence[Any],
    options: ConversionOptions,
) -> None:
    """Scale the channels of a network in place, so that fits lose less.

    The network computes the same afterwards. Channels are scaled if only layers of
    ``look`` or ``others`` produce and read them. If no single batch reaches all layers
    that any batch reaches, nothing is scaled: then no forward pass shows all layers
    that read a channel.

    Args:
        model: The network.
        look: What :func:`look_at_inputs` found. It is changed as the channels are.
        others: Names of other layers whose channels may be scaled.
        batches: The calibration batches.
        options: The options of the conversion.
    """
    finder = _finder(model, look, batches, options)
    if finder is None:
        return
    groups = [
        channels
        for channels in finder.find()
        if {*channels.producers, *channels.consumers} <= {*look.calls, *others}
        and look.calls.keys() & {*channels.consumers}
    ]
    for channels in tqdm(groups, 'equalizing', disable=not options.progress):
        readers = []
        for name in channels.consumers:
            if name in look.inputs:
                readers += look.inputs[name].readers(model.get_submodule(name))
        if not readers:
            continue
        scale = 1 / least_used_direction(readers, options.max_scale)
        scale_channels(model, channels, scale)
        for name in channels.producers:
            if name in look.inputs:
                look.inputs[name].scale_outputs(scale)


def _finder(
    model: nn.Module, look: Look, batches: Sequence[Any], options: ConversionOptions
) -> ChannelFinder | None:
    """Return what finds channels on a small image that reaches all layers."""
    everything = set().union(*look.reached)
    whole = [
        batch
        for batch, reached in zip(batches, look.reached, strict=True)
        if reached == everything
    ]
    if not whole:
        return None
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    image = first_image(whole[0])
    finder = None
    for batch in (crop(image, SMALL), image, whole[0]):
        try:
            finder = ChannelFinder(
                model, names, options.forward, batch, options.progress
            )
        except Exception:  # a network need not take a crop
            if batch is whole[0]:
                raise
            continue
        if finder.reached() == everything:
            break
    return finder
