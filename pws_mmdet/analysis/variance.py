"""Measure a convolution as the paper does: its steps, its filters, its output."""

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..layers.reparam_conv import ReparamConv2d
from ..layers.standardize import standardize_as_mmcv

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

STATISTICS = {
    'var_ratio': 'mean over o of Var[W_o - ΔW_o] / Var[W_o] (Fig. 1a)',
    'var_ratio_min': 'the minimum of this ratio over o',
    'var_ratio_max': 'the maximum of this ratio over o',
    'relative_step': 'max over o of ‖ΔW_o‖ / ‖W_o‖',
    'scaled_step': 'max over o of ‖ΔW_o‖ / ‖W_o‖ sqrt(Var[W_o] + γ)',
    'shift': 'Var_o[n E[ΔW_o]], the shift of the average gradient (Fig. 1b)',
    'var_w_min': 'min over o of Var[W_o] (Fig. 2a)',
    'inv_std_max': 'max over o of 1 / sqrt(Var[W_o] + γ) (Fig. 2b)',
    'grad_norm': 'norm of the gradient of W (or of the parameters that torch computes '
    'W from), after unscaling and clipping',
    'alpha_min': 'the smallest α',
    'alpha_max': 'the largest α',
    'mean_x_squared': 'E²[X] of the input X',
    'mean_x_share': 'E²[X] / E[X²]',
    'mean_spread': 'Var_o[n E[W_o]] of the filters that the layer uses',
    'var_y': 'Var[Y] of the output Y, bias included',
    'var_y_eq5': 'Var[Y] by equation (5), with Var[Y of the layer before] = 2 E[X²]',
    'var_y_eq6': 'Var[Y] by equation (6), with the same Var[Y of the layer before]',
}
"""What each statistic is: one number for a layer at a step."""


def applied_filters(conv: nn.Module) -> Tensor:
    """Return the filters that a convolution uses, with its gain.

    They are W itself unless the layer computes them from W, as PWS does.
    """
    if isinstance(conv, ReparamConv2d):
        return conv.effective_weight()
    if isinstance(conv, ConvWS2d):
        return standardize_as_mmcv(conv.weight, conv.eps)
    if isinstance(conv, ConvAWS2d):
        return conv._get_weight(conv.weight)
    return own_filters(conv)


def own_filters(conv: nn.Module) -> Tensor:
    """Return W, computed from the current parameters.

    torch's weight_norm, spectral_norm, pruning and parametrizations compute W from
    other parameters. Those that are hooks update ``conv.weight`` only in a forward
    pass, so W is computed here. The parametrization of spectral_norm does a step of its
    power iteration at each access in training mode, so it is in evaluation mode
    meanwhile.
    """
    for hook in conv._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return hook.compute_weight(conv)
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(conv, do_power_iteration=False)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == 'weight':
            return hook.apply_mask(conv)
    if not is_parametrized(conv, 'weight'):
        return conv.weight
    parts = conv.parametrizations['weight']
    modes = {part: part.training for part in parts.modules()}
    parts.eval()
    weight = conv.weight
    for part, training in modes.items():
        part.training = training
    return weight


def filter_parameters(conv: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that W is computed from; usually W itself."""
    if is_parametrized(conv, 'weight'):
        return list(conv.parametrizations['weight'].parameters())
    own = conv.named_parameters(recurse=False)
    return [p for name, p in own if name.startswith('weight')]


def step_statistics(before: Tensor, after: Tensor, gamma: float) -> dict[str, Tensor]:
    """Measure a step of the weights, W to W - ΔW.

    Args:
        before: Filters before the step, shape (O, ...), n values in each.
        after: Filters after it.
        gamma: gamma of the layer; 0 for plain convolutions.

    Returns:
        Scalars by their names in ``STATISTICS``. Variances are biased.

    Source: Figures 1 and 2.
    """
    w, new = before.flatten(1).float(), after.flatten(1).float()
    variance = w.var(1, correction=0)
    ratio = new.var(1, correction=0) / variance
    step = (w - new).norm(dim=1) / w.norm(dim=1)
    return {
        'var_ratio': ratio.mean(),
        'var_ratio_min': ratio.min(),
        'var_ratio_max': ratio.max(),
        'relative_step': step.max(),
        'scaled_step': (step * (variance + gamma).sqrt()).max(),
        'shift': shift(before, after),
        'var_w_min': variance.min(),
        'inv_std_max': (variance.min() + gamma).rsqrt(),
    }


def shift(before: Tensor, after: Tensor) -> Tensor:
    """Return Var_o[n E[ΔW_o]] of a step of filters, shape (O, ...).

    Source: Figure 1b.
    """
    return spread(before.float() - after.float())


def spread(filters: Tensor) -> Tensor:
    """Return Var_o[n E[W_o]] of filters, shape (O, ...)."""
    # the sum of a filter is n times its mean
    return filters.flatten(1).float().sum(1).var(correction=0)


def transmission_statistics(
    filters: Tensor, mean_x: float, mean_x2: float, var_y: float
) -> dict[str, float]:
    """Return the variance of an output: measured, and by the paper's equations.

    The equations assume that the input X is the ReLU of the output Y of the layer
    before, and that Y is symmetric about 0. Then Var[Y of the layer before] = 2 E[X²].
    This function uses 2 E[X²], so the input may also come from a pooling or from
    several layers. The equations ignore bias and padding.

    Args:
        filters: The filters that the layer uses, shape (O, ...), n values in each.
        mean_x: E[X].
        mean_x2: E[X²].
        var_y: Var[Y], measured.

    Returns:
        Numbers by their names in ``STATISTICS``.

    Source: equations (5) and (6).
    """
    n = filters[0].numel()
    gain = n * filters.flatten(1).float().var(1, correction=0).mean().item()
    mean_spread = spread(filters).item()
    of_the_mean = mean_x**2 * mean_spread
    return {
        'mean_x_squared': mean_x**2,
        'mean_x_share': mean_x**2 / mean_x2 if mean_x2 else float('nan'),
        'mean_spread': mean_spread,
        'var_y': var_y,
        'var_y_eq5': gain * mean_x2 + of_the_mean,
        'var_y_eq6': 2 * mean_x2 + of_the_mean,
    }


class Moments:
    """The count, the sum and the sum of squares of the values of several tensors."""

    def __init__(self) -> None:
        # They stay on their device until `sums` copies all of them at once.
        self.parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Add the values of a tensor of any shape."""
        if x.numel():
            variance, mean = torch.var_mean(x.detach().float(), correction=0)
            count = torch.full_like(mean, x.numel())
            self.parts.append(torch.stack((count, mean, variance)))

    def sums(self) -> Tensor:
        """Return the count, the sum and the sum of squares, (3,), fp64 on the CPU."""
        if not self.parts:
            return torch.zeros(3, dtype=torch.float64)
        count, mean, variance = torch.stack(self.parts).cpu().double().T
        parts = torch.stack((count, count * mean, count * (variance + mean**2)))
        return parts.sum(1)
