import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, fx, nn

from ..utils.arguments import check_names
from .reparam_conv import ReparamConv2d

G_MODES = ('fixed', 'trained')

# Bounds the gradient of W at 1e4 times that of the filters: finite in fp16, too.
# Training stays far above it: filters start with norms of 0.05 sqrt(n).
MIN_NORM = 1e-4

fx.wrap('normalize_weight')  # symbolic traces hold the call, not the formula


def normalize_weight(weight: Tensor, g: Tensor | None = None) -> Tensor:
    r"""Give every filter of a convolution the norm g.

    .. math:: \hat W_o = g_o\, W_o / \lVert W_o \rVert

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

    .. math:: Y_o = X \otimes \hat W_o + b_o

    with the filters of :func:`normalize_weight`; the same input (N, c_in, H, W)
    and output (N, c_out, H', W') as ``nn.Conv2d``. W starts as in Salimans &
    Kingma, N(0, 0.05^2), and b at 0. g starts at 1, as the paper has it, and not
    from the data.

    Args:
        *args, **kwargs: As of ``nn.Conv2d``. ``bias`` is accepted and ignored,
            as in :class:`PWSConv2d`: ``beta=False`` drops b.
        g: 'fixed' for 1, without a parameter (the rows "WN (g = 1)"), 'trained'
            for a parameter of shape (c_out,).

    Raises:
        TypeError: If there is no argument of a name.
        ValueError: If the mode of g is unknown, or it is no convolution (see
            :class:`ReparamConv2d`).

    Source: equations (9)-(11); Tables 1, 4 and 5.
    """

    def __init__(self, *args, g: str = 'fixed', **kwargs) -> None:
        check_names(type(self), kwargs, passes_kwargs_on=True)
        if g not in G_MODES:
            raise ValueError(f'g must be one of {G_MODES}, got {g!r}')
        # nn.Conv2d calls reset_parameters before g can exist
        super().__init__(*args, **kwargs)
        if g == 'fixed':
            self.register_parameter('g', None)
        else:
            self.g = nn.Parameter(self.weight.new_ones(self.out_channels))

    def reset_parameters(self) -> None:
        """W N(0, 0.05^2), g 1, b 0."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.05)
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
