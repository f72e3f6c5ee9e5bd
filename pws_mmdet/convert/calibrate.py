"""Find the zero-mean filters of a whole network, layer by layer."""

import copy
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .forward import check_images
from .inputs import (
    Calls,
    batches_within,
    equalize_by_inputs,
    look_at_first_batch,
    look_at_inputs,
)
from .layer import ConvertedLayer, Filters, Layer
from .least_squares import Moments, fit_filters, sum_of
from .lockstep import LockStep, Pass, next_layer
from .observe import Call, watch
from .options import ConversionOptions
from .sampling import Sampler
from .zero_mean import center_filters, equalize_by_statistics

TOO_MUCH = 'zero-mean filters would lose too much of its outputs'

# Returns, for a batch, the calls of a layer in the converted network, each with the
# call to aim at. With True that is the call in the original network. None if the calls
# in the two networks do not correspond.
Pairs = Callable[[int, bool], list[tuple[Call, Call]] | None]


class Calibration:
    """Fits layers on calibration images.

    Two networks run on the same images, in lock step: the original plain network, and a
    copy whose layers are replaced one after the other by zero-mean ones.

    Args:
        model: The original network of plain convolutions, in evaluation mode.
        converted: The copy. Its layers are replaced in place.
        batches: As ``options.forward`` takes them.
        calls: The calls of each layer to fit, by name, in the order of the first calls.
        options: The options of the conversion.
        keep: Let layers stay plain that lose more than ``options.max_loss``.
    """

    def __init__(
        self,
        model: nn.Module,
        converted: nn.Module,
        batches: Sequence[Any],
        calls: Mapping[str, Calls],
        options: ConversionOptions,
        keep: bool = False,
    ) -> None:
        self.model, self.converted = model, converted
        self.batches = batches
        self.calls = calls
        self.options = options
        self.keep = keep
        self.sampler = Sampler(batches, options.seed)

    def fit_all(self) -> Iterator[tuple[str, Filters, ConvertedLayer]]:
        """Fit all layers, and put their filters into the converted network.

        Yields:
            Name, filters and record of each layer that has inputs.
        """
        left = dict.fromkeys(self.calls)
        aligned = [n for n in left if self._is_called_once(n) and not self._is_local(n)]
        with LockStep(self.options.forward, 2 * len(self.batches)) as step:
            passes = step.start(self.converted, self.batches, left)
            aims = step.start(self.model, self.batches, aligned)
            while (name := next_layer(passes)) is not None:
                if name in left:
                    del left[name]
                    pairs = self._pairs_in_step(name, passes, aims, step.skipped)
                    if fitted := self.fit(name, pairs):
                        yield name, *fitted
                    step.skipped.add(name)
                self._replace_outputs(name, passes)
        for name in left:  # layers that the converted network no longer reaches
            if fitted := self.fit(name, self._pairs_of(name)):
                yield name, *fitted

    def _is_local(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.options.unaligned)

    def _is_called_once(self, name: str) -> bool:
        return max(self.calls[name].per_batch) == 1

    def _pairs_in_step(
        self,
        name: str,
        passes: Sequence[Pass],
        aims: Sequence[Pass],
        done: Collection[str],
    ) -> Pairs:
        """Return the pairs of calls at which the passes have stopped.

        A layer that is called several times, or at which not all passes have stopped
        that call it, needs forward passes of its own.
        """
        at_layer = [one.call is not None and one.call.name == name for one in passes]
        expected = [count > 0 for count in self.calls[name].per_batch]
        if at_layer != expected or not self._is_called_once(name):
            return self._pairs_of(name)

        def pairs(i: int, in_original: bool) -> list[tuple[Call, Call]] | None:
            call = passes[i].call
            assert call is not None
            if not in_original:
                return [(call, call)]
            one = aims[i]
            while not one.ended and (one.call is None or one.call.name in done):
                one.advance()
            aim = one.call
            if aim is None or aim.name != name or aim.y.shape != call.y.shape:
                return None
            return [(call, aim)]

        return pairs

    def _pairs_of(self, name: str) -> Pairs:
        """Return pairs of calls from forward passes of their own."""
        forward = self.options.forward

        def pairs(i: int, in_original: bool) -> list[tuple[Call, Call]] | None:
            batch, number = self.batches[i], self.calls[name].per_batch[i]
            calls = watch(self.converted, batch, forward, name, number)
            if not in_original:
                return [(call, call) for call in calls]
            aims = watch(self.model, batch, forward, name, number)
            if [call.y.shape for call in calls] != [call.y.shape for call in aims]:
                return None
            return list(zip(calls, aims, strict=True))

        return pairs

    def _replace_outputs(self, name: str, passes: Sequence[Pass]) -> None:
        """Let the passes that have stopped at a layer go on with its new outputs."""
        conv = self.converted.get_submodule(name)
        for one in passes:
            if one.call is not None and one.call.name == name:
                one.call.y.copy_(conv.forward(one.call.x.to(conv.weight)))
                one.call = None

    def fit(self, name: str, pairs: Pairs) -> tuple[Filters, ConvertedLayer] | None:
        """Fit the zero-mean filters of one layer, and put them into the network.

        Args:
            name: Name of the layer.
            pairs: Its calls for each batch.

        Returns:
            The filters and the record of the layer; None if it had no inputs.
        """
        conv = self.model.get_submodule(name)
        w = conv.weight.double().reshape(conv.groups, -1, conv.weight[0].numel())
        w = w.transpose(1, 2)
        local = self._is_local(name)
        halves = None if local else self.moments(name, pairs, None)
        if halves is None:  # also if the calls in the two networks do not correspond
            local = True
            b = conv.bias.double().reshape(conv.groups, -1)
            halves = self.moments(name, pairs, (w, b))
        if not halves:
            return None
        *halves, carried = halves
        zero_mean, free = fit_filters(halves, w)
        more = max(0.0, zero_mean.error**2 - free.error**2)
        share = sum_of(halves).center().variance() / carried.center().variance()
        loss = math.sqrt(more * share)
        if self.keep and loss > self.options.max_loss:
            chosen, line = free, ConvertedLayer(name, 'kept', free.error, TOO_MUCH)
        else:
            method = 'local' if local else 'fitted'
            chosen, line = zero_mean, ConvertedLayer(name, method, zero_mean.error)
        line.loss = loss
        filters = chosen.weight.transpose(1, 2).reshape(conv.weight.shape)
        bias = chosen.bias.flatten()
        new = self.converted.get_submodule(name)
        new.weight.copy_(filters)
        new.bias.copy_(bias)
        return (filters, bias), line

    def moments(
        self, name: str, pairs: Pairs, original: Filters | None
    ) -> list[Moments] | None:
        """Collect the moments of a layer's patches and wanted outputs.

        Args:
            name: Name of the layer.
            pairs: Its calls for each batch.
            original: The filters that compute the wanted outputs from the patches.
                None takes the outputs of the layer in the original network.

        Returns:
            Moments of each half of the images, and those of what the network goes on
            with. Empty if the layer had no inputs. None if its calls in the two
            networks do not correspond.
        """
        halves: list[Moments] = []
        calls = self.calls[name]
        conv = self.converted.get_submodule(name)
        keep = min(1.0, self.options.max_positions / max(calls.positions, 1))
        used = [i for i, count in enumerate(calls.per_batch) if count]
        for turn, i in enumerate(used):
            of_batch = pairs(i, original is None)
            if of_batch is None:
                return None
            for call, aim in of_batch:
                sample = self.sampler.sample(conv, call, aim, keep, original)
                if sample is None:
                    continue
                carried = sample.carried
                if not halves:
                    halves = [sample.empty_moments() for _ in range(2)]
                    rest = Moments(1, 0, carried.shape[1], carried.device)
                rest.add(carried.new_empty(len(carried), 1, 0), carried.unsqueeze(1))
                in_second = self.sampler.in_second(
                    i, sample.row, len(call.x), turn, len(used)
                )
                for half, rows in zip(halves, (~in_second, in_second), strict=True):
                    half.add(sample.patches[rows], sample.y[rows])
        return [*halves, rest] if halves else []


