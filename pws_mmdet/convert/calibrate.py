"""Find the zero-mean filters of a whole network, layer by layer."""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .equalize import (
    ChannelFinder,
    Reader,
    least_used_direction,
    scale_channels,
)
from .forward import (
    Call,
    Calls,
    check_images,
    count_calls,
    first_image,
    images_in,
    watch,
)
from .layer import ConvertedLayer, Filters, Layer
from .least_squares import Moments, fit_filters, sample_patches, sum_of
from .options import ConversionOptions
from .zero_mean import center_filters, equalize_by_statistics


class Calibration:
    """Fits layers on calibration images.

    Two networks run on the same images: the original plain network, and a copy whose
    layers are replaced one after the other by zero-mean ones.

    Args:
        model: The original network of plain convolutions, in evaluation mode.
        batches: As ``options.forward`` takes them.
        options: The options of the conversion.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], options: ConversionOptions
    ) -> None:
        self.model = model
        self.batches = batches
        self.options = options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.images = [images_in(batch) for batch in batches]
        self.offsets = [0, *accumulate(n or 0 for n in self.images)]

    def equalize(
        self,
        calls: Mapping[str, Calls],
        others: Collection[str],
        reached: Sequence[set[str]],
    ) -> None:
        """Scale the channels of the network in place, so that fits lose less.

        The network computes the same afterwards. Channels are scaled if only layers in
        ``calls`` or ``others`` produce and read them. If no single batch reaches all
        layers that any batch reaches, nothing is scaled: then no forward pass shows
        all layers that read a channel.

        Args:
            calls: The calls of the layers to convert, by name.
            others: Names of other layers whose channels may be scaled.
            reached: For each batch, the names of the modules that it reaches.
        """
        names = [
            name for name, m in self.model.named_modules() if isinstance(m, nn.Conv2d)
        ]
        progress = self.options.progress
        everything = set().union(*reached)
        whole = [
            batch
            for batch, of_batch in zip(self.batches, reached, strict=True)
            if of_batch == everything
        ]
        if not whole:
            return
        for batch in (first_image(whole[0]), whole[0]):
            finder = ChannelFinder(
                self.model, names, self.options.forward, batch, progress
            )
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
            if readers:
                u = least_used_direction(readers, self.options.max_scale)
                scale_channels(self.model, channels, 1 / u)

    def _readers(self, name: str, calls: Calls) -> list[Reader]:
        conv = self.model.get_submodule(name)
        halves = self.moments(name, calls, self.model, None)
        if not halves:  # all its inputs are empty
            return []
        moments = sum_of(halves).center()
        kernel = conv.weight[0, 0].numel()
        precision = torch.cholesky_inverse(moments.factor(1e-3)[0])
        precision = precision.unflatten(1, (-1, kernel)).unflatten(3, (-1, kernel))
        filters = conv.weight.double().flatten(2).sum(2)
        filters = filters.unflatten(0, (conv.groups, -1)).transpose(1, 2)
        width = filters.shape[1]
        return [
            Reader(
                slice(g * width, (g + 1) * width),
                filters[g],
                precision[g].sum((1, 3)),
                moments.variance(),
            )
            for g in range(conv.groups)
        ]

    def fit(
        self, name: str, calls: Calls, converted: nn.Module, local: bool
    ) -> tuple[Filters, ConvertedLayer] | None:
        """Fit the zero-mean filters of one layer.

        Args:
            name: Name of the layer.
            calls: Its calls.
            converted: The network in which all layers before this one are converted.
            local: Fit to the outputs of the layer's own original filters on the
                inputs that it gets, instead of its outputs in the original network.

        Returns:
            The filters and the record of the layer; None if it had no inputs.
        """
        conv = self.model.get_submodule(name)
        w = conv.weight.double().reshape(conv.groups, -1, conv.weight[0].numel())
        w = w.transpose(1, 2)
        halves = None if local else self.moments(name, calls, converted, None)
        if halves is None:  # also if the calls in the two networks do not correspond
            local = True
            b = conv.bias.double().reshape(conv.groups, -1)
            halves = self.moments(name, calls, converted, (w, b))
        if not halves:
            return None
        filters, bias, error = fit_filters(halves, w)
        filters = filters.transpose(1, 2).reshape(conv.weight.shape)
        line = ConvertedLayer(name, 'local' if local else 'fitted', error)
        return (filters, bias.flatten()), line

    def moments(
        self, name: str, calls: Calls, converted: nn.Module, original: Filters | None
    ) -> list[Moments] | None:
        """Collect the moments of a layer's patches and wanted outputs.

        Args:
            name: Name of the layer.
            calls: Its calls.
            converted: The network whose patches are taken.
            original: The filters that compute the wanted outputs from the patches.
                None takes the outputs of the layer in the original network.

        Returns:
            Moments of each half of the images. Empty if the layer had no inputs. None
            if its calls in the two networks do not correspond.
        """
        halves: list[Moments] = []
        keep = min(1.0, self.options.max_positions / max(calls.positions, 1))
        used = [i for i, count in enumerate(calls.per_batch) if count]
        for turn, i in enumerate(used):
            pairs = self._calls_of(name, i, calls, converted, original is None)
            if pairs is None:
                return None
            for call, aim in pairs:
                sample = self._sample(
                    converted.get_submodule(name), call, aim, keep, original
                )
                if sample is None:
                    continue
                patches, y, row = sample
                if not halves:
                    groups, n, outputs = *patches.shape[1:], y.shape[2]
                    halves = [
                        Moments(groups, n, outputs, patches.device) for _ in range(2)
                    ]
                in_second = self._in_second(i, row, len(call.x), turn, len(used))
                for half, rows in zip(halves, (~in_second, in_second), strict=True):
                    half.add(patches[rows], y[rows])
        return halves

    def _calls_of(
        self, name: str, i: int, calls: Calls, converted: nn.Module, in_original: bool
    ) -> list[tuple[Call, Call]] | None:
        """Return the calls of a layer for batch ``i``, and for each the call to aim at.

        Returns:
            None if the calls in the two networks do not correspond.
        """
        batch, count = self.batches[i], calls.per_batch[i]
        forward = self.options.forward
        seen = watch(converted, batch, forward, name, count)
        if not in_original or converted is self.model:
            return [(call, call) for call in seen]
        aims = watch(self.model, batch, forward, name, count)
        if [call.y.shape for call in seen] != [call.y.shape for call in aims]:
            return None
        return list(zip(seen, aims, strict=True))

    def _sample(
        self,
        conv: nn.Conv2d,
        call: Call,
        aim: Call,
        keep: float,
        original: Filters | None,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Choose output positions of a call at random.

        Returns:
            The patches, the wanted outputs and the rows of the batch, for each
            position; None if the output is empty.
        """
        x, y = call.x, aim.y
        if call.added is not None and aim.added is not None:
            # Aim at the original sum: the layer makes up for the other summand's error.
            y = y + (aim.added - call.added)
        positions = y[:, 0].numel()
        if not positions:
            return None
        index = torch.randperm(positions, generator=self.generator)
        index = index[: max(1, round(keep * positions))].to(x.device)
        patches = sample_patches(conv, x, index)
        if original is None:
            y = y.movedim(1, -1).flatten(0, 2)[index].to(patches)
            y = y.unflatten(1, (conv.groups, -1))
        else:
            w, b = (t.to(patches) for t in original)
            y = torch.einsum('pgn,gno->pgo', patches, w) + b
        return patches, y, index // (positions // len(x))

    def _in_second(
        self, batch: int, row: Tensor, rows: int, turn: int, turns: int
    ) -> Tensor:
        """Tell which rows of a layer's input belong to the second half of the images.

        No image is in both halves. If the rows are not the images of the batch, as
        behind proposals, whole batches alternate between the halves. If only one batch
        reaches the layer, its rows are cut in the middle; then at most one image is in
        both halves.
        """
        if rows == self.images[batch]:
            return (row + self.offsets[batch]) % 2 == 1
        if turns == 1:
            return row >= rows // 2
        return torch.full_like(row, turn % 2 == 1, dtype=torch.bool)


