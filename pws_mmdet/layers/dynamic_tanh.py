import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.arguments import check_integers, check_positive


@MODELS.register_module(name=['DyT', 'DynamicTanh'], force=True)
class DynamicTanh(nn.Module):
    r"""Dynamic tanh (DyT) in the place of a norm layer; it computes no statistics.

    $$y_c = w_c \tanh(\alpha x_c) + b_c$$

    with one alpha for the layer. DyT was made for transformers, in the place of layer
    normalization. In convolutional networks it is a negative control: its
    authors report that it does not replace BN there without loss.

    Input and output are (N, num_features, ...). The arithmetic is done in fp32 (fp64
    for fp64 input), also under autocast and for half-precision input. The output has
    the dtype of the input.

    Args:
        num_features: Channels of the input.
        alpha: The value that alpha, shape (1,), starts from.
        eps: Ignored; MMCV passes it to every norm layer.

    Raises:
        ValueError: If an argument is out of range or no number.

    Source: Zhu et al., "Transformers without Normalization", CVPR 2025.
    """

    _abbr_ = 'dyt'  # MMCV's prefix of the attribute: dyt1, dyt2, ...

    def __init__(self, num_features: int, alpha: float = 0.5, eps: float = 0.0) -> None:
        super().__init__()
        check_integers(1, num_features=num_features)
        check_positive(alpha=alpha)
        self.num_features = num_features
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if dtype != torch.float64:
            x = x.float()
        shape = (-1, *[1] * (x.dim() - 2))
        y = torch.tanh(self.alpha * x)
        y = torch.addcmul(self.bias.view(shape), self.weight.view(shape), y)
        return y.to(dtype)

    def extra_repr(self) -> str:
        return f'{self.num_features}'
