import sys
from numbers import Real

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.arguments import check_integers


@MODELS.register_module(name=['SN', 'SwitchableNorm2d'], force=True)
class SwitchableNorm2d(nn.Module):
    r"""Switchable normalization (SN), a baseline of the paper.

    $$y = w\, \frac{x - \sum_k w_k \mu_k}
    {\sqrt{\sum_k w'_k \sigma_k^2 + \epsilon}} + b$$

    where k runs over the statistics of IN (one channel of one image), LN (one
    image) and BN (one channel of the batch), w = softmax(mean_weight) and
    w' = softmax(var_weight). All w and w' start at 1/3. Input and output are
    (N, num_features, H, W); a batch of 1 and maps of 1x1 are possible. The
    statistics are computed in fp32 (fp64 for fp64 input), also under autocast
    and for half-precision input. The output has the dtype of the input.

    In eval mode, running averages replace BN's statistics. In a distributed
    training each process has its own averages, as with BN, until MMEngine's
    SyncBuffersHook averages them. ``running_var`` is the average of the biased
    variance, because it exists for a batch of one value, too; BN's is unbiased.

    The class is no subclass of torch's BN, so that tools that fold or replace BN
    leave it alone. For the same reason ``norm_eval`` of MMDetection's ResNet and
    ``paramwise_cfg=dict(norm_decay_mult=...)`` have no effect on it. ``frozen_stages``
    and ``requires_grad=False`` in a ``norm_cfg`` have an effect.

    Args:
        num_features: Channels of the input.
        eps: Added to the variance, inside the root.
        momentum: Weight of the new batch in the running averages.

    Raises:
        ValueError: If an argument is out of range or no number, or an input does not
            have the shape (N, num_features, H, W).

    Source: Luo et al. 2019; Tables 1, 2 and 4.
    """

    _abbr_ = 'sn'  # MMCV's prefix of the attribute: sn1, sn2, ...

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        check_integers(1, num_features=num_features)
        if not (isinstance(eps, Real) and 0 <= eps <= sys.float_info.max):
            raise ValueError(f'eps must be finite and not negative, got {eps!r}')
        if not (isinstance(momentum, Real) and 0 <= momentum <= 1):
            raise ValueError(f'momentum must be from 0 to 1, got {momentum!r}')
        self.num_features = num_features
        self.eps = float(eps)
        self.momentum = float(momentum)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(
                f'SwitchableNorm2d expects an input (N, {self.num_features}, H, W), '
                f'got the shape {tuple(x.shape)}'
            )
        dtype = x.dtype
        if dtype != torch.float64:
            x = x.float()
        var, mean = torch.var_mean(x, dim=(2, 3), unbiased=False)
        image_var, image_mean = _merge(var, mean, dim=1)
        # An empty batch has no statistics, for example in a head without RoIs.
        if self.training and x.numel():
            batch_var, batch_mean = _merge(var, mean, dim=0)
            with torch.no_grad():
                for running, batch in (
                    (self.running_mean, batch_mean),
                    (self.running_var, batch_var),
                ):
                    running.lerp_(batch[0].to(running.dtype), self.momentum)
        else:
            batch_var, batch_mean = self.running_var, self.running_mean
        mean = _mix(self.mean_weight, mean, image_mean, batch_mean)
        var = _mix(self.var_weight, var, image_var, batch_var)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        # One pass over the map; var_mean was the only other one.
        y = torch.addcmul(shift[..., None, None], x, scale[..., None, None])
        return y.to(dtype)

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps}, momentum={self.momentum}'


def _merge(var: Tensor, mean: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Compute the statistics of all values from those of parts of equal size.

    Var = E[Var of a part] + Var[mean of a part]. Both terms are positive, so that no
    digits cancel.

    Args:
        var, mean: The statistics of the parts.
        dim: The dimension of the parts.
    """
    var_of_mean, mean = torch.var_mean(mean, dim, unbiased=False, keepdim=True)
    return var.mean(dim, keepdim=True) + var_of_mean, mean


def _mix(logits: Tensor, *statistics: Tensor) -> Tensor:
    """Add (N, C), (N, 1) and (1, C) statistics, weighted by a softmax."""
    weights = logits.to(statistics[0].dtype).softmax(0)
    return sum(w * s for w, s in zip(weights, statistics, strict=True))