@torch.no_grad()
def fit_network(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any] | None = None,
    options: ConversionOptions | None = None,
) -> tuple[dict[str, Filters], list[ConvertedLayer]]:
    """Find zero-mean filters for the convolutions of a network.

    Args:
        model: A network of plain convolutions that have a bias, in evaluation mode. It
            is not changed.
        layers: Its convolutions, those to convert and those to keep.
        batches: Calibration batches; None for a conversion without images.
        options: The options of the conversion.

    Returns:
        Filters and bias, fp64, by name, of each layer that is converted or whose
        channels were scaled; and a record of each layer, in the order of conversion.

    Raises:
        ValueError: If the images reach no layer to convert, or hold NaN or infinity.
    """
    options = options or ConversionOptions()
    wanted = {layer.name: layer for layer in layers if not layer.kept}
    scaled = {layer.name: layer for layer in layers if layer.kept and layer.scales}
    if batches is None:
        model = copy.deepcopy(model)
        inputs = equalize_by_statistics(
            model, {**wanted, **scaled}, options.forward, options.max_scale
        )
        found = {
            name: _without_images(model, layer, inputs.get(name))
            for name, layer in tqdm(
                wanted.items(), 'converting', disable=not options.progress, unit='conv'
            )
        }
    else:
        model, found = _with_images(model, wanted, scaled, batches, options)
    filters = {name: of_layer for name, (of_layer, _) in found.items()}
    for name in scaled:
        conv = model.get_submodule(name)
        filters[name] = conv.weight.double(), conv.bias.double()
    kept = [ConvertedLayer(x.name, 'kept', reason=x.kept) for x in layers if x.kept]
    return filters, [*kept, *(line for _, line in found.values())]


