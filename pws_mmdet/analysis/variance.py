"""What the paper measures of a convolution: its step, its filters, its output."""

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..layers.reparam_conv import ReparamConv2d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# name -> what it is; all of one layer at one step, one number each
STATISTICS = {
    'var_ratio': 'mean over o of Var[W_o - ΔW_o] / Var[W_o] (Fig. 1a)',
    'var_ratio_min': 'its minimum over o',
    'var_ratio_max': 'its maximum over o',
    'relative_step': 'max over o of ‖ΔW_o‖ / ‖W_o‖',
    'scaled_step': 'max over o of ‖ΔW_o‖ / ‖W_o‖ sqrt(Var[W_o] + γ)',
    'shift': 'Var_o[n E[ΔW_o]], the shift of the average gradient (Fig. 1b)',
    'var_w_min': 'min over o of Var[W_o] (Fig. 2a)',
    'inv_std_max': 'max over o of 1 / sqrt(Var[W_o] + γ) (Fig. 2b)',
    'grad_norm': 'the norm of the gradient of W (or of what torch computes W from), '
    'unscaled, clipped if it is clipped',
    'alpha_min': 'the least α',
    'alpha_max': 'the greatest α',
    'mean_x_squared': 'E²[X] of the input X',
    'mean_x_share': 'E²[X] / E[X²]',
    'mean_spread': 'Var_o[n E[W_o]] of the filters that the layer applies',
    'var_y': 'Var[Y] of the output Y, bias included',
    'var_y_eq5': 'Var[Y] by equation (5), with Var[Y of the layer before] = 2 E[X²]',
    'var_y_eq6': 'Var[Y] by equation (6), likewise',
}


def applied_filters(conv: nn.Module) -> Tensor:
    """Return the filters that a convolution applies, its gain included.

    Those are W itself but for layers that compute them, such as PWS.
    """
    if isinstance(conv, ReparamConv2d):
        return conv.effective_weight()
    if isinstance(conv, ConvWS2d):  # mmcv's, which has no function for them
        std, mean = torch.std_mean(conv.weight, (1, 2, 3), keepdim=True)
        return (conv.weight - mean) / (std + conv.eps)
    if isinstance(conv, ConvAWS2d):
        return conv._get_weight(conv.weight)
    return own_filters(conv)


def own_filters(conv: nn.Module) -> Tensor:
    """Return W, computed from the parameters as they are now.

    Where torch's weight_norm, spectral_norm, pruning and parametrizations compute it,
    those of the old kind do it in a forward pass, and the new spectral_norm goes on
    with its iteration whenever it is asked in training.
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
    """Return the parameters that the filters are computed from: mostly W itself."""
    if is_parametrized(conv, 'weight'):
        return list(conv.parametrizations['weight'].parameters())
    own = conv.named_parameters(recurse=False)
    return [p for name, p in own if name.startswith('weight')]


def step_statistics(before: Tensor, after: Tensor, gamma: float) -> dict[str, Tensor]:
    """Measure a step of the weights, W to W - ΔW.

    Args:
        before, after: Filters, shape (O, ...), n values in each.
        gamma: Added to the variance of W where it stands in a root; 0 for plain
            convolutions.

    Returns:
        Scalars by their names in :data:`STATISTICS`. Variances are biased ones.

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
    """Put the variance of an output beside what the paper's equations say of it.

    The equations take the input X for the ReLU of an output that is symmetric about
    0, the paper's Y of the layer before; then Var[Y of the layer before] = 2 E[X²],
    which is put in for it, so that the input may as well come from a pooling or
    several layers. They ignore the bias, and padding.

    Args:
        filters: Those that the layer applies, shape (O, ...), n values in each.
        mean_x, mean_x2: E[X] and E[X²].
        var_y: Var[Y], measured.

    Returns:
        Numbers by their names in :data:`STATISTICS`.

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
    """Count, sum and sum of squares of all values of some tensors."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []  # on their device, to be fetched at once

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape."""
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
