import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, fx, nn

from .reparam_conv import ReparamConv2d

G_MODES = ('fixed', 'trained')

# The gradient of W is at most 1 / MIN_NORM = 1e4 times that of the filters, which is
# finite in fp16, too. Filters start with a norm of 0.05 sqrt(n), far above it.
MIN_NORM = 1e-4

fx.wrap('normalize_weight')  # torch.fx records the call, not its operations


def normalize_weight(weight: Tensor, g: Tensor | None = None) -> Tensor:
    r"""Give every filter of a convolution the norm g.

    $$\hat W_o = g_o\, W_o / \lVert W_o \rVert$$

    The arithmetic is done in fp32 (fp64 for fp64 weights), also under autocast
    and for half-precision weights. A filter with a norm below 1e-4 is divided by
    1e-4 instead, so that a filter of zeros stays one and has a finite gradient.

    Args:
        weight: Filters, shape (O, ...).
        g: Norm of each filter, shape (O,). None is a norm of 1.

    Returns:
        The normalized filters, in the shape and dtype of ``weight``.

    Source: Salimans & Kingma 2016; "WN's Effect on Variance Transmission".
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    w = F.normalize(w.flatten(1), dim=1, eps=MIN_NORM)
    if g is not None:
        w = w * g.to(w.dtype).unsqueeze(1)
    return w.view(weight.shape).to(weight.dtype)


@MODELS.register_module(name=['WN', 'WNConv2d'], force=True)
class WNConv2d(ReparamConv2d):
    r"""2D convolution with weight normalization (WN), a baseline of the paper.

    $$Y_o = X \otimes \hat W_o + b_o$$

    with the filters of ``normalize_weight``. Input (N, c_in, H, W) and output
    (N, c_out, H', W') are those of ``nn.Conv2d``. W starts from N(0, 0.05^2), as in
    Salimans & Kingma, and b from 0. g starts from 1, as in the paper; Salimans &
    Kingma compute it from data.

    Args:
        in_channels, out_channels, kernel_size, stride: As of ``nn.Conv2d``.
        padding, dilation, groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Ignored; ``beta`` decides, as in ``PWSConv2d``.
        g: 'fixed' for 1, without a parameter (the rows "WN (g = 1)"), 'trained'
            for a parameter of shape (c_out,).
        beta: False drops b.

    Raises:
        TypeError: If an argument has an unknown name.
        ValueError: If the mode of g is unknown, or another argument is wrong (see
            ``ReparamConv2d``).

    Source: equations (9)-(11); Tables 1, 4 and 5.
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
        g: str = 'fixed',
        beta: bool = True,
    ) -> None:
        if g not in G_MODES:
            raise ValueError(f'g must be one of {G_MODES}, got {g!r}')
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, padding_mode, device, dtype),
            beta=beta,
        )
        if g == 'fixed':
            self.register_parameter('g', None)
        else:
            self.g = nn.Parameter(self.weight.new_ones(self.out_channels))

    def reset_parameters(self) -> None:
        """Set W to N(0, 0.05^2), g to 1 and b to 0."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.05)
        # nn.Conv2d.__init__ calls this method before g exists.
        if getattr(self, 'g', None) is not None:
            nn.init.ones_(self.g)

    def effective_weight(self) -> Tensor:
        """The filters of the equivalent plain convolution, g included.

        Returns:
            Shape and dtype of ``weight``.
        """
        if self.deployed:
            return self.weight
        return normalize_weight(self.weight, self.g)

    def extra_options(self) -> str:
        return '' if self.g is None else ", g='trained'"
