import sys
from numbers import Real

import torch
from mmengine.registry import MODELS
from torch import Tensor, fx, nn

from ..utils.arguments import check_flags
from .filter_kernel import conv_dtype
from .reparam_conv import ReparamConv2d
from .standardize import standardize_weight

ALPHA_MODES = ('channel', 'layer', 'fixed')

fx.wrap('standardize_weight')  # torch.fx records the call, not its operations


@MODELS.register_module(name=['PWS', 'PWSConv', 'PWSConv2d'], force=True)
class PWSConv2d(ReparamConv2d):
    r"""2D convolution with Parametric Weights Standardization (PWS).

    $$Y_o = \alpha_o\, X \otimes \hat W_o + \beta_o$$

    with the filters of ``standardize_weight``. beta is the ``bias`` of the
    layer. In all other respects it is an ``nn.Conv2d``: the same input
    (N, c_in, H, W) and output (N, c_out, H', W'), attributes and padding modes.
    The filters are computed from the parameters in every forward pass. Nothing is
    kept between passes, so that the parameters may change in any way at any time.

    With ``keep_mean``, a converted network computes what it computed with BN:

    $$Y_o = X \otimes (\alpha_o \hat W_o + \mu_o) + \beta_o$$

    The buffer ``mean`` holds mu, the mean of each filter in the network with BN. It is
    not trained, so that the gradient of each filter has zero mean, as without it.

    The parameters start as in the paper: W He normal (fan_in), alpha 1, beta 0.
    alpha should not be decayed: ``optim_wrapper =
    dict(constructor='PWSOptimWrapperConstructor')``.

    For inference, ``fuse()`` returns the equivalent ``nn.Conv2d``, and
    ``switch_to_deploy()`` makes the layer a plain convolution in place.

    Args:
        in_channels, out_channels, kernel_size, stride: As of ``nn.Conv2d``.
        padding, dilation, groups, padding_mode, device, dtype: As of ``nn.Conv2d``.
        bias: Ignored; ``beta`` decides. MMDetection's blocks pass ``bias=False``
            because a norm layer follows, and PWS needs beta in exactly these blocks.
        gamma: Added to the variance of each filter; > 0. The paper takes 1e-3
            for a learning rate of 1e-2 and 1e-5 for one of 1e-3 (SSD), 1e-4
            (ResNet).
        relative_gamma: Take gamma as a fraction of the He variance: the layer's
            gamma is ``gamma * 2 / n``, n = k * k * in_channels / groups. The
            attribute ``gamma`` is this product.
        scale: Multiply the filters by sqrt(2 / n). False is a row of Table 2.
        alpha: 'channel' for an alpha of shape (c_out,); 'layer' for one alpha and
            one beta of shape (1,), as in SSD's predictors; 'fixed' for no alpha,
            which is alpha = 1 (a row of Table 2).
        beta: False drops the bias.
        keep_mean: Add a constant of each filter to its weights, which a conversion
            sets. It is 0 at first. This is not in the paper.

    Raises:
        TypeError: If an argument has an unknown name.
        ValueError: If gamma is not a positive finite number, a filter has a
            single weight, the alpha mode is unknown, or another argument is wrong
            (see ``ReparamConv2d``).

    Source: equation (12); "Parameter gamma"; Tables 1 and 2. ``keep_mean``: not from a
    paper; docs/convert.md has the measurements.
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
        gamma: float = 1e-4,
        relative_gamma: bool = False,
        scale: bool = True,
        alpha: str = 'channel',
        beta: bool = True,
        keep_mean: bool = False,
    ) -> None:
        check_flags(relative_gamma=relative_gamma, scale=scale, keep_mean=keep_mean)
        if alpha not in ALPHA_MODES:
            raise ValueError(f'alpha must be one of {ALPHA_MODES}, got {alpha!r}')
        if isinstance(gamma, bool) or not isinstance(gamma, Real):
            raise ValueError(f'gamma must be a positive number, got {gamma!r}')
        if not 0 < gamma <= sys.float_info.max:  # an integer may exceed any float
            raise ValueError(f'gamma must be positive and finite, got {gamma}')
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, padding_mode, device, dtype),
            beta=beta,
        )
        self.check_has_variance()
        n = self.weight[0].numel()
        self.relative_gamma = relative_gamma
        self.gamma = float(gamma) * (2 / n if relative_gamma else 1)
        self.scale = scale
        self.alpha_mode = alpha
        per_layer = alpha == 'layer'
        if per_layer and self.bias is not None:
            self.bias = nn.Parameter(self.weight.new_zeros(1))
        if alpha == 'fixed':
            self.register_parameter('alpha', None)
        else:
            size = 1 if per_layer else self.out_channels
            self.alpha = nn.Parameter(self.weight.new_ones(size))
        mean = self.weight.new_zeros(self.out_channels) if keep_mean else None
        self.register_buffer('mean', mean)

    def reset_parameters(self) -> None:
        """Set W to He normal (fan_in), alpha to 1, beta and the mean to 0."""
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight, mode='fan_in', nonlinearity='relu')
        # nn.Conv2d.__init__ calls this method before alpha exists.
        if getattr(self, 'alpha', None) is not None:
            nn.init.ones_(self.alpha)
        if getattr(self, 'mean', None) is not None:
            nn.init.zeros_(self.mean)

    def effective_weight(self) -> Tensor:
        """The filters of the equivalent plain convolution, alpha and mean included.

        Returns:
            Shape and dtype of ``weight``.
        """
        if self.deployed:
            return self.weight
        return standardize_weight(
            self.weight, self.alpha, self.gamma, self.scale, None, self.mean
        )

    def filters_to_convolve_with(self) -> Tensor:
        # Filters of its own are left as they are; so is what a convolution of its own
        # gets.
        if (dtype := conv_dtype(self.weight)) is None or not self._is_usual():
            return self.effective_weight()
        return standardize_weight(
            self.weight, self.alpha, self.gamma, self.scale, dtype, self.mean
        )

    def _is_usual(self) -> bool:
        cls, own = type(self), vars(self)
        return (
            cls.effective_weight is PWSConv2d.effective_weight
            and cls._conv_forward is nn.Conv2d._conv_forward
            and 'effective_weight' not in own
            and '_conv_forward' not in own
        )

    def expanded_bias(self) -> Tensor | None:
        # What needs no expanding is spared a node in the graph of the gradients.
        return super().expanded_bias() if self.alpha_mode == 'layer' else self.bias

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ) -> None:
        # Checkpoints of the paper's authors hold alpha in the shape (O, 1, 1, 1).
        alpha = state_dict.get(prefix + 'alpha')
        if self.alpha is not None and alpha is not None:
            if alpha.numel() == self.alpha.numel():
                state_dict[prefix + 'alpha'] = alpha.reshape(self.alpha.shape)
        if self.alpha is not None and alpha is None and f'{prefix}weight' in state_dict:
            # Without this check MMEngine would load the weights of a network with BN:
            # it only warns of BN's keys, and the network computes something else.
            beside = prefix[:-1].rpartition('.')[0]
            for key in unexpected:
                norm, _, name = key.rpartition('.')
                if name == 'running_mean' and norm.rpartition('.')[0] == beside:
                    raise ValueError(
                        'these are the weights of a network with BN, and this one has '
                        f'PWS in {prefix[:-1]}. init_cfg=dict(type='
                        "'PWSPretrained', checkpoint=...) converts them, and so does "
                        'pws-convert'
                    )
        self._check_mean(state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def _check_mean(self, state_dict, prefix) -> None:
        """Refuse weights with a mean that this layer lacks; else it may be missing."""
        key = f'{prefix}mean'
        if self.mean is not None and f'{prefix}alpha' in state_dict:
            # Weights of the same network from scratch, whose filters have zero mean
            state_dict.setdefault(key, torch.zeros_like(self.mean))
        elif self.mean is None and not self.deployed and key in state_dict:
            # Without this check MMEngine would only warn, and compute something else.
            raise ValueError(
                f'the filters of {prefix[:-1]} keep the mean that they had with BN. '
                "Set conv_cfg=dict(type='PWS', keep_mean=True) for this layer"
            )

    def extra_options(self) -> str:
        he_variance = 2 / self.weight[0].numel()
        gamma = self.gamma / he_variance if self.relative_gamma else self.gamma
        options = f', gamma={gamma:g}'
        if self.relative_gamma:
            options += ', relative_gamma=True'
        if not self.scale:
            options += ', scale=False'
        if self.alpha_mode != 'channel':
            options += f", alpha='{self.alpha_mode}'"
        if self.mean is not None:
            options += ', keep_mean=True'
        return options
