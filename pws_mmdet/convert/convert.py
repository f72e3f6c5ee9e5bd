"""Turn a trained network with BN into a network with PWS.

A conversion has three steps:

1. Fold: BN becomes part of the convolutions. This gives a plain network.
2. Fit: find zero-mean filters, because PWS filters have zero mean. With images, the
   filters of each layer are fitted by least squares, in the order of execution. The
   inputs are those in the network that is converted so far, and the wanted outputs are
   those of the layer in the original network. If the network adds an output directly to
   something, as in a residual block, the wanted value is the original sum. Without
   images, each filter loses its sum, and the bias gains the mean of that part,
   estimated from the statistics of BN. In both cases the channels of the network are
   scaled first, so that less is lost; see :mod:`pws_mmdet.convert.equalize`. A layer
   that loses too much stays plain (``exclude='auto'``).
3. Set: the filters become the parameters of PWS convolutions.

:func:`convert_to_pws` folds a network, and :func:`load_bn_weights` folds the weights of
a checkpoint. Fit and set are the same for both: :func:`convert_folded`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint.weights import check_finite
from ..layers import PWSConv2d
from ..layers.reparam_conv import ReparamConv2d, conv_like
from ..utils.isolation import isolated
from ..utils.model import unwrap_model
from .agreement import compare_outputs
from .calibrate import fit_network
from .first_pass import runs_on
from .fold import fold_batch_norm, replace_module
from .layer import ConversionReport, Layer
from .options import ConversionOptions
from .others import other_convolutions


def check_takes_filters(conv: PWSConv2d) -> None:
    """Raise a ValueError if alpha or beta of a layer cannot hold given filters."""
    if conv.alpha is None or conv.alpha.numel() != conv.out_channels:
        raise ValueError(
            f"alpha must be 'channel' to hold given filters, not {conv.alpha_mode!r}"
        )
    if conv.bias is None:
        raise ValueError('beta must be True to hold given filters')


@torch.no_grad()
def set_filters(
    conv: PWSConv2d, filters: Tensor, bias: Tensor, generator: torch.Generator
) -> None:
    """Set the parameters of a PWS convolution so that it has the given filters.

    W gets He variance, 2 / n, as in a network that starts from scratch, so that gamma
    and the learning rate have the same effect. alpha gets the value that makes the
    filters exact. A filter of zeros gets a random W and an alpha of 0.

    Args:
        conv: A PWS convolution with an alpha per channel and with beta.
        filters: Zero-mean filters, (O, c_in / groups, k, k).
        bias: Bias, (O,).
        generator: Draws the random W, on the CPU.

    Raises:
        ValueError: If alpha or beta of the layer cannot hold the filters.
    """
    check_takes_filters(conv)
    n = filters[0].numel()
    std = filters.flatten(1).std(1, correction=0)
    he = 2 / n
    alive = std > 0
    w = filters * (he**0.5 / std.where(alive, 1)).reshape(-1, 1, 1, 1)
    if not alive.all():
        # If W and alpha were both 0, so would be their gradients.
        drawn = he**0.5 * torch.randn(filters.shape, generator=generator)
        w = w.where(alive.reshape(-1, 1, 1, 1), drawn.to(w))
    conv.weight.copy_(w)
    gain = (he + conv.gamma) ** 0.5 / (he**0.5 if conv.scale else 1) / he**0.5
    conv.alpha.copy_(std * gain)
    conv.get_parameter('bias').copy_(bias)


@torch.no_grad()
def convert_folded(
    plain: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any] | None,
    options: ConversionOptions,
    make_pws: Callable[[str, nn.Conv2d], PWSConv2d],
    keep: bool = False,
) -> ConversionReport:
    """Fit zero-mean filters to a plain network, and set them in PWS convolutions.

    Args:
        plain: A network whose BN is folded, in evaluation mode. Its convolutions are
            replaced in place.
        layers: Records of its convolutions.
        batches: Calibration batches; None for a conversion without images. Of four or
            more, the last eighth is not fitted to. It tells how good the network is.
        options: The options of the conversion.
        make_pws: Returns the PWS convolution that replaces the plain one of a name.
        keep: Let layers stay plain that lose more than ``options.max_loss``.

    Returns:
        A record of each convolution, in the order of conversion.
    """
    original = copy.deepcopy(plain)
    used, held_out = _hold_out(batches)
    filters, lines = fit_network(plain, layers, used, options, keep)
    report = ConversionReport(lines)
    kept = {line.name for line in lines if line.method == 'kept'}
    generator = torch.Generator().manual_seed(options.seed)
    for name, (weight, bias) in filters.items():
        conv = plain.get_submodule(name)
        if name in kept:
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
            continue
        pws = make_pws(name, conv)
        set_filters(pws, weight, bias, generator)
        trained = conv.weight.requires_grad
        replace_module(plain, name, pws.eval().requires_grad_(trained))
    if used is not None:
        report.agreement = compare_outputs(
            original, plain, held_out or used, options.forward
        )
        report.images = 'other images' if held_out else 'the same images'
    return report


def _hold_out(
    batches: Sequence[Any] | None,
) -> tuple[Sequence[Any] | None, Sequence[Any]]:
    """Split batches into those to fit to and, of four or more, an eighth to test on."""
    if batches is None or len(batches) < 4:
        return batches, ()
    number = len(batches) - max(1, len(batches) // 8)
    return batches[:number], batches[number:]


def convert_to_pws(
    model: nn.Module,
    calibration_batches: Iterable[Any] | None = None,
    exclude: Sequence[str] | Literal['auto'] = 'auto',
    *,
    gamma: float = 1e-4,
    relative_gamma: bool = False,
    **options: Any,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a trained network with BN, or without any norm, to PWS.

    Each ``nn.Conv2d``, with the BN layer that follows it, becomes a :class:`PWSConv2d`,
    and the BN layer ``nn.Identity``. MMCV's ConvWS and ConvAWS count as plain, and so
    do subclasses that compute the same as an ``nn.Conv2d``. Other convolutions (1D, 3D,
    transposed, deformable) and norm layers without statistics stay; the report names
    the convolutions. It also says what is lost: PWS filters have zero mean. The text at
    the top of :mod:`pws_mmdet.convert.convert` describes the method.

    All random numbers come from ``seed``, and the global random state stays as it is.
    The result can be trained, also if this function runs in ``torch.inference_mode``.

    Args:
        model: The trained network. It is not changed.
        calibration_batches: Batches as ``forward`` takes them, of images like those
            that the network was trained on. Some dozens of images are enough. They are
            kept in memory. None converts without images, which loses much more.
        exclude: Which convolutions stay plain, with BN folded into them. 'auto': those
            that would lose more than ``max_loss``, such as depthwise ones. Otherwise
            regular expressions, searched in the names of convolutions; () converts all.
        gamma, relative_gamma: As of :class:`PWSConv2d`. The outputs of the converted
            network do not depend on them.
        **options: The options of :class:`ConversionOptions`.

    Returns:
        The converted network in evaluation mode, with the dtype and device of
        ``model``; and a record of each convolution, in the order of conversion. The
        parameters of frozen layers stay frozen.

    Raises:
        TypeError: If there is no option of a name.
        ValueError: If there is nothing to convert, a weight is not finite,
            ``max_scale`` or ``sweeps`` is below 1, there are no images, the images
            reach no layer, or folding BN changes what the network computes.

    Source: not from a paper.
    """
    chosen = ConversionOptions(**options)
    model = unwrap_model(model, keep_tta=True)
    check_finite(model.state_dict(), 'the network')
    batches = None if calibration_batches is None else list(calibration_batches)
    if batches is not None and not batches:
        raise ValueError('There are no calibration images: give some, or None')
    with isolated(chosen.seed):
        return _convert(model, batches, exclude, gamma, relative_gamma, chosen)


