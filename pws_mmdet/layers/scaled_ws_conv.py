import math

import torch
from mmengine.registry import MODELS
from torch import Tensor, fx, nn

from ..utils.arguments import check_positive
from .reparam_conv import ReparamConv2d
from .standardize import standardize_weight

# A ReLU of N(0, 1) has the variance (1 - 1 / pi) / 2. This factor makes it 1.
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))

fx.wrap('standardize_weight')  # torch.fx records the call, not its operations


@MODELS.register_module(name=['ScaledWS', 'ScaledWSConv2d'], force=True)
class ScaledWSConv2d(ReparamConv2d):
    r"""2D convolution with scaled weight standardization, that of NF-ResNets.

    $$Y_o = X \otimes \hat W_o + b_o, \qquad
    \hat W_o = a\, g_o \frac{W_o - E[W_o]}{\sqrt{n\, \mathrm{Var}[W_o] + \epsilon}}$$

    with the biased variance of the n weights of a filter, and the gain a of the
    activation in front of the layer. The source multiplies the output of the activation
    by a. Here a is a part of the filters, which computes the same, so that the
    activations of MMDetection's networks can stay as they are. A layer that no
    activation precedes needs ``activation_gain=1``.

    It is the near twin of ``PWSConv2d``: there, alpha is a g / sqrt(2), and gamma
    is eps / n. Both share the code, and the kernel on a GPU. Input (N, c_in, H, W) and
    output (N, c_out, H', W') are those of ``nn.Conv2d``. W starts from N(0, 1 / n), g
    from 1 and b from 0.

    Args:
        in_channels, out_channels, kernel_size, stride: As of ``nn.Conv2d``.
        padding, dilation, groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Ignored; ``beta`` decides, as in ``PWSConv2d``.
        activation_gain: a. The default is sqrt(2 / (1 - 1 / pi)) = 1.71, for ReLU.
        eps: Added to n Var[W]; > 0.
        beta: False drops b.

    Raises:
        TypeError: If an argument has an unknown name.
        ValueError: If a number is not positive and finite, a filter has a single
            weight, or another argument is wrong (see ``ReparamConv2d``).

    Source: Brock et al. 2021, "Characterizing signal propagation to close the
    performance gap in unnormalized ResNets", section 4; gain and eps as in
    their NFNets (2021).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation_gain: float = RELU_GAIN,
        eps: float = 1e-4,
        beta: bool = True,
    ) -> None:
        check_positive(activation_gain=activation_gain, eps=eps)
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, padding_mode, device, dtype),
            beta=beta,
        )
        self.check_has_variance()
        self.activation_gain = float(activation_gain)
        self.eps = float(eps)
        # sqrt(n Var + eps) = sqrt(n) sqrt(Var + eps / n)
        n = self.weight[0].numel()
        self.gamma = self.eps / n
        self.gain_factor = self.activation_gain / math.sqrt(n)
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels))

    def reset_parameters(self) -> None:
        """Set W to N(0, 1 / n), g to 1 and b to 0."""
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight, mode='fan_in', nonlinearity='linear')
        # nn.Conv2d.__init__ calls this method before the gain exists.
        if getattr(self, 'gain', None) is not None:
            nn.init.ones_(self.gain)

    def effective_weight(self) -> Tensor:
        """The filters of the equivalent plain convolution, both gains included.

        Returns:
            Shape and dtype of ``weight``.
        """
        if self.deployed:
            return self.weight
        gain = self.gain * self.gain_factor
        return standardize_weight(self.weight, gain, self.gamma, scale=False)

    def extra_options(self) -> str:
        options = ''
        if self.activation_gain != RELU_GAIN:
            options += f', activation_gain={self.activation_gain:g}'
        return options + f', eps={self.eps:g}'