def _with_images(
    model: nn.Module,
    wanted: Mapping[str, Layer],
    scaled: Collection[str],
    batches: Sequence[Any],
    options: ConversionOptions,
) -> tuple[nn.Module, dict[str, tuple[Filters, ConvertedLayer]]]:
    """Scale a copy of a network, and fit all its layers.

    Returns:
        The scaled copy; filters and record of each layer to convert.
    """
    check_images(batches)
    calls, reached = count_calls(
        model, batches, options.forward, list(wanted), options.progress
    )
    if not calls:
        raise ValueError('The calibration images reach no layer to be converted')
    model = copy.deepcopy(model)
    calibration = Calibration(model, batches, options)
    calibration.equalize(calls, scaled, reached)
    converted = copy.deepcopy(model)
    found: dict[str, tuple[Filters, ConvertedLayer]] = {}
    order = [*calls, *(name for name in wanted if name not in calls)] * options.sweeps
    for name in tqdm(order, 'converting', disable=not options.progress, unit='conv'):
        fitted = None
        if name in calls:
            local = any(re.search(pattern, name) for pattern in options.unaligned)
            fitted = calibration.fit(name, calls[name], converted, local)
        found[name] = fitted or _without_images(model, wanted[name], None)
        conv = converted.get_submodule(name)
        (weight, bias), _ = found[name]
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
    return model, found


def _without_images(
    model: nn.Module, layer: Layer, inputs: tuple[Tensor, Tensor] | None
) -> tuple[Filters, ConvertedLayer]:
    """Zero-mean filters of a layer that no image reaches."""
    conv = model.get_submodule(layer.name)
    filters = center_filters(conv.weight, conv.bias, layer.mean, conv.groups, inputs)
    method = 'mean' if layer.mean is None else 'statistics'
    return filters, ConvertedLayer(layer.name, method)