@torch.no_grad()
def fit_network(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any] | None = None,
    options: ConversionOptions | None = None,
    keep: bool = False,
) -> tuple[dict[str, Filters], list[ConvertedLayer]]:
    """Find zero-mean filters for the convolutions of a network.

    Args:
        model: A network of plain convolutions that have a bias, in evaluation mode. It
            is not changed.
        layers: Its convolutions, those to convert and those to keep.
        batches: Calibration batches; None for a conversion without images.
        options: The options of the conversion.
        keep: Let layers stay plain that lose more than ``options.max_loss``.

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
            name: _without_images(
                model, layer, inputs.get(name), options.max_loss if keep else None
            )
            for name, layer in tqdm(
                wanted.items(), 'converting', disable=not options.progress, unit='conv'
            )
        }
    else:
        model, found = _with_images(model, wanted, scaled, batches, options, keep)
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
    keep: bool,
) -> tuple[nn.Module, dict[str, tuple[Filters, ConvertedLayer]]]:
    """Scale a copy of a network, and fit all its layers.

    Returns:
        The scaled copy; filters and record of each layer to convert.
    """
    check_images(batches)
    names = list(wanted)
    first = look_at_first_batch(model, batches[0], names, options.forward)
    batches = batches_within(options.max_memory, model, batches, first)
    look = look_at_inputs(model, batches, names, first, options)
    if not look.calls:
        raise ValueError('The calibration images reach no layer to be converted')
    model = copy.deepcopy(model)
    equalize_by_inputs(model, look, scaled, batches, options)
    converted = copy.deepcopy(model)
    calibration = Calibration(model, converted, batches, look.calls, options, keep)
    found: dict[str, tuple[Filters, ConvertedLayer]] = {}
    for _ in range(options.sweeps):
        for name, filters, line in tqdm(
            calibration.fit_all(),
            'converting',
            total=len(look.calls),
            disable=not options.progress,
            unit='conv',
        ):
            found[name] = filters, line
    for name, layer in wanted.items():
        if name not in found:
            found[name] = _without_images(
                model, layer, None, options.max_loss if keep else None
            )
    return model, found


def _without_images(
    model: nn.Module,
    layer: Layer,
    inputs: tuple[Tensor, Tensor] | None,
    max_loss: float | None,
) -> tuple[Filters, ConvertedLayer]:
    """Zero-mean filters of a layer that no image reaches."""
    conv = model.get_submodule(layer.name)
    w = conv.weight.double().flatten(1)
    squares = w.square().sum().item() + 1e-300
    loss = math.sqrt(w.shape[1] * w.mean(1).square().sum().item() / squares)
    if max_loss is not None and loss > max_loss:
        kept = ConvertedLayer(layer.name, 'kept', reason=TOO_MUCH, loss=loss)
        return (conv.weight.double(), conv.bias.double()), kept
    filters = center_filters(conv.weight, conv.bias, layer.mean, conv.groups, inputs)
    method = 'mean' if layer.mean is None else 'statistics'
    return filters, ConvertedLayer(layer.name, method)
