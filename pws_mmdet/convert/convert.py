"""Turn a trained network with BN into a network with PWS that computes the same.

1. Fold: BN becomes part of the convolutions. This gives a plain network.
2. Set: each filter is split into its mean, which PWS keeps as a constant, and the rest,
   whose mean is zero, as that of a PWS filter is.

``convert_to_pws`` folds a network, and ``load_bn_weights`` folds the weights of
a checkpoint.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.weights import check_finite
from ..layers import PWSConv2d
from ..layers.reparam_conv import ReparamConv2d, conv_like
from ..utils.isolation import isolated
from ..utils.model import unwrap_model
from .first_pass import runs_on
from .fold import fold_batch_norm, replace_module
from .forward import Forward, run_model
from .layer import ConversionReport, ConvertedLayer, Layer
from .others import other_convolutions, remaining_norms

# The standard deviation of W, over the one that a network from scratch starts with.
# PWS divides by it, so that it only sets how fast a step turns a filter.
WEIGHT_SCALE = 3.0


def check_takes_filters(conv: PWSConv2d) -> None:
    """Raise a ValueError if a layer cannot hold given filters."""
    if conv.alpha is None or conv.alpha.numel() != conv.out_channels:
        raise ValueError(
            f"alpha must be 'channel' to hold given filters, not {conv.alpha_mode!r}"
        )
    if conv.bias is None:
        raise ValueError('beta must be True to hold given filters')
    if conv.mean is None:
        raise ValueError(
            'trained filters have a mean, which PWS removes unless the config has '
            "conv_cfg=dict(type='PWS', keep_mean=True)"
        )


@torch.no_grad()
def set_filters(
    conv: PWSConv2d, filters: Tensor, bias: Tensor, generator: torch.Generator
) -> None:
    """Set the parameters of a PWS convolution so that it has the given filters.

    The standard deviation of W is WEIGHT_SCALE times that of a network from scratch.
    alpha gets the value that makes the filters exact. A filter whose weights are all
    the same gets a random W and an alpha of 0.

    Args:
        conv: A PWS convolution with an alpha per channel, beta, and ``keep_mean``.
        filters: Filters, (O, c_in / groups, k, k).
        bias: Bias, (O,).
        generator: Draws the random W, on the CPU.

    Raises:
        ValueError: If the layer cannot hold the filters.
    """
    check_takes_filters(conv)
    n = filters[0].numel()
    flat = filters.double().flatten(1)
    mean, std = flat.mean(1), flat.std(1, correction=0)
    wanted = WEIGHT_SCALE * (2 / n) ** 0.5
    # Below this, the deviations from the mean are rounding errors.
    noise = torch.finfo(filters.dtype).eps * mean.abs()
    alive = std > noise
    drawn = torch.randn(flat.shape, generator=generator).to(flat)
    # If W and alpha were both 0, so would be their gradients.
    w = (flat - mean[:, None]).where(alive[:, None], drawn)
    w = wanted * w / w.std(1, correction=0, keepdim=True)
    conv.weight.copy_(w.reshape(filters.shape))
    gain = (wanted**2 + conv.gamma) ** 0.5 / ((2 / n) ** 0.5 if conv.scale else 1)
    conv.alpha.copy_(std.where(alive, 0) * gain / wanted)
    conv.get_buffer('mean').copy_(mean)
    conv.get_parameter('bias').copy_(bias)


@torch.no_grad()
def convert_folded(
    plain: nn.Module,
    layers: Sequence[Layer],
    make_pws: Callable[[str, nn.Conv2d], PWSConv2d],
    seed: int = 0,
) -> ConversionReport:
    """Replace the convolutions of a plain network by PWS convolutions.

    Args:
        plain: A network whose BN is folded. It is changed in place.
        layers: Records of its convolutions.
        make_pws: Returns the PWS convolution that replaces the plain one of a name.
        seed: Seed of the weights that filters of zeros get. They have no effect until
            they are trained.

    Returns:
        A record of each convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        if layer.kept:
            continue
        conv = plain.get_submodule(layer.name)
        pws = make_pws(layer.name, conv)
        set_filters(pws, conv.weight, conv.bias, generator)
        trained = conv.weight.requires_grad
        replace_module(plain, layer.name, pws.eval().requires_grad_(trained))
    return ConversionReport(
        ConvertedLayer(x.name, x.kept, '' if x.called else 'no forward pass called it')
        for x in layers
    )


