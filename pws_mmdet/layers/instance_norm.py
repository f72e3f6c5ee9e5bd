import torch
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module(name=['AnySizeIN', 'AnySizeInstanceNorm2d'], force=True)
class AnySizeInstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalization that accepts maps of 1x1, such as SSD's last level.

    A single value is its own mean, so that a 1x1 map becomes ``bias`` (0 without
    it), with a gradient of 0; ``nn.InstanceNorm2d`` raises there in training.
    With ``track_running_stats=True`` it still does: one value has no variance to
    track. Elsewhere the two are the same, with the same arguments, but
    ``affine`` is True by default.

    Source: the row "IN" of Tables 1 and 5.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1) or self.track_running_stats:
            return super().forward(x)
        # x - mean, in a map of two values, which torch accepts. From x itself it
        # would come with a rounding error, times 1 / sqrt(eps).
        zeros = torch.zeros_like(x).expand(*x.shape[:-1], 2)
        return super().forward(zeros)[..., :1] + 0 * x  # x stays in the graph
