import sys
from numbers import Real

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.arguments import check_flags, check_integers


@MODELS.register_module(name=['AnySizeIN', 'AnySizeInstanceNorm2d'], force=True)
class AnySizeInstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalization that accepts maps of 1x1, such as SSD's last level.

    A single value is its own mean. So a 1x1 map becomes ``bias`` (0 without it), with
    a gradient of 0; ``nn.InstanceNorm2d`` raises an error for it in training. With
    ``track_running_stats=True`` this class raises it, too, because one value has no
    variance to track. In all other cases it computes what ``nn.InstanceNorm2d`` does.
    The arguments are the same, but ``affine`` is True by default.

    Raises:
        ValueError: If an argument is out of range, or no number or flag.

    Source: the row "IN" of Tables 1 and 5.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = False,
        **kwargs,
    ) -> None:
        check_integers(1, num_features=num_features)
        if not (isinstance(eps, Real) and 0 <= eps <= sys.float_info.max):
            raise ValueError(f'eps must be finite and not negative, got {eps!r}')
        is_share = isinstance(momentum, Real) and 0 <= momentum <= 1
        if momentum is not None and not is_share:  # None is a cumulative average
            raise ValueError(f'momentum must be from 0 to 1, got {momentum!r}')
        check_flags(affine=affine, track_running_stats=track_running_stats)
        if momentum is not None:
            momentum = float(momentum)
        super().__init__(
            num_features, float(eps), momentum, affine, track_running_stats, **kwargs
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1) or self.track_running_stats:
            return super().forward(x)
        # x - mean is exactly 0. Normalize two zeros, because torch refuses one value.
        # Two copies of x would have a rounding error, multiplied by 1 / sqrt(eps).
        zeros = torch.zeros_like(x).expand(*x.shape[:-1], 2)
        return super().forward(zeros)[..., :1] + 0 * x  # so that x has a gradient
