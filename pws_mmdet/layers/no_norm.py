import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.arguments import check_flags, check_integers


@MODELS.register_module(force=True)
class NoNorm(nn.Module):
    """The norm layer that does not normalize.

    For blocks that insist on a ``norm_cfg``. With ``bias=True`` it adds what
    MMDetection's blocks take from a plain convolution when a norm layer
    follows it: the fair control for networks without normalization.

    Args:
        num_features: Channels of the input (N, num_features, ...).
        bias: Add a learned bias of shape (num_features,), which starts at 0.
        eps: Accepted and ignored: MMCV passes it to every norm layer.

    Raises:
        ValueError: If an argument is no such number or flag.
    """

    _abbr_ = 'no_norm'  # MMCV's prefix of the attribute: no_norm1, no_norm2, ...

    def __init__(self, num_features: int, bias: bool = False, eps: float = 0.0) -> None:
        super().__init__()
        check_integers(1, num_features=num_features)
        check_flags(bias=bias)
        self.num_features = num_features
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_features))
        else:
            self.register_parameter('bias', None)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x
        return x + self.bias.view(-1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f'{self.num_features}, bias={self.bias is not None}'
