import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.arguments import check_flags, check_integers


@MODELS.register_module(force=True)
class NoNorm(nn.Module):
    """A norm layer that does not normalize.

    It is for blocks that need a ``norm_cfg``. MMDetection's blocks build a convolution
    without a bias if a norm layer follows it; ``bias=True`` adds the bias here. This
    makes the fair control network without normalization.

    Args:
        num_features: Channels of the input (N, num_features, ...).
        bias: Add a learned bias of shape (num_features,), which starts at 0.
        eps: Ignored; MMCV passes it to every norm layer.

    Raises:
        ValueError: If an argument is out of range, or no number or flag.
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