def convert_to_pws(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    *,
    gamma: float = 1e-4,
    relative_gamma: bool = False,
    forward: Forward = run_model,
    seed: int = 0,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a trained network with BN, or without any norm, to PWS.

    Each ``nn.Conv2d``, with the BN layer that follows it, becomes a ``PWSConv2d``
    with ``keep_mean``, and the BN layer ``FoldedBatchNorm``, which does nothing. The
    network computes the same as before, apart from rounding. MMCV's ConvWS and ConvAWS
    count as plain, and so do subclasses that compute the same as an ``nn.Conv2d``.
    Other convolutions (1D, 3D, transposed, deformable) and norm layers without
    statistics stay; the report names the convolutions and these norm layers.

    All random numbers come from ``seed``, and the global random state stays as it is.
    The result can be trained, also if this function runs in ``torch.inference_mode``.

    Args:
        model: The trained network. It is not changed.
        batches: Batches as ``forward`` takes them; one is enough if it reaches all
            layers. A forward pass shows which convolution each BN layer follows. None
            takes an image of noise.
        exclude: Regular expressions, searched in the names of convolutions, for those
            that stay plain, with BN folded into them.
        gamma, relative_gamma: As of ``PWSConv2d``. The outputs of the converted
            network do not depend on them.
        forward: Calls a network with a batch. The default is ``run_model``:
            ``test_step`` for MMEngine models, ``model(batch)`` for others.
        seed: Seed of the weights that filters of zeros get, which have no effect until
            they are trained.

    Returns:
        The converted network in evaluation mode, with the dtype and device of
        ``model``; and a record of each convolution. The parameters of frozen layers
        stay frozen.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is nothing to convert, a weight is not finite, there are no
            batches, ``exclude`` fits no convolution, or folding BN changes what the
            network computes.

    Source: not from a paper.
    """
    given = _check_arguments(model, batches, exclude)
    model = unwrap_model(model, keep_tta=True)
    check_finite(model.state_dict(), 'the network')
    alone = isinstance(model, nn.Conv2d)
    if alone:
        model = nn.Sequential(model)  # in which it can be replaced

    def make_pws(name: str, conv: nn.Conv2d) -> PWSConv2d:
        options = dict(gamma=gamma, relative_gamma=relative_gamma, keep_mean=True)
        return conv_like(conv, PWSConv2d, **options)

    with isolated(seed):
        runs = runs_on(model, given, forward)
        plain, layers = fold_batch_norm(model, exclude, runs)
        if all(layer.kept for layer in layers):
            raise ValueError(_nothing_to_convert(model, layers))
        report = convert_folded(plain, layers, make_pws, seed)
    report += other_convolutions(plain, {layer.name for layer in layers})
    report.norms = remaining_norms(plain)
    return plain[0] if alone else plain, report


def _check_arguments(
    model: Any, batches: Iterable[Any] | None, exclude: Sequence[str]
) -> list[Any] | None:
    """Check the arguments of ``convert_to_pws``, and return the batches."""
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be an nn.Module, not {type(model).__name__}')
    if isinstance(exclude, str):
        raise ValueError(f'exclude must be a list of patterns, as [{exclude!r}]')
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for pattern in exclude:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as e:
            raise ValueError(f'exclude: {pattern!r}: {e}') from e
        if not found:
            raise ValueError(f'exclude: no convolution has {pattern!r} in its name')
    if isinstance(batches, (dict, Tensor)):
        raise ValueError('batches must be a list of batches, such as [batch]')
    given = None if batches is None else list(batches)
    if given is not None and not given:
        raise ValueError('There are no batches: give one or more, or None')
    return given


def _nothing_to_convert(model: nn.Module, layers: Sequence[Layer]) -> str:
    already = any(isinstance(m, ReparamConv2d) for m in model.modules())
    reasons = sorted({layer.kept for layer in layers})
    return (
        'There is nothing to convert: '
        + ('; '.join(reasons) or 'the network has no nn.Conv2d')
        + (', but has PWS convolutions already' if already else '')
    )