def _convert(
    model: nn.Module,
    batches: Sequence[Any] | None,
    exclude: Sequence[str] | Literal['auto'],
    gamma: float,
    relative_gamma: bool,
    options: ConversionOptions,
) -> tuple[nn.Module, ConversionReport]:
    """Do the work of :func:`convert_to_pws`, whose arguments were checked."""
    alone = isinstance(model, nn.Conv2d)
    if alone:
        model = nn.Sequential(model)  # in which it can be replaced
    runs = runs_on(model, batches, options.forward)
    keep = exclude == 'auto'
    patterns = () if keep else exclude
    plain, layers = fold_batch_norm(model, patterns, runs, options.unaligned)
    if all(layer.kept for layer in layers):
        raise ValueError(_nothing_to_convert(model, layers))

    def make_pws(name: str, conv: nn.Conv2d) -> PWSConv2d:
        return conv_like(conv, PWSConv2d, gamma=gamma, relative_gamma=relative_gamma)

    report = convert_folded(plain, layers, batches, options, make_pws, keep)
    uncalled = {layer.name for layer in layers if not layer.called}
    for line in report:
        if line.name in uncalled:
            line.reason = line.reason or 'no forward pass called it'
    report += other_convolutions(plain, {layer.name for layer in layers})
    return plain[0] if alone else plain, report


def _nothing_to_convert(model: nn.Module, layers: Sequence[Layer]) -> str:
    already = any(isinstance(m, ReparamConv2d) for m in model.modules())
    reasons = sorted({layer.kept for layer in layers})
    return (
        'There is nothing to convert: '
        + ('; '.join(reasons) or 'the network has no nn.Conv2d')
        + (', but has PWS convolutions already' if already else '')
    )
